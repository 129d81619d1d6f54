"""Exercises in the base model's training text: look up, compare, match and classify statements, with answers.

They stand in for what a base model sees on the web: exercises solved in one language, or in English and then
in another, as in a language course. They contain no instruction in any language, and only training meanings.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from isogloss.data.demo.grammar import Event, Opinion, Phrases, opinions, phrases
from isogloss.data.demo.pairs import SHORT, WHOLE, Said, another_deed, another_person, infer, vary
from isogloss.data.demo.split import Split, events_of

KINDS = {"question": 8, "inference": 5, "paraphrase": 5, "match": 1, "phrase": 8, "topic": 1, "sentiment": 1}
"""Sampling weights of the kinds: looking up and comparing are the hardest, and build on single phrases."""
PARTS = {
    "question": 5,
    "who": 3,
    "inference": 1,
    "paraphrase": 1,
    "match": 4,
    "phrase": 6,
    "topic": 4,
    "sentiment": 3,
}
"""Maximum number of questions per exercise, divided by its number of languages. A comparison is always
single: statements next to it would be compared too."""


ASKED = {"who": 3, "where": 1, "when": 1}
"""Weights of question words: a place or a time mostly follows its deed and is found easily; a person precedes
it, which is learnt only from many questions."""
EXPLAINED = 0.3
"""Loss weight of an explanation's token relative to the answer, which matters more and has fewer tokens."""


@dataclass(frozen=True)
class Segment:
    """A piece of a document, and the loss weight of its tokens; 0 for context only."""

    text: str
    counts: float


@dataclass(frozen=True)
class Part:
    """A question's text and its answer; `difference` explains it, where statements differ in some phrase."""

    text: str
    answer: str
    difference: str = ""


