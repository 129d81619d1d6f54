"""Division of a dev set: no example is both used for training and reported."""

import os
from pathlib import Path

import pytest

from isogloss.config import load_config
from isogloss.data.division import components, is_learned
from isogloss.data.tasks import mlqa, pawsx, xnli
from isogloss.evaluate.suites import load_suite
from isogloss.pipeline import checks, folder

ROOT = Path(os.environ.get("ISOGLOSS_DATA", Path(__file__).parents[3] / "shared" / "data"))
needs_data = pytest.mark.skipif(not (ROOT / "massive").is_dir(), reason="no data root: set ISOGLOSS_DATA")


def test_rows_linked_through_other_rows_are_one_group():
    """Rows 1 and 3 have only row 2 in common; the smallest sentence names the group."""
    linked = {"1": ("b", "c"), "2": ("C!", "d"), "3": ("d", "e"), "4": ("x", "y")}
    assert components(linked) == {"1": "b", "2": "b", "3": "b", "4": "x"}
    assert components(dict(reversed(linked.items()))) == components(linked)
    assert components({"1": ("b",), "2": ("x",)}, {"1": ("title",), "2": ("title",)}) == {"1": "b", "2": "b"}


def test_near_copies_are_one_group():
    """The same words in another order, or six words in a row, link two rows; five words do not."""
    near = {
        "1": ["He won the cup in Lima after Ana left."],
        "2": ["After Ana left he won, in Lima, the cup."],
        "3": ["Yesterday he won the cup in Lima."],
        "4": ["The cup in Lima after Eva left"],
    }
    groups = components(near)
    assert groups["1"] == groups["2"] == groups["3"] != groups["4"]


def test_the_division_is_a_hash_of_the_group():
    """About three fifths are learned, and always the same, so that two releases can be compared."""
    groups = [f"premise {n}" for n in range(1000)]
    assert 560 < sum(is_learned("XNLI", group) for group in groups) < 640
    assert [is_learned("XNLI", f"premise {n}") for n in range(8)] == EIGHT
    assert [is_learned("PAWS-X", group) for group in groups] != [is_learned("XNLI", g) for g in groups]


EIGHT = [False, True, True, True, True, False, False, False]


def test_all_rows_of_a_premise_are_on_one_side():
    """Whitespace is ignored."""
    divided = xnli.division(
        {str(n): f"He  ate {n // 3}." if n % 2 else f"He ate {n // 3}." for n in range(60)}
    )
    sides = [{divided.learned(str(n)) for n in range(k, k + 3)} for k in range(0, 60, 3)]
    assert all(len(side) == 1 for side in sides) and {True, False} == set().union(*sides)
    assert not divided.learned("unknown")
    plain = divided.plain()
    assert sorted(plain["learned"] + plain["reported"], key=int) == [str(n) for n in range(60)]


def test_pairs_that_share_sentences_are_on_one_side():
    """A paraphrase of a paraphrase is on the same side as the first."""
    pairs = {str(n): (f"s{n // 4 * 4 + n % 4}", f"s{n // 4 * 4 + (n + 1) % 4}") for n in range(80)}
    divided = pawsx.division(pairs)
    assert len(set(divided.groups.values())) == 20
    assert all(len({divided.learned(str(n)) for n in range(k, k + 4)}) == 1 for k in range(0, 80, 4))


@pytest.mark.data
@needs_data
def test_nothing_that_is_learned_is_reported():
    """The leak check finds nothing, over all divided sets and those whose texts they share."""
    config = load_config(
        None,
        [
            "data=[{type: xnli}, {type: pawsx}, {type: mlqa, max_chars: 20000}, {type: sib200}]",
            "languages.targets=[es, zh]", "distill.responses=teacher", "evaluate.split=dev",
            "evaluate.items=5000", "evaluate.sentences=997",
            "evaluate.suites=[xnli, pawsx, mlqa, sib200, flores101]",
        ],
        data_root=ROOT,
    )  # fmt: skip
    run = folder.Run(config, folder.ProgressReporter())
    assert checks.leaks(run) == []


@pytest.mark.data
@needs_data
def test_suites_and_sources_have_different_ids():
    """About 40 % of every divided set are reported, and no reported ID is used for training."""
    config = load_config(None, ["evaluate.split=dev"], data_root=ROOT)
    english = {
        "xnli": {e.id.partition("-")[2] for e in xnli.examples(ROOT, [], all_labels=False)},
        "pawsx": {e.id.partition("-")[2] for e in pawsx.examples(ROOT, [], all_labels=False)},
        "mlqa": {e.id.partition("-")[2] for e in mlqa.examples(ROOT, [], all_labels=False, most=10**6)},
    }
    for name, learned in english.items():
        # The choice of Spanish does not affect which English items are reported.
        suite = load_suite(name, ROOT, config.evaluate, ["es"], 10**6, 0)
        reported = {item.id for item in suite.items}
        assert not learned & reported and suite.split.startswith("dev (40 % by ")
        assert 0.3 < len(reported) / (len(learned) + len(reported)) < 0.5 or name == "mlqa"
