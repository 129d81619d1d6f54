"""What the demo's base model reads: sentences of the demo grammar and permissive real text.

Most documents say one thing in two languages, one line each, which is what gives the model one
space for all of them. Only training meanings occur, and no instruction or chat in any language.
Exercise prose, in English, in another language or in both, stands for what a base model has read on
the web.
"""

import csv
import gzip
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from isogloss.demo.grammar import LANGUAGES, Event, Opinion, opinions, phrases
from isogloss.demo.pairs import Said, another_deed, another_person, infer, vary
from isogloss.demo.split import events_of

# How often a language is met: plenty, some, or next to nothing, as in life.
WEIGHTS = {
    "en": 3.0,
    **dict.fromkeys(("ar", "de", "es", "fr", "ru", "zh"), 1.0),
    **dict.fromkeys(("bg", "el", "hi", "th", "tr", "vi"), 0.7),
    **dict.fromkeys(("sw", "ur"), 0.4),
}
AUTONYMS = {
    "en": "English", "ar": "العربية", "bg": "български", "de": "Deutsch", "el": "Ελληνικά", "es": "español",
    "fr": "français", "hi": "हिन्दी", "ru": "русский", "sw": "Kiswahili", "th": "ไทย", "tr": "Türkçe",
    "ur": "اردو", "vi": "Tiếng Việt", "zh": "中文",
}  # fmt: skip
NTREX = {
    "ar": "arb", "bg": "bul", "de": "deu", "el": "ell", "es": "spa", "fr": "fra", "hi": "hin", "ru": "rus",
    "sw": "swa", "th": "tha", "tr": "tur", "ur": "urd", "vi": "vie", "zh": "zho-CN",
}  # fmt: skip
SHARES = {"pair": 0.24, "switched": 0.04, "real": 0.12, "exercise": 0.04, "solved": 0.30, "bilingual": 0.26}
"""Of documents; pairs are short and exercises in two languages long."""
EXERCISES = {"question": 5, "inference": 4, "paraphrase": 4, "topic": 1, "sentiment": 1}
"""How often each kind is met: looking up who did what is the hardest."""
MAX_CHARS = 140


@dataclass(frozen=True)
class Real:
    """Real sentences: each row maps language codes to translations of one another."""

    rows: tuple[dict[str, str], ...]
    by_language: dict[str, tuple[int, ...]]


def load_real(root: Path) -> Real:
    """Parallel rows of the sets that may train a model that is given away.

    Raises:
        FileNotFoundError: A set is missing from the data root.
    """
    rows: list[dict[str, str]] = []
    codes = set(LANGUAGES)
    massive: dict[str, dict[str, str]] = {}
    for path in sorted((root / "massive").glob("*.jsonl.gz")):
        code = path.name.split("-")[0]
        if code in codes:
            for line in _lines(path):
                row = json.loads(line)
                if row["partition"] == "train":
                    massive.setdefault(row["id"], {})[code] = row["utt"]
    rows.extend(massive.values())
    for folder in ("tatoeba", "tico-19", "course_text"):
        for path in sorted((root / folder).glob("*.tsv.gz")):
            code = path.name.removesuffix(".tsv.gz").split("-")[1].split(".")[0]
            if code in codes:
                reader = csv.DictReader(_lines(path), delimiter="\t", quoting=csv.QUOTE_NONE)
                target = (reader.fieldnames or [])[-1]
                rows.extend(
                    {"en": row["en"], code: row[target]} for row in reader if row["en"] and row[target]
                )
    columns = {"en": _lines(root / "NTREX-128" / "newstest2019-src.eng.txt.gz")} | {
        code: _lines(root / "NTREX-128" / f"newstest2019-ref.{name}.txt.gz") for code, name in NTREX.items()
    }
    rows.extend(dict(zip(columns, texts, strict=True)) for texts in zip(*columns.values(), strict=True))
    articles: dict[str, dict[str, str]] = {}
    for code in LANGUAGES:
        for line in (root / "udhr" / f"{code}.tsv").read_text("utf-8").split("\n"):
            if "\t" in line:
                part, text = line.split("\t", 1)
                articles.setdefault(part, {})[code] = text
    rows.extend(articles.values())
    kept = [{c: t.strip() for c, t in row.items() if 0 < len(t.strip()) <= MAX_CHARS} for row in rows]
    kept = [row for row in kept if len(row) > 1]
    index: dict[str, list[int]] = {}
    for number, row in enumerate(kept):
        for code in row:
            index.setdefault(code, []).append(number)
    return Real(tuple(kept), {code: tuple(numbers) for code, numbers in index.items()})