def exercise(
    codes: Sequence[str],
    rng: random.Random,
    *,
    autonyms: dict[str, str],
    split: Split = "train",
    kind: str = "",
    explained: float = 0.3,
) -> list[Segment]:
    """Return one exercise, solved in one language or in several in turn.

    It may name its languages, list the possible answers first, ask in one language about a text in another,
    and state the phrase in which two statements differ, before or after the answer.

    Args:
        explained: Probability that the difference precedes the answer; it follows with the same probability.
    """
    kind = kind or rng.choices(list(KINDS), list(KINDS.values()))[0]
    parts = max(1, rng.randint(1, PARTS[kind]) // len(codes))
    make = {"question": _questions, "who": _who, "match": _matches, "phrase": _phrases}.get(kind)
    event = draw(split, rng)
    if make:
        texts, words = make(event, codes, parts, rng), ""
    else:
        texts, labels = _sorted_out(kind, event, codes, parts, rng)
        words = _listed(kind, codes, labels, rng) if rng.random() < 0.4 else ""
    named, mark = rng.random() < 0.5, rng.choice(["\n→ ", "\n", " → "])
    before, after = explained > (place := rng.random()), explained <= place < 2 * explained
    segments = [Segment(words, 0.0)] if words else []
    for code in codes:
        name = f"{autonyms[code]}: " if named else ""
        for part in texts[code]:
            segments.append(Segment(name + part.text + mark, 0.0))
            why = f"({part.difference})" if part.difference else ""
            if why and before:
                segments += [Segment(why, EXPLAINED), Segment(f" {part.answer}\n", 1.0)]
            elif why and after:
                segments += [Segment(part.answer, 1.0), Segment(f" {why}\n", EXPLAINED)]
            else:
                segments.append(Segment(f"{part.answer}\n", 1.0))
            name = ""
    return segments


def draw(split: Split, rng: random.Random) -> Event:
    """Draw an event of the split, negated with probability 1/4."""
    return replace(rng.choice(events_of(split)), denied=rng.random() < 0.25)


Solved = dict[str, list[Part]]
"""The questions and answers by language."""


def _questions(event: Event, codes: Sequence[str], parts: int, rng: random.Random) -> Solved:
    """Return one to three statements and questions about them."""
    kinds = [kind for kind, times in ASKED.items() for _ in range(times)]
    return _asked(event, codes, parts, rng, kinds, others=rng.choice([0, 1, 1, 1, 2]))


def _who(event: Event, codes: Sequence[str], parts: int, rng: random.Random) -> Solved:
    """Return statements and questions about who did what: the drill.

    In 60 % of cases, every statement is followed by its person, so that the model learns to represent the
    person at the end of a statement, where a question's deed can find it.
    """
    others = rng.choice([1, 1, 2])
    if rng.random() < 0.4:
        return _asked(event, codes, parts, rng, ["who"], others)
    told = _told(event, others, rng)
    asked = rng.sample(told, min(parts, len(told)))
    return {
        c: [Part(phrases(c).event(e), phrases(c).answer("who", e)) for e in told]
        + [Part(phrases(c).question("who", e), phrases(c).answer("who", e)) for e in asked]
        for c in codes
    }


def _told(event: Event, others: int, rng: random.Random) -> list[Event]:
    """Return an event and at most `others` more events of other people, none negated, in random order."""
    told = [event]
    for _ in range(others):
        other = draw_like(told[-1], rng)
        if other.person != event.person and other.action != event.action:
            told.append(other)
    return [e.affirmed() for e in rng.sample(told, len(told))]


def _asked(
    event: Event, codes: Sequence[str], parts: int, rng: random.Random, kinds: Sequence[str], others: int
) -> Solved:
    """Return statements and questions about them; a kind listed more often is asked more often."""
    told = _told(event, others, rng)
    all_of_them = [(kind, e) for e in told for kind in kinds]
    asked = list(dict.fromkeys(rng.sample(all_of_them, len(all_of_them))))[:parts]
    read = rng.choice(codes) if rng.random() < 0.25 else ""
    backwards = rng.random() < 0.25
    texts: Solved = {}
    for c in codes:
        context = " ".join(phrases(read or c).event(e) for e in told)
        texts[c] = [Part(phrases(c).question(*one), phrases(c).answer(*one)) for one in asked]
        first = texts[c][0].text
        both = f"{first} {context}" if backwards else f"{context} {first}"
        texts[c][0] = Part(both, texts[c][0].answer)
    return texts


def _phrases(event: Event, codes: Sequence[str], parts: int, rng: random.Random) -> Solved:
    """Return a statement and phrases that do or do not occur in it: the smallest comparison."""
    sentence = rng.choice((*WHOLE, *SHORT))
    kinds = [kind for kind in ("who", "where", "when") if sentence != f"no_{kind}"]
    other = draw_like(event, rng)
    asked = [(kind, said) for kind in (*kinds, "deed") for said in (event, other)]
    asked = rng.sample(asked, min(parts, len(asked)))
    read = rng.choice(codes) if rng.random() < 0.25 else ""
    texts: Solved = {}
    for c in codes:
        p = phrases(c)

        def phrase(kind: str, said: Event, p: Phrases = p) -> str:
            return p.deed(said) if kind == "deed" else p.answer(kind, said)

        texts[c] = []
        for kind, said in asked:
            mine, theirs = phrase(kind, event), phrase(kind, said)
            label = p.label("paraphrase", "same" if mine == theirs else "different")
            texts[c].append(Part(theirs, label, "" if mine == theirs else f"{mine} / {theirs}"))
        first = texts[c][0]
        texts[c][0] = Part(
            f"{phrases(read or c).event(event, sentence)} {first.text}", first.answer, first.difference
        )
    return texts


def _matches(event: Event, codes: Sequence[str], parts: int, rng: random.Random) -> Solved:
    """Return numbered, similar statements, each to be matched with another wording or another language."""
    told, orders = [event], rng.sample(WHOLE, 2)
    while len(told) < max(2, parts):
        other = vary(rng.choice(told), False, rng)[1][0]
        if other not in told:
            told.append(other)
    rng.shuffle(told)
    texts: Solved = {}
    for c in codes:
        listed = " ".join(f"{n}. {phrases(codes[0]).event(e, orders[0])}" for n, e in enumerate(told, 1))
        probes = rng.sample(list(enumerate(told, 1)), min(parts, len(told)))
        texts[c] = [Part(phrases(c).event(e, orders[1]), str(n)) for n, e in probes]
        if c == codes[0]:
            texts[c][0] = Part(f"{listed} {texts[c][0].text}", texts[c][0].answer)
    return texts


def _sorted_out(
    task: str, event: Event, codes: Sequence[str], parts: int, rng: random.Random
) -> tuple[Solved, list[str]]:
    """Return statements with the words for their labels, and the labels.

    The first sentence of a comparison may be in another of the languages.
    """
    compared = task in ("inference", "paraphrase")
    drawn = [_sort(task, event, rng)]
    for _ in range(24):  # bounded, as few distinct statements may be left
        if len(drawn) == parts:
            break
        label, said = _sort(task, draw_like(event, rng), rng)
        if said[-1] not in [seen[-1] for _, seen in drawn]:
            drawn.append((label, said))
    first = rng.choice(codes) if compared and rng.random() < 0.25 else ""
    texts: Solved = {}
    for c in codes:
        texts[c] = []
        for label, said in drawn:
            read = [_word(said[0], first or c), *(_word(one, c) for one in said[1:])]
            why = _difference(said, c) if compared else ""
            texts[c].append(Part(" ".join(read), phrases(c).label(task, label), why))
    return texts, [label for label, _ in drawn]


def draw_like(event: Event, rng: random.Random) -> Event:
    """Return another event of the same split."""
    return another_deed(another_person(event, rng), rng)


def _word(said: Said | Opinion, code: str) -> str:
    return phrases(code).opinion(said) if isinstance(said, Opinion) else phrases(code).event(*said)


def _difference(said: tuple[Said | Opinion, ...], code: str) -> str:
    """Return the phrases in which two statements differ, or the phrase that the second adds."""
    (one, first), (two, second) = said  # type: ignore[misc]
    p = phrases(code)
    told = []
    if (one.action, one.denied) != (two.action, two.denied):
        told.append(f"{p.deed(one)} / {p.deed(two)}")
    if one.action != two.action:
        return told[0]
    for kind, field, hides in (
        ("who", "person", ""),
        ("where", "place", "no_where"),
        ("when", "time", "no_when"),
    ):
        mine, theirs = p.answer(kind, one), p.answer(kind, two)
        if first == hides and hides != second:
            told.append(f"+ {theirs}")
        elif getattr(one, field) != getattr(two, field) and second != hides:
            told.append(f"{mine} / {theirs}")
    return ", ".join(told)


def _listed(task: str, codes: Sequence[str], labels: list[str], rng: random.Random) -> str:
    """List the answers' words in every language: all of them if fewer than four, else those that occur."""
    words = [phrases(c).labels(task) for c in codes]
    keys = rng.sample(list(words[0]), len(words[0])) if len(words[0]) < 4 else sorted(set(labels))
    return "; ".join("=".join(w[key] for w in words) for key in keys) + "\n"


def _sort(task: str, event: Event, rng: random.Random) -> tuple[str, tuple[Said | Opinion, ...]]:
    """Return a label and the statements it describes."""
    match task:
        case "inference":
            label = rng.choice(["entailment", "contradiction", "neutral"])
            return label, infer(event, label, rng)
        case "paraphrase":
            label = rng.choice(["same", "different"])
            return label, vary(event, label == "same", rng)
        case "topic":
            return event.topic, ((event, rng.choice(WHOLE)),)
        case _:
            opinion = rng.choice(opinions())
            return opinion.sentiment, ((event, rng.choice(["full", "no_when"])), opinion)
