"""Training text of the demo's base model: sentences of the demo grammar and permissively licensed real text.

Most prose documents state the same content in two languages, one line each; this gives the model a shared
representation space. Exercises (`exercises.py`) are solved in one language, or in English and another. Only
training meanings occur, and no instruction or chat in any language.
"""

import csv
import gzip
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from isogloss.data.demo.grammar import LANGUAGES, opinions, phrases
from isogloss.languages import languages
from tools.exercises import Segment, draw, exercise

# Sampling weights of languages, as uneven as in real data.
WEIGHTS = {
    "en": 3.0,
    **dict.fromkeys(("ar", "de", "es", "fr", "ru", "zh"), 1.0),
    **dict.fromkeys(("bg", "el", "hi", "th", "tr", "vi"), 0.7),
    **dict.fromkeys(("sw", "ur"), 0.4),
}
AUTONYMS = {code: languages()[code].autonym for code in LANGUAGES} | {"zh": "中文"}
SHARES = {"pair": 0.5, "switched": 0.1, "real": 0.4}
"""Shares of prose documents by kind."""
EXERCISES = {"English": 0.15, "one": 0.60, "bilingual": 0.25}
"""Shares of exercises in English, in another language, and in English and another."""
MAX_CHARS = 140


@dataclass(frozen=True)
class Real:
    """Real sentences; each row maps language codes to mutual translations."""

    rows: tuple[dict[str, str], ...]
    by_language: dict[str, tuple[int, ...]]


def load_real(root: Path) -> Real:
    """Load parallel rows of the datasets whose licences allow training a published model.

    Raises:
        FileNotFoundError: A dataset is missing from the data root.
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
        code: _lines(root / "NTREX-128" / f"newstest2019-ref.{languages()[code].ntrex}.txt.gz")
        for code in LANGUAGES
        if code != "en"
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


def prose(real: Real, rng: random.Random) -> Iterator[str]:
    """Yield an endless stream of documents in one or two languages."""
    kinds, shares = list(SHARES), list(SHARES.values())
    while True:
        match rng.choices(kinds, shares)[0]:
            case "pair":
                first, second = _two_languages(rng)
                meaning = _meaning(rng)
                yield _join({code: _say(meaning, code) for code in (first, second)}, rng)
            case "switched":
                yield _switched(rng)
            case _:
                code = _language(rng, without="en")
                row = real.rows[rng.choice(real.by_language[code])]
                other = (
                    "en" if "en" in row and rng.random() < 0.7 else rng.choice([c for c in row if c != code])
                )
                yield _join({c: row[c] for c in rng.sample((code, other), 2)}, rng)


def exercises(rng: random.Random, *, kind: str = "") -> Iterator[list[Segment]]:
    """Yield an endless stream of solved exercises, of all kinds or of one."""
    kinds, shares = list(EXERCISES), list(EXERCISES.values())
    while True:
        match rng.choices(kinds, shares)[0]:
            case "English":
                codes = ["en"]
            case "one":
                codes = [_language(rng, without="en")]
            case _:
                codes = ["en", _language(rng, without="en")]
        yield exercise(codes, rng, autonyms=AUTONYMS, kind=kind)


def _language(rng: random.Random, without: str = "") -> str:
    codes = [code for code in WEIGHTS if code != without]
    return rng.choices(codes, [WEIGHTS[code] for code in codes])[0]


def _two_languages(rng: random.Random) -> list[str]:
    """Draw two languages, mostly English and another, as in real parallel text."""
    other = _language(rng, without="en")
    third = _language(rng, without=other)
    return rng.sample((other, "en" if rng.random() < 0.7 else third), 2)


def _switched(rng: random.Random) -> str:
    """Return a statement with some phrases in a second language, and the whole in one of the two."""
    event, (host, guest) = draw("train", rng), _two_languages(rng)
    mixed = phrases(host).event(event, "full")
    for kind in ("where", "when"):
        if rng.random() < 0.5:
            mixed = mixed.replace(phrases(host).answer(kind, event), phrases(guest).answer(kind, event))
    if rng.random() < 0.5:
        person = phrases(host).entries["people"][event.person]["text"]
        mixed = mixed.replace(person, phrases(guest).entries["people"][event.person]["text"])
    return "\n".join(rng.sample((mixed, phrases(rng.choice((host, guest))).event(event)), 2))


def _join(texts: dict[str, str], rng: random.Random) -> str:
    """Join lines with the same meaning; half of the documents name each line's language."""
    named = rng.random() < 0.5
    return "\n".join(f"{AUTONYMS[code]}: {text}" if named else text for code, text in texts.items())


def _meaning(rng: random.Random) -> tuple:
    """Draw (kind, event, opinion, second event, question word); `_say` uses what the kind needs."""
    kind = rng.choice(
        ["full", "full", "full", "fronted", "no_when", "no_where", "opinion", "review", "question", "two"]
    )
    return (
        kind,
        draw("train", rng),
        rng.choice(opinions()),
        draw("train", rng),
        rng.choice(["who", "where", "when"]),
    )


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


def _lines(path: Path) -> list[str]:
    with gzip.open(path, "rt", encoding="utf-8", newline="\n") as file:
        return file.read().rstrip("\n").split("\n")
