"""Tasks: which are mastered, and means that weigh every task equally, worked out by hand."""

import numpy as np
import pytest

from isogloss.evaluate.statistics import over_tasks, resampled_means
from isogloss.evaluate.tasks import (
    SuiteHits,
    corrected_for_chance,
    mastery,
    over_language_tasks,
    suite_means,
    summary,
)


def hits(**by_language):
    """Return hits by language and item from strings such as "1101"."""
    return {c: {str(n): float(x) for n, x in enumerate(row)} for c, row in by_language.items()}


@pytest.mark.parametrize(
    ("answers", "right", "mastered"),
    [
        ("aabbc", "11110", True),  # 80 % right, the commonest 40 %
        ("aabbc", "11100", False),  # 60 %
        ("aaabb", "11111", True),  # 60 % is allowed
        ("aaaab", "11111", False),  # all right, but nearly always the same answer
    ],
)
def test_mastered_means_right_in_english_and_not_one_answer_for_all(answers, right, mastered):
    """At least 80 % right, and no answer above 60 %."""
    found = mastery(list(answers), [one == "1" for one in right])
    assert found.mastered is mastered
    assert found.accuracy == right.count("1") / 5
    assert found.commonest == max(map(answers.count, answers)) / 5


def test_a_task_without_gold_answers_is_not_mastered():
    """Its accuracy is None."""
    found = mastery(["a", "b"], [None, None], [True, False, True, True])
    assert (found.accuracy, found.mastered, found.rephrased) == (None, False, 0.75)
    assert found.plain() == {
        "items": 2, "accuracy": None, "commonest": 0.5, "rephrased": 0.75, "mastered": False,
    }  # fmt: skip


CONSISTENCY = {
    "easy": hits(sw="1110", ur="1111"),  # ¾ and 1
    "hard": hits(sw="10", ur="00"),  # ½ and 0
}
RETRIEVAL = hits(sw="1100", ur="1111")  # ½ and 1


def test_tasks_have_equal_weight_however_many_items_they_have():
    """All: Swahili (¾ + ½)/2, Urdu (1 + 0)/2; over items both would be 4/6."""
    found = suite_means(CONSISTENCY, RETRIEVAL, ["easy"], seed=0)
    values = {
        name: (one["mean"], {code: each["value"] for code, each in one["languages"].items()})
        for name, one in found.items()
    }
    assert values == {
        "consistency_mastered": (0.875, {"sw": 0.75, "ur": 1.0}),
        "alignment_mastered": (0.8125, {"sw": 0.625, "ur": 1.0}),
        "consistency_all": (0.5625, {"sw": 0.625, "ur": 0.5}),
        "alignment_all": (0.65625, {"sw": 0.5625, "ur": 0.75}),
    }
    assert all(one["low"] <= one["mean"] <= one["high"] for one in found.values())


def test_without_a_mastered_task_there_is_no_mean_over_mastered_tasks():
    """Neither for consistency nor for alignment; without sentences there is no alignment at all."""
    assert set(suite_means(CONSISTENCY, RETRIEVAL, [], seed=0)) == {"consistency_all", "alignment_all"}
    assert set(suite_means(CONSISTENCY, {}, ["hard"], seed=0)) == {"consistency_mastered", "consistency_all"}
    assert suite_means({}, RETRIEVAL, [], seed=0) == {}


def test_a_language_without_a_task_has_the_mean_of_its_others():
    """Urdu has only the first task; Hindi has no sentences and is left out of alignment."""
    tasks = {"a": hits(sw="10", ur="11", hi="00"), "b": hits(sw="00")}
    found = suite_means(tasks, hits(sw="11", ur="00"), [], seed=0)
    each = {code: one["value"] for code, one in found["consistency_all"]["languages"].items()}
    assert each == {"sw": 0.25, "ur": 1.0, "hi": 0.0}
    assert set(found["alignment_all"]["languages"]) == {"sw", "ur"}


