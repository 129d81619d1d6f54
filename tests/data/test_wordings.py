"""Wordings: an item is asked in one of them, with its slots filled; none is the evaluation's second one."""

from collections import Counter

import pytest

from isogloss.data.examples import ParallelExample, Turn
from isogloss.data.tasks import massive, pawsx, sib200, xnli
from isogloss.data.tasks.wordings import english_wordings, vary_wordings

INPUTS = {
    "intent": {"utt": "wake me at five"},
    "scenario": {"utt": "wake me at five"},
    "sib200": {"text": "It rained."},
    "xnli": {"premise": "It rained.", "hypothesis": "It was wet."},
    "pawsx": {"first": "A saw B.", "second": "B saw A."},
}
USUAL = {
    "intent": "What does the user want? wake me at five",
    "scenario": "Which area is this about? wake me at five",
    "sib200": "What is this text about? It rained.",
    "xnli": "It rained. Is it then true that: It was wet. Answer yes, no or maybe.",
    "pawsx": "Do these two sentences mean the same? 1. A saw B. 2. B saw A. Answer same or different.",
}


def asked_again(task: str) -> str:
    """Return the wording in which the evaluation asks a second time."""
    match task:
        case "sib200":
            return sib200.ask("en", *INPUTS[task].values(), phrasing=1).partition("\n")[0]
        case "xnli" | "pawsx":
            return {"xnli": xnli, "pawsx": pawsx}[task].ask("en", *INPUTS[task].values(), phrasing=1)
        case _:
            return massive.reworded(task, **INPUTS[task])


@pytest.mark.parametrize("task", INPUTS)
def test_a_task_has_seven_other_wordings_and_none_is_known_already(task):
    wordings = english_wordings(task, **INPUTS[task])
    assert len({*wordings, USUAL[task], asked_again(task)}) == 9
    for text in INPUTS[task].values():
        assert all(text in wording for wording in wordings)
    if task in ("xnli", "pawsx"):
        answers = ("yes", "no", "maybe") if task == "xnli" else ("same", "different")
        assert all(answer in wording.lower() for wording in wordings for answer in answers)


def test_a_task_without_wordings_keeps_its_instruction():
    assert english_wordings("slot", slot="time", utt="wake me at five") == ()
    example = ParallelExample("1", "slot", {"en": Turn("What is the time?", "five")})
    assert vary_wordings([example], seed=0) == [example]


def test_wordings_are_drawn_evenly_by_seed_and_id_for_english_alone():
    def example(id: int) -> ParallelExample:
        turns = {"en": Turn("a", "yes"), "es": Turn("a", None)}
        return ParallelExample(str(id), "qa", turns, wordings=("b", "c", "d"))

    drawn = vary_wordings([example(id) for id in range(4_000)], seed=0)
    counts = Counter(one.turns["en"].instruction for one in drawn)
    assert sorted(counts) == ["a", "b", "c", "d"]
    assert all(900 < count < 1_100 for count in counts.values())
    assert {(one.turns["en"].response, one.turns["es"].instruction) for one in drawn} == {("yes", "a")}
    assert vary_wordings([example(7)], seed=0) == [drawn[7]]
    others = vary_wordings([example(id) for id in range(4_000)], seed=1)
    assert 800 < sum(a == b for a, b in zip(drawn, others, strict=True)) < 1_200
