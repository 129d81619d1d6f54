"""Signatures: their fields, and which of them make two runs incomparable."""

import pytest

from isogloss.config import Evaluate, Xglue
from isogloss.data.examples import Turn
from isogloss.evaluate.items import Item, SuiteData
from isogloss.evaluate.signature import data_hashes, fields_of, settings_fields, signature, unlike

FIELDS = {
    "suite": "xnli", "scoring": "generation", "max_new_tokens": "24", "model": "a1", "adapters": "b1",
    "template": "c1", "dtype": "float32", "layer": "3/4", "seed": "0", "data": "d1", "ruler": "2",
}  # fmt: skip


def test_a_signature_is_read_back():
    """A value may contain a colon."""
    line = signature({"suite": "xnli", "rev": "1.0:b", "items": 3})
    assert line == "suite:xnli|rev:1.0:b|items:3"
    assert fields_of(line) == {"suite": "xnli", "rev": "1.0:b", "items": "3"}


@pytest.mark.parametrize("name", ["suite", "scoring", "max_new_tokens", "dtype", "data", "ruler"])
def test_how_and_on_what_was_measured_must_be_equal(name):
    """Neither a different value nor a missing one, as in a run of an earlier version, is accepted."""
    assert unlike(FIELDS, FIELDS | {name: "other"}) == name
    without = {key: value for key, value in FIELDS.items() if key != name}
    assert unlike(FIELDS, without) == unlike(without, FIELDS) == name


def test_the_measured_model_may_differ():
    """Comparing models is the purpose; each side has its own best layer."""
    who = dict.fromkeys(("model", "adapters", "template", "layer", "seed", "isogloss"), "other")
    assert unlike(FIELDS, FIELDS | who) is None


def test_settings_that_change_a_score_are_signed():
    """Also a suite's own settings, but neither data paths nor batch sizes."""
    plain = Evaluate().model_dump(mode="json", exclude={"translation", "parallel"})
    assert settings_fields(plain) == {
        "max_new_tokens": "24", "xglue.skip_missing": "False",
        "xglue.tasks": "NER,POS,NC,MLQA,XNLI,PAWSX,QADSM,WPR,QAM,QG,NTG",
    }  # fmt: skip
    other = Evaluate(batch_size=1, max_new_tokens=9, xglue=Xglue(tasks=("NC",))).model_dump(mode="json")
    found = settings_fields(other)
    assert (found["max_new_tokens"], found["xglue.tasks"]) == ("9", "NC")


def test_changed_texts_change_the_hash_of_their_language_only():
    """A changed instruction, option wording or sentence leaves the other language's hash as it was."""
    options = {"en": {"y": "yes"}, "sw": {"y": "ndiyo"}}

    def hashes(sw="Habari", yes="ndiyo", sentence="Moja"):
        item = Item(
            "1", "t", {"en": Turn("Hi", "Yo"), "sw": Turn(sw)}, {"en": options["en"], "sw": {"y": yes}}, "y"
        )
        return data_hashes(SuiteData("own", "1", "dev", (item,), {"en": ("One",), "sw": (sentence,)}))

    first = hashes()
    assert set(first) == {"en", "sw"} and hashes() == first
    for change in ({"sw": "Hujambo"}, {"yes": "ndio"}, {"sentence": "Mbili"}):
        assert hashes(**change)["en"] == first["en"] and hashes(**change)["sw"] != first["sw"]