def test_items_are_drawn_with_all_their_languages():
    """Two languages are right on complementary items: their mean is ½ in every resample."""
    found = over_tasks([[resampled_means(hits(sw="110010", ur="001101"), np.random.default_rng(0))]])
    assert (found[""].value, found[""].low, found[""].high) == (0.5, 0.5, 0.5)
    assert found["sw"].low < 0.5 < found["sw"].high


def test_the_interval_is_that_of_the_plain_bootstrap():
    """One task and language: the binomial standard error is √(0.2 · 0.8 / 400) = 0.02."""
    table = hits(sw="1" * 320 + "0" * 80)
    found = over_tasks([[resampled_means(table, np.random.default_rng(0), 4000)]])["sw"]
    assert found.value == 0.8
    assert found.low == pytest.approx(0.8 - 1.96 * 0.02, abs=0.004)
    assert found.high == pytest.approx(0.8 + 1.96 * 0.02, abs=0.004)


def test_chance_is_corrected_for_by_task_and_language():
    """Observed ¾ with chance ½: κ = ½; one answer for everything: 0."""
    english = ("a", "a", "b", "b")
    found = corrected_for_chance(
        {"t": {"sw": list(zip(english, "aaab", strict=True)), "ur": list(zip(english, "aaaa", strict=True))}}
    )
    assert found == {"t": {"sw": 0.5, "ur": 0.0}}
    assert over_language_tasks(found) == {
        "mean": 0.25, "languages": {"sw": {"value": 0.5}, "ur": {"value": 0.0}},
    }  # fmt: skip
    assert over_language_tasks({}) == {}


def test_a_run_is_summarised_over_all_its_suites():
    """Three tasks of two suites, and sentences of a third; Swahili is low-resource, Spanish is not."""
    before = {
        "one": SuiteHits(
            {
                "consistency": {"x": hits(sw="0000", es="1100"), "y": hits(sw="0000", es="0000")},
                "accuracy": {"x": hits(en="1110", sw="0000"), "y": hits(en="1111")},
                "fidelity": {"x": hits(sw="11", es="11")},
            },
            {}, {},
        ),
        "two": SuiteHits({"consistency": {"x": hits(sw="0000", es="0000")}}, {}, {}),
        "lines": SuiteHits({}, hits(sw="10", es="11"), hits(sw="00", es="10")),
    }  # fmt: skip
    after = {
        "one": SuiteHits(
            {
                "consistency": {"x": hits(sw="1110", es="1111"), "y": hits(sw="1100", es="1100")},
                "accuracy": {"x": hits(en="1111", sw="1111"), "y": hits(en="1011")},
                "fidelity": {"x": hits(sw="10", es="11")},
            },
            {}, {},
        ),
        "two": SuiteHits({"consistency": {"x": hits(sw="1000", es="1111")}}, {}, {}),
        "lines": SuiteHits({}, hits(sw="11", es="11"), hits(sw="10", es="10")),
    }  # fmt: skip
    found = summary(before, after, {"one/x"}, low=["sw"], seed=0)
    assert (found["mastered"], found["tasks"]) == (["one/x"], ["one/x", "one/y", "two/x"])
    assert found["low"] == ["sw"]
    assert {name: one["mean"] for name, one in found["after"].items()} == {
        "consistency_mastered": 0.875,  # Swahili ¾, Spanish 1
        "alignment_mastered": 0.9375,
        "consistency_all": pytest.approx(2 / 3),  # Swahili (¾ + ½ + ¼)/3, Spanish (1 + ½ + 1)/3
        "alignment_all": pytest.approx(5 / 6),
        "retrieval": 1.0,
        "retrieval_raw": 0.5,
        "fidelity": 0.75,
        "alignment_low": 0.75,  # Swahili: (½ + 1)/2
        "alignment_low_mastered": 0.875,
        "retention": 0.0,  # +¼ and -¼
        "consistency_gain": 0.625,  # Swahili +¾, Spanish +½
    }
    assert found["before"]["consistency_all"]["mean"] == pytest.approx(1 / 12)  # Spanish ½, 0, 0
    assert found["after"]["retention"]["languages"].keys() == {"en"}
    assert found["after"]["alignment_low"]["languages"].keys() == {"sw"}
