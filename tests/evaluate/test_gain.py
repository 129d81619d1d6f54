"""Gain in context: agreement with the model's own English answer, with a prompt minus without."""

import pytest

from isogloss.adapters.tree import build_tree
from isogloss.data.examples import Turn
from isogloss.evaluate import gain
from isogloss.evaluate.items import Item
from isogloss.teacher.prompts import NodeTexts

OPTIONS = {code: {"a": "yes", "b": "no"} for code in ("en", "sw", "ru")}
ITEMS = [
    Item(str(n), "closed", {code: Turn(f"{code} question {n}") for code in ("en", "sw", "ru")}, OPTIONS, "a")
    for n in range(4)
]
TREE = build_tree(("sw", "ru"), ranks={"root": 1, "family": 1, "language": 1})
TEXTS = NodeTexts(root="Rule.", languages={"sw": "Jibu."})


def told(monkeypatch, answer):
    """Replace the model by `answer(instruction, system)` and return the list of calls."""
    asked = []

    def answers(model, tokenizer, instructions, *, systems, **more):
        asked.extend(zip(instructions, systems, strict=True))
        return [answer(*one) for one in zip(instructions, systems, strict=True)]

    monkeypatch.setattr(gain, "answers", answers)
    return asked


def measured(**more):
    return {
        (one.view, one.language): one
        for one in gain.gains(None, None, ITEMS, ("sw", "ru"), TEXTS, TREE, **more)
    }


def test_agreement_and_gain_are_counted_by_view_and_language(monkeypatch):
    """English says yes; without a prompt Swahili is right on one item of four, with the twin on all four."""

    def answer(instruction, system):
        code, _, number = instruction.split()
        right = code == "en" or (system and "en question" in system) or (code == "sw" and number == "0")
        return "yes" if right else "no"

    told(monkeypatch, answer)
    found = measured()
    assert found["bare", "sw"].agreement == 0.25
    assert found["bare", "ru"].agreement == 0.0
    assert found["twin", "sw"].agreement == 1.0
    assert found["twin", "sw"].gain.value == pytest.approx(0.75)
    assert found["texts", "sw"].gain.value == 0.0
    assert found["twin", "sw"].items == 4


def test_no_view_contains_the_answer(monkeypatch):
    """A view has the twin, the texts on the path, or both."""
    asked = told(monkeypatch, lambda instruction, system: "yes")
    measured()
    read = {system for instruction, system in asked if instruction == "sw question 1"}
    assert read == {
        None, "en question 1", "Rule.\nJibu.", "Rule.\nJibu.\nEnglish: en question 1",
    }  # fmt: skip


def test_nothing_agrees_with_an_unreadable_english_answer(monkeypatch):
    told(monkeypatch, lambda instruction, system: "perhaps")
    assert {one.agreement for one in measured().values()} == {0.0}


def test_suites_with_the_same_item_ids_are_kept_apart(monkeypatch):
    """Each item is compared with its own English answer, yes for one and no for the other."""
    said = {"en question 0": "yes", "sw question 0": "yes", "en other": "no", "sw other": "no"}
    told(monkeypatch, lambda instruction, system: said[instruction])
    other = Item("0", "other", {code: Turn(f"{code} other") for code in ("en", "sw")}, OPTIONS, "b")
    for items in ([ITEMS[0], other], [other, ITEMS[0]]):
        found = gain.gains(None, None, items, ("sw",), TEXTS, TREE)
        assert {one.task: (one.items, one.agreement) for one in found} == {
            "closed": (1, 1.0), "other": (1, 1.0)
        }  # fmt: skip


def test_an_item_without_english_is_skipped(monkeypatch):
    asked = told(monkeypatch, lambda instruction, system: "yes")
    items = [*ITEMS, Item("x", "closed", {"sw": Turn("sw alone")}, OPTIONS, "a")]
    gain.gains(None, None, items, ("sw",), TEXTS, TREE)
    assert "sw alone" not in {instruction for instruction, _ in asked}
