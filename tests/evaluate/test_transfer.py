"""Unseen languages through each node of a tree: the nodes, their rows, and the differences."""

from pathlib import Path
from unittest.mock import Mock

import pytest

from isogloss.adapters.routing import Routing
from isogloss.adapters.tree import build_tree
from isogloss.cli import measuring
from isogloss.evaluate.transfer import NOTHING, Reading, nodes_for, over_languages, read_through, transfers
from isogloss.pipeline import evaluation

INDO_ARYAN, BANTU = "Indo-European/Indo-Iranian/Indo-Aryan", "Atlantic-Congo/Benue-Congo/Narrow Bantu"
TREE = build_tree(("hi", "ur", "sw"), ranks={"root": 2, "family": 1, "language": 1})


def reading(language: str, through: str, kind: str, *hits: float) -> Reading:
    return Reading("suite", language, through, kind, {"consistency": dict(zip("abcd", hits, strict=True))})


BENGALI = [
    reading("bn", NOTHING, "nothing", 0, 0, 0, 0),
    reading("bn", "root", "root", 1, 0, 0, 0),
    reading("bn", INDO_ARYAN, "family", 1, 1, 1, 0),
    reading("bn", BANTU, "other family", 1, 0, 1, 0),
]
KOREAN = [
    reading("ko", NOTHING, "nothing", 0, 0, 0, 0),
    reading("ko", "root", "root", 1, 1, 0, 0),
    reading("ko", INDO_ARYAN, "other family", 1, 0, 0, 0),
    reading("ko", BANTU, "other family", 1, 1, 1, 0),
]


def test_a_language_is_evaluated_through_the_root_and_every_family():
    """Bengali's own family is marked; Korean has none."""
    assert nodes_for(TREE, "bn") == {"root": "root", INDO_ARYAN: "family", BANTU: "other family"}
    assert nodes_for(TREE, "ko") == {"root": "root", INDO_ARYAN: "other family", BANTU: "other family"}


def test_the_nodes_rows_are_used_and_then_the_languages_own_again():
    """Rows in the tree's order: root 0 and 1, Indo-Aryan 2, Bantu 3."""

    class Few:
        routing = Routing(TREE)

    rows = lambda: Few.routing.tree.rows("bn")  # noqa: E731
    assert rows() == [0, 1, 2]
    with read_through(Few, "bn", BANTU):  # type: ignore[arg-type]
        assert rows() == [0, 1, 3]
        assert Few.routing.tree.rows("hi") == [0, 1, 2, 4]
    with read_through(Few, "bn", "root"):  # type: ignore[arg-type]
        assert rows() == [0, 1]
    assert rows() == [0, 1, 2]


def test_a_familys_gain_is_over_the_root_and_over_other_families():
    """Three of four against one and two; without relatives, other families are compared with the root."""
    bengali, korean = transfers([*BENGALI, *KOREAN], seed=0)
    assert (bengali.nothing, bengali.root, bengali.family, bengali.others) == (0, 0.25, 0.75, 0.5)
    assert bengali.over_root.value == 0.5
    assert bengali.over_others is not None and bengali.over_others.value == 0.25
    assert (korean.family, korean.others, korean.over_others) == (None, 0.5, None)
    assert korean.over_root.value == 0.0


def test_items_are_drawn_once_for_all_languages():
    """Means of the languages' differences, by item: 0, 1, 1, 0 and 0, -0.5, 0.5, 0."""
    found = over_languages([*BENGALI, *KOREAN], ["bn", "ko"], "consistency", seed=0)
    assert found["over_root"].value == pytest.approx((0 + 0.25 + 0.75 + 0) / 4)
    assert (found["over_root"].low, found["over_root"].high) == pytest.approx((-0.25, 0.75), abs=0.25)
    assert found["over_others"].value == pytest.approx(0.25)
    assert over_languages(KOREAN, ["ko"], "retrieval", seed=0) == {}


def test_suites_of_different_sizes_have_equal_weight():
    """A gain of ½ over four items of one suite, and of 1 over a single item of the other."""
    small = [
        Reading("small", "bn", through, kind, {"consistency": {"z": float(hit)}})
        for through, kind, hit in ((NOTHING, "nothing", 0), ("root", "root", 0), (INDO_ARYAN, "family", 1))
    ]
    found = over_languages([*BENGALI, *small], ["bn"], "consistency", seed=0)
    assert found["over_root"].value == pytest.approx((0.5 + 1) / 2)


def test_the_terminal_names_only_languages_that_a_measure_has(monkeypatch, capsys):
    """No suite has anything in Thai."""
    monkeypatch.setattr(measuring, "_finished", Mock())
    monkeypatch.setattr(measuring, "require", Mock())
    monkeypatch.setattr(measuring, "prepare", lambda settings: Mock(**{"config.seed": 0}))
    monkeypatch.setattr(evaluation, "run_transfer", lambda *given: KOREAN)
    measuring.transfer(Path("run"), ["ko", "th"])
    assert "\nko (without), over the root: +0.0 (" in capsys.readouterr().out
