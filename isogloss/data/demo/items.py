"""The demo's instruction set: seven tasks in fifteen languages, generated from the grammar by item number.

Item n of a split is the same item in every language and on every machine. Tasks and phrasings take turns, so
the first 21 items already cover every task in every phrasing.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from isogloss.data.demo.grammar import Event, Phrases, meanings, opinions, phrases
from isogloss.data.demo.pairs import another_deed, another_person, infer, vary
from isogloss.data.demo.split import Split, events_of
from isogloss.data.examples import ParallelExample, Turn

TASKS = ("inference", "paraphrase", "question", "topic", "sentiment", "to_english", "from_english")
PHRASINGS = 3
ASKED = {"who": ("person", "people"), "where": ("place", "places"), "when": ("time", "times")}
"""By question word, the part of an event that it asks for, and the meanings that may answer."""


@dataclass(frozen=True)
class DemoItem:
    """A parallel example and the meaning of its answer; None in an open task."""

    example: ParallelExample
    gold: str | None


def demo_items(split: Split, count: int, languages: Sequence[str], *, draw: str = "") -> list[DemoItem]:
    """Return the first `count` items of a split; each `draw` names a separate endless series of the split."""
    return [_item(split, number, languages, draw) for number in range(count)]


def _item(split: Split, number: int, languages: Sequence[str], draw: str) -> DemoItem:
    rng = random.Random(f"{split}/{draw}/{number}")
    task = TASKS[number % len(TASKS)]
    phrasing = number // len(TASKS) % PHRASINGS
    event = rng.choice(events_of(split))
    make = globals()[f"_{task}"]
    turns, options, gold = make(event, [phrases(code) for code in languages], phrasing, rng)
    name = f"{split}{'-' + draw if draw else ''}-{number:05d}-{task}"
    return DemoItem(ParallelExample(name, task, turns, options), gold)


Made = tuple[dict[str, Turn], dict[str, dict[str, str]] | None, str | None]


def _closed(
    task: str, gold: str, wordings: Sequence[Phrases], phrasing: int, parts: dict[str, dict[str, str]]
) -> Made:
    turns = {
        p.language: Turn(p.instruction(task, phrasing, **parts[p.language]), p.label(task, gold))
        for p in wordings
    }
    return turns, {p.language: p.labels(task) for p in wordings}, gold


def _inference(event: Event, wordings: Sequence[Phrases], phrasing: int, rng: random.Random) -> Made:
    verdict = rng.choice(["entailment", "neutral", "contradiction"])
    if rng.random() < 0.3:
        event = replace(event, denied=True)
    premise, hypothesis = infer(event, verdict, rng)
    parts = {p.language: {"premise": p.event(*premise), "hypothesis": p.event(*hypothesis)} for p in wordings}
    return _closed("inference", verdict, wordings, phrasing, parts)


def _paraphrase(event: Event, wordings: Sequence[Phrases], phrasing: int, rng: random.Random) -> Made:
    same = rng.random() < 0.5
    first, second = vary(event, same, rng)
    parts = {p.language: {"first": p.event(*first), "second": p.event(*second)} for p in wordings}
    return _closed("paraphrase", "same" if same else "different", wordings, phrasing, parts)


def _topic(event: Event, wordings: Sequence[Phrases], phrasing: int, rng: random.Random) -> Made:
    sentence = rng.choice(["full", "fronted"])
    parts = {p.language: {"text": p.event(event, sentence)} for p in wordings}
    return _closed("topic", event.topic, wordings, phrasing, parts)


def _sentiment(event: Event, wordings: Sequence[Phrases], phrasing: int, rng: random.Random) -> Made:
    sentiment = rng.choice(["positive", "neutral", "negative"])
    opinion = rng.choice([o for o in opinions() if o.sentiment == sentiment])
    parts = {p.language: {"text": f"{p.event(event)} {p.opinion(opinion)}"} for p in wordings}
    return _closed("sentiment", sentiment, wordings, phrasing, parts)


def _question(event: Event, wordings: Sequence[Phrases], phrasing: int, rng: random.Random) -> Made:
    asked = rng.choice(list(ASKED))
    part, possible = ASKED[asked]
    other = another_deed(another_person(event, rng), rng)
    told = rng.sample((event, other), 2)
    turns, options = {}, {}
    for p in wordings:
        context = " ".join(p.event(e) for e in told)
        instruction = p.instruction("question", phrasing, context=context, question=p.question(asked, event))
        turns[p.language] = Turn(instruction, p.answer(asked, event))
        options[p.language] = {
            key: p.answer(asked, replace(event, **{part: key})) for key in meanings()[possible]
        }
    return turns, options, getattr(event, part)


def _to_english(event: Event, wordings: Sequence[Phrases], phrasing: int, rng: random.Random) -> Made:
    english = phrases("en").event(event)
    turns = {
        p.language: Turn(p.instruction("to_english", phrasing, text=p.event(event)), english)
        for p in wordings
    }
    return turns, None, None


def _from_english(event: Event, wordings: Sequence[Phrases], phrasing: int, rng: random.Random) -> Made:
    english = phrases("en").event(event)
    turns = {
        p.language: Turn(p.instruction("from_english", phrasing, text=english), p.event(event))
        for p in wordings
    }
    return turns, None, None
