"""The suites: what they ask, in which language an answer is due, and what they never read."""

import os
from pathlib import Path

import pytest

from isogloss.data.tasks import massive as tasks
from isogloss.errors import DataError
from isogloss.evaluate.suites import SUITES

ROOT = Path(os.environ.get("ISOGLOSS_DATA", Path(__file__).parents[3] / "shared" / "data"))
needs_data = pytest.mark.skipif(not (ROOT / "massive").is_dir(), reason="no data root: set ISOGLOSS_DATA")


@pytest.mark.parametrize("name", ["massive", "flores101", "xnli"])
def test_a_suite_of_real_data_says_that_it_needs_a_data_root(name):
    """Without a data root the message names the setting."""
    with pytest.raises(
        DataError, match=f"the {name} suite needs a data root; set data_root or ISOGLOSS_DATA"
    ):
        SUITES[name](None, "dev", ["sw"], 10, 10)


@pytest.mark.data
@needs_data
def test_massive_asks_about_intents_and_scenarios_in_turn():
    """Items are parallel by id; labels are English in every language; Bulgarian is not there."""
    suite = SUITES["massive"](ROOT, "dev", ["sw", "bg"], 20, 0)
    assert {item.task for item in suite.items} == {"intent", "scenario"}
    item = suite.items[0]
    assert set(item.turns) == {"en", "sw"} and item.answer_language == {"en": "en", "sw": "en"}
    assert item.turns["sw"].response == item.turns["en"].response == item.options["sw"][item.gold]


@pytest.mark.data
@needs_data
def test_training_examples_of_massive_hold_no_label_outside_english():
    """A target language's labels are never read: its responses are for the teacher to write."""
    examples = tasks.examples(ROOT, ["sw", "ur"], ["intent", "scenario", "slot"])
    assert all(turn.response is None for e in examples for code, turn in e.turns.items() if code != "en")
    assert all(e.turns["en"].response for e in examples)
    assert {e.task for e in examples[:6]} == {"intent", "scenario", "slot"}
    assert all(set(e.turns) == {"en"} for e in examples if e.task == "slot")


@pytest.mark.data
@needs_data
def test_flores_reports_no_sentence_on_which_its_layer_was_chosen():
    """The first 200 dev lines choose the layer, the others are reported."""
    suite = SUITES["flores101"](ROOT, "dev", ["sw", "bg"], 0, 900)
    assert {code: len(lines) for code, lines in suite.sentences.items()} == {"en": 797, "sw": 797, "bg": 797}
    assert not set(suite.sentences["en"]) & set(suite.layer_sentences["en"])


@pytest.mark.data
@needs_data
def test_xnli_is_asked_and_answered_in_the_language():
    """Premise, hypothesis and label word are all in Swahili."""
    suite = SUITES["xnli"](ROOT, "dev", ["sw"], 30, 0)
    item = next(item for item in suite.items if item.gold == "entailment")
    assert item.options["sw"] == {"entailment": "ndiyo", "neutral": "labda", "contradiction": "hapana"}
    assert item.turns["sw"].response == "ndiyo"
