"""Statistics: intervals worked out by hand and compared with scipy; p-values by hand."""

import numpy as np
import pytest
from scipy import stats

from isogloss.evaluate.statistics import (
    Difference,
    Estimate,
    bootstrap_mean,
    holm,
    over_tasks,
    paired_over_languages,
    resampled_means,
)

HALVES = [0.0, 1.0]  # resampled means: 0 (¼), ½ (½), 1 (¼)


def test_two_items_give_the_interval_worked_out_by_hand():
    """The outer quarters are 0 and 1."""
    assert bootstrap_mean(HALVES, seed=0) == Estimate(0.5, 0.0, 1.0, 2)


def test_equal_items_have_an_interval_of_width_zero():
    """Every resample of ones is one; booleans count as numbers."""
    assert bootstrap_mean([True, True, True], seed=3) == Estimate(1.0, 1.0, 1.0, 3)


def test_the_interval_agrees_with_scipy():
    """Same method, other draws: both bounds are within the noise of 1,000 resamples."""
    values = np.random.default_rng(1).random(80).tolist()
    ours = bootstrap_mean(values, seed=0)
    theirs = stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, confidence_level=0.95, method="percentile", rng=5
    ).confidence_interval
    assert ours.low == pytest.approx(theirs.low, abs=8e-3)
    assert ours.high == pytest.approx(theirs.high, abs=8e-3)


def test_the_interval_depends_only_on_the_seed():
    values = [0.13, 0.58, 0.71, 0.22, 0.94, 0.37, 0.05, 0.66, 0.49]
    assert bootstrap_mean(values, seed=7) == bootstrap_mean(values, seed=7)
    assert bootstrap_mean(values, seed=7) != bootstrap_mean(values, seed=8)


def test_many_items_are_drawn_in_blocks():
    """There are more indices than fit a block: the interval is still mean ± 1.96 standard errors."""
    values = [0.0, 1.0] * 5000
    found = bootstrap_mean(values, seed=0)
    assert found.low == pytest.approx(0.5 - 1.96 * 0.005, abs=1e-3)
    assert found.high == pytest.approx(0.5 + 1.96 * 0.005, abs=1e-3)


def test_alignment_resamples_each_side_by_itself():
    """Consistency is always 1 and retrieval 0 to 1: ½ to 1 around ¾."""
    assert bootstrap_mean([1.0, 1.0, 1.0], HALVES, seed=0) == Estimate(0.75, 0.5, 1.0, 2)


def test_alignment_sides_are_independent():
    """The mean of two independent sides is √2 times as certain as either."""
    one, both = (
        found.high - found.low
        for found in (
            bootstrap_mean(HALVES * 50, seed=0),
            bootstrap_mean(HALVES * 50, HALVES * 50, seed=0),
        )
    )
    assert both == pytest.approx(one / 2**0.5, rel=0.15)


def paired(a, b, **how) -> Difference:
    """Compare two systems in one language."""
    apart = {str(n): x - y for n, (x, y) in enumerate(zip(a, b, strict=True))}
    return paired_over_languages([{"sw": apart}], **how)


def test_a_difference_that_never_varies_has_the_smallest_p():
    """No resample of four equal differences is as extreme: (0 + 1) / (1000 + 1)."""
    found = paired([1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0], seed=0)
    assert found == Difference(1.0, 1.0, 1.0, 4, 1 / 1001)


def test_no_difference_has_p_one():
    """A system compared with itself."""
    assert paired([1.0, 0.0], [1.0, 0.0], seed=0) == Difference(0.0, 0.0, 0.0, 2, 1.0)


def test_two_sided_p_matches_enumeration():
    """Differences 1 and 0, mean ½: of the shifted means -½ (¼), 0 (½), ½ (¼) half are as extreme."""
    found = paired([1.0, 1.0], [0.0, 1.0], seed=0, resamples=20_000)
    assert (found.value, found.low, found.high) == (0.5, 0.0, 1.0)
    assert found.p == pytest.approx(0.5, abs=0.015)


def test_the_sign_shows_which_system_is_better():
    """Swapping the systems negates the interval and keeps p."""
    a, b = [1.0, 1.0, 0.0, 1.0, 1.0], [0.0, 1.0, 1.0, 0.0, 0.0]
    one, other = paired(a, b, seed=0), paired(b, a, seed=0)
    assert (one.value, one.p) == (-other.value, other.p)
    assert one.low == pytest.approx(-other.high)


def test_a_language_without_an_item_is_refused():
    with pytest.raises(ValueError, match=r"^nothing to compare; give at least one item per language"):
        paired_over_languages([{"sw": {"1": 1.0}, "ur": {}}], seed=0)


def test_holm_matches_a_table_worked_out_by_hand():
    """Sorted: .005×4, .01×3, .03×2, then .04×1, raised to the one before it."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


def test_holm_refuses_numbers_that_are_no_probabilities():
    """The message names the number."""
    with pytest.raises(ValueError, match=r"^p-value 1 is 1.5; it must lie within 0 and 1$"):
        holm([0.5, 1.5])


@pytest.mark.parametrize("values", [[], [0.5, float("nan")]])
def test_no_items_or_nan_are_refused(values):
    """There would be no interval."""
    with pytest.raises(
        ValueError, match=r"^an interval needs at least one item, and a finite number for each$"
    ):
        bootstrap_mean(values, seed=0)


def test_a_missing_item_in_one_language_does_not_narrow_the_interval():
    """Twelve languages that are right on the same 60 items are as uncertain as one."""
    rng = np.random.default_rng(2)
    row = {str(n): float(rng.random() < 0.7) for n in range(60)}
    table = {f"l{n}": row for n in range(12)}
    fewer = table | {"l3": {id: value for id, value in row.items() if id != "0"}}
    widths = []
    for one in (table, fewer):
        found = over_tasks([[resampled_means(one, np.random.default_rng(0))]])[""]
        widths.append(found.high - found.low)
    assert widths[1] == pytest.approx(widths[0], rel=0.1) and widths[0] > 0.2


def test_equal_models_rarely_differ_significantly():
    """40 pairs of equal models, over languages that share their items except for one item of one language."""
    rng, found = np.random.default_rng(3), 0
    for _ in range(40):
        apart = rng.choice([-1.0, 0.0, 1.0], size=40, p=[0.2, 0.6, 0.2])
        row = {str(n): value for n, value in enumerate(apart)}
        table = {f"l{n}": row for n in range(8)} | {"l8": {id: row[id] for id in list(row)[1:]}}
        found += paired_over_languages([table], seed=0).p < 0.05
    assert found <= 6


def test_a_resample_that_lacks_a_language_is_left_out():
    """A language has one item of ten: its mean is 0 in every resample that contains it."""
    row = {str(n): 1.0 for n in range(10)}
    found = over_tasks([[resampled_means({"sw": row, "ur": {"3": 0.0}}, np.random.default_rng(0))]])
    assert (found[""].value, found[""].low, found[""].high) == (0.5, 0.5, 0.5)
    assert (found["ur"].low, found["ur"].high) == (0.0, 0.0)