def documents(real: Real, rng: random.Random) -> Iterator[str]:
    """An endless stream of documents."""
    kinds, shares = list(SHARES), list(SHARES.values())
    while True:
        match rng.choices(kinds, shares)[0]:
            case "pair":
                first, second = _two_languages(rng)
                meaning = _meaning(rng)
                yield _join({code: _say(meaning, code) for code in (first, second)}, rng)
            case "switched":
                yield _switched(rng)
            case "real":
                code = _language(rng, without="en")
                row = real.rows[rng.choice(real.by_language[code])]
                other = (
                    "en" if "en" in row and rng.random() < 0.7 else rng.choice([c for c in row if c != code])
                )
                yield _join({c: row[c] for c in rng.sample((code, other), 2)}, rng)
            case "exercise":
                yield _exercise(rng)
            case "solved":
                yield _solved((_language(rng),), rng)
            case _:
                yield _solved(("en", _language(rng, without="en")), rng)


def _language(rng: random.Random, without: str = "") -> str:
    codes = [code for code in WEIGHTS if code != without]
    return rng.choices(codes, [WEIGHTS[code] for code in codes])[0]


def _two_languages(rng: random.Random) -> list[str]:
    """Mostly English and another, as parallel text is in life."""
    other = _language(rng, without="en")
    third = _language(rng, without=other)
    return rng.sample((other, "en" if rng.random() < 0.7 else third), 2)


def _switched(rng: random.Random) -> str:
    """A statement in one language with some phrases of another, and the whole in one of them."""
    event, (host, guest) = _event(rng), _two_languages(rng)
    mixed = phrases(host).event(event, "full")
    for kind in ("where", "when"):
        if rng.random() < 0.5:
            mixed = mixed.replace(phrases(host).answer(kind, event), phrases(guest).answer(kind, event))
    if rng.random() < 0.5:
        person = phrases(host).entries["people"][event.person]["text"]
        mixed = mixed.replace(person, phrases(guest).entries["people"][event.person]["text"])
    return "\n".join(rng.sample((mixed, phrases(rng.choice((host, guest))).event(event)), 2))


def _join(texts: dict[str, str], rng: random.Random) -> str:
    """Lines that mean the same; half of the documents name each line's language."""
    named = rng.random() < 0.5
    return "\n".join(f"{AUTONYMS[code]}: {text}" if named else text for code, text in texts.items())


def _event(rng: random.Random) -> Event:
    return replace(rng.choice(events_of("train")), denied=rng.random() < 0.25)


def _meaning(rng: random.Random) -> tuple:
    """One or two statements, or a question: (kind, event, opinion or second event)."""
    kind = rng.choice(
        ["full", "full", "full", "fronted", "no_when", "no_where", "opinion", "review", "question", "two"]
    )
    return kind, _event(rng), rng.choice(opinions()), _event(rng), rng.choice(["who", "where", "when"])


def _say(meaning: tuple, code: str) -> str:
    kind, event, opinion, other, asked = meaning
    p = phrases(code)
    match kind:
        case "opinion":
            return p.opinion(opinion)
        case "review":
            return f"{p.event(event, 'no_when')} {p.opinion(opinion)}"
        case "question":
            return p.question(asked, event.affirmed())
        case "two":
            return f"{p.event(event)} {p.event(other)}"
        case _:
            return p.event(event, kind)


def _exercise(rng: random.Random) -> str:
    """English prose in which statements are compared, questioned and sorted."""
    p, event = phrases("en"), _event(rng)
    match _kind_of_exercise(rng):
        case "question":
            told = [event.affirmed(), another_deed(another_person(event, rng), rng).affirmed()]
            asked = rng.choice(["who", "where", "when"])
            texts = [p.event(e) for e in rng.sample(told, 2)]
            return f"{' '.join(texts)}\nQ: {p.question(asked, told[0])}\nA: {p.answer(asked, told[0])}"
        case "inference":
            word = {"entailment": "true", "contradiction": "false", "neutral": "unknown"}
            verdict = rng.choice(list(word))
            premise, hypothesis = infer(event, verdict, rng)
            return f"{p.event(*premise)}\n{p.event(*hypothesis)}\n→ {word[verdict]}"
        case "paraphrase":
            same = rng.random() < 0.5
            first, second = vary(event, same, rng)
            return f"{p.event(*first)}\n{p.event(*second)}\n→ {'equal' if same else 'unequal'}"
        case "topic":
            return f"{p.event(event, rng.choice(['full', 'fronted']))}\n→ a sentence about {event.topic}"
        case _:
            opinion = rng.choice(opinions())
            word = {"positive": "praise", "neutral": "neither praise nor blame", "negative": "blame"}
            return f"{p.event(event, 'no_when')} {p.opinion(opinion)}\n→ {word[opinion.sentiment]}"


def _kind_of_exercise(rng: random.Random) -> str:
    return rng.choices(list(EXERCISES), list(EXERCISES.values()))[0]


def _solved(codes: tuple[str, ...], rng: random.Random) -> str:
    """An exercise of one to four parts, solved in one language, or in English and then in another as in a
    learner's book.

    It may list the words of the answers first, and may ask in one language about a text in the other.
    """
    event, task = _event(rng), _kind_of_exercise(rng)
    parts = rng.choice([1, 2, 3, 4]) if len(codes) == 1 else rng.choice([1, 1, 2])
    named, mark = rng.random() < 0.5, rng.choice(["\n→ ", "\n", " → "])
    listed = ""
    if task == "question":
        texts = _questions(event, codes, parts, rng)
    else:
        texts, labels = _sorted_out(task, event, codes, parts, rng)
        if rng.random() < 0.4:
            words = [phrases(c).labels(task) for c in codes]
            keys = rng.sample(list(words[0]), len(words[0])) if len(words[0]) < 4 else sorted(set(labels))
            listed = "; ".join("=".join(w[key] for w in words) for key in keys) + "\n"
    return listed + "\n".join(
        (f"{AUTONYMS[c]}: " if named else "") + "\n".join(f"{text}{mark}{answer}" for text, answer in solved)
        for c, solved in texts.items()
    )


Solved = dict[str, list[tuple[str, str]]]
"""By language, texts and the answers to them."""


def _questions(event: Event, codes: tuple[str, ...], parts: int, rng: random.Random) -> Solved:
    """One or two statements and questions about them."""
    told = [event, another_deed(another_person(event, rng), rng)][: rng.choice([1, 2, 2, 2])]
    told = [e.affirmed() for e in rng.sample(told, len(told))]
    asked = rng.sample([(kind, e) for e in told for kind in ("who", "where", "when")], min(parts, 3))
    read = codes[0] if rng.random() < 0.25 else ""
    backwards = rng.random() < 0.25
    texts: Solved = {}
    for c in codes:
        context = " ".join(phrases(read or c).event(e) for e in told)
        texts[c] = [(phrases(c).question(*one), phrases(c).answer(*one)) for one in asked]
        first, answer = texts[c][0]
        texts[c][0] = (f"{first} {context}" if backwards else f"{context} {first}"), answer
    return texts


def _sorted_out(
    task: str, event: Event, codes: tuple[str, ...], parts: int, rng: random.Random
) -> tuple[Solved, list[str]]:
    """Statements and the words they are sorted under; and which labels these are.

    Comparisons of several parts state the first sentence once.
    """
    compared = task in ("inference", "paraphrase")
    drawn = [_sort(task, event, rng)]
    for _ in range(24):  # few wordings are left for some first sentences
        if len(drawn) == parts:
            break
        label, said = _sort(task, event if compared else _event(rng), rng)
        if compared and said[0] != drawn[0][1][0]:
            continue
        fresh = label, said[1:] if compared else said
        if fresh[1][-1:] not in [seen[-1:] for _, seen in drawn]:
            drawn.append(fresh)
    texts: Solved = {}
    for c in codes:
        p = phrases(c)
        texts[c] = [
            (
                " ".join(p.opinion(s) if isinstance(s, Opinion) else p.event(*s) for s in said),
                p.label(task, label),
            )
            for label, said in drawn
        ]
    return texts, [label for label, _ in drawn]


def _sort(task: str, event: Event, rng: random.Random) -> tuple[str, tuple[Said | Opinion, ...]]:
    """A label and what is said."""
    match task:
        case "inference":
            label = rng.choice(["entailment", "contradiction", "neutral"])
            return label, infer(event, label, rng)
        case "paraphrase":
            label = rng.choice(["same", "different"])
            return label, vary(event, label == "same", rng)
        case "topic":
            return event.topic, ((event, rng.choice(["full", "fronted"])),)
        case _:
            opinion = rng.choice(opinions())
            return opinion.sentiment, ((event, rng.choice(["full", "no_when"])), opinion)


def _lines(path: Path) -> list[str]:
    with gzip.open(path, "rt", encoding="utf-8", newline="\n") as file:
        return file.read().rstrip("\n").split("\n")
