"""Statistics: uncertainty of a number with respect to the choice of items.

Percentile bootstrap over items, and paired tests with multiple-comparison correction. The same seed gives the
same interval. Independent of the metric: takes one value per item.
"""

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

LEVEL: Final = 0.95
"""Probability that an interval covers."""
RESAMPLES: Final = 1000
"""Default number of resamples."""
_BLOCK: Final = 1 << 21  # indices drawn at a time: 16 MiB

Values = Sequence[float | int]  # bool is an int


@dataclass(frozen=True)
class Estimate:
    """A mean over n items and the bounds of its interval."""

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Difference(Estimate):
    """A paired mean difference with the two-sided p-value of the null hypothesis of no difference."""

    p: float


def bootstrap_mean(*halves: Values, seed: int) -> Estimate:
    """Return the mean over items, or over several such means, and its percentile interval (Efron 1979).

    Alignment is the mean of two: consistency and retrieval have different items, so each is resampled
    separately. `n` is the smallest number of items.

    Raises:
        ValueError: There are no values, or a value is not finite.
    """
    items, rng = [_array(half) for half in halves], np.random.default_rng(seed)
    means = np.mean([_resampled_means(half, rng) for half in items], axis=0)
    return _estimate(float(np.mean([half.mean() for half in items])), means, min(map(len, items)))


Resampled = Mapping[str, tuple[float, NDArray[np.float64]]]
"""By language, a statistic of one task: its observed value, and its value in every resample."""


def resampled_means(
    table: Mapping[str, Mapping[str, float]], rng: np.random.Generator, resamples: int = RESAMPLES
) -> Resampled:
    """Return resampled means over items; an item is drawn together with all languages that have it.

    Args:
        table: Values by language and item ID; languages may have different items.
    """
    ids = list(dict.fromkeys(id for row in table.values() for id in row))
    values = np.array([[row.get(id, 0.0) for row in table.values()] for id in ids], dtype=np.float64)
    there = np.array([[float(id in row) for row in table.values()] for id in ids])
    rows, chance, means = max(1, _BLOCK // len(ids)), np.full(len(ids), 1 / len(ids)), []
    for start in range(0, resamples, rows):
        draws = rng.multinomial(len(ids), chance, size=min(rows, resamples - start)).astype(np.float64)
        with np.errstate(invalid="ignore"):  # nan if a resample has no item of a language
            means.append((draws @ values) / (draws @ there))
    seen, drawn = values.sum(0) / there.sum(0), np.concatenate(means)
    return {code: (float(seen[n]), drawn[:, n]) for n, code in enumerate(table)}


def over_tasks(halves: Sequence[Sequence[Resampled]]) -> dict[str, Estimate]:
    """Return, per language, the mean over equally weighted tasks, then over halves.

    The mean over languages has the key `""`. A single half gives a plain mean over tasks; alignment has two
    halves, the tasks and the sentences. Tasks that a language lacks are left out of its mean; languages that
    are missing from one half are left out entirely. Resamples without an item of a task or language are
    left out of the intervals that depend on it. `n` is the number of a language's tasks, summed over halves;
    for the mean over languages, the largest of these. Empty if no language is left.
    """
    codes = [
        code
        for code in dict.fromkeys(code for half in halves for one in half for code in one)
        if all(any(code in one for one in half) for half in halves)
    ]
    if not codes:
        return {}
    found, resampled = {}, []
    for code in codes:
        tasks = [[one[code] for one in half if code in one] for half in halves]
        seen = float(np.mean([np.mean([value for value, _ in half]) for half in tasks]))
        draws = np.mean([np.mean([draw for _, draw in half], axis=0) for half in tasks], axis=0)
        resampled.append((seen, draws))
        found[code] = _estimate(seen, _whole(draws, seen), sum(map(len, tasks)))
    mean = float(np.mean([seen for seen, _ in resampled]))
    draws = np.mean([draw for _, draw in resampled], axis=0)
    return {
        "": _estimate(mean, _whole(draws, mean), max(one.n for one in found.values())),
        **found,
    }


def _whole(draws: NDArray[np.float64], seen: float) -> NDArray[np.float64]:
    """Drop the resamples that are nan; if all are, return the observed value alone."""
    known = draws[np.isfinite(draws)]
    return known if known.size else np.array([seen])


def paired_over_languages(
    halves: Sequence[Mapping[str, Mapping[str, float]]],
    *,
    seed: int,
    resamples: int = RESAMPLES,
) -> Difference:
    """Return the mean of a − b over languages and halves, its interval and two-sided p-value.

    An item is drawn together with all languages that have it, so the interval respects their correlation. The
    p-value is the share of resamples, shifted to centre on 0, that are at least as far from 0 as the observed
    value. The observed value counts as a resample, so p is never 0 (Davison and Hinkley 1997, section 4.4).

    Args:
        halves: Differences by language and item ID, for measures with different items, such as the two of
            alignment; each half is resampled separately.

    Returns:
        The difference; `n` is the smallest number of items of a half.

    Raises:
        ValueError: There is no half, or a half or language is empty.
    """
    if not halves or not all(table and all(table.values()) for table in halves):
        raise ValueError("nothing to compare; give at least one item per language")
    rng = np.random.default_rng(seed)
    found = [resampled_means(table, rng, resamples).values() for table in halves]
    seen = float(np.mean([np.mean([value for value, _ in half]) for half in found]))
    means = np.mean([np.mean([draw for _, draw in half], axis=0) for half in found], axis=0)
    items = min(len(set().union(*table.values())) for table in halves)
    means = _whole(means, seen)
    far = int((np.abs(means - seen) >= abs(seen) - 1e-12).sum())  # 1e-12: rounding error of the mean
    return Difference(*astuple(_estimate(seen, means, items)), p=(far + 1) / (len(means) + 1))


def differences(
    a: Mapping[str, Mapping[str, float]], b: Mapping[str, Mapping[str, float]]
) -> dict[str, dict[str, float]]:
    """Return, by language and item, the value in a minus that in b, where there are both."""
    return {
        code: {id: value - b[code][id] for id, value in row.items() if id in b[code]}
        for code, row in a.items()
        if code in b
    }


def holm(pvalues: Sequence[float]) -> list[float]:
    """Return the p-values in their original order, corrected for multiple comparisons (Holm 1979).

    Raises:
        ValueError: A p-value is not between 0 and 1.
    """
    corrected, largest = [0.0] * len(pvalues), 0.0
    for rank, index in enumerate(sorted(range(len(pvalues)), key=pvalues.__getitem__)):
        p = pvalues[index]
        if not 0 <= p <= 1:
            raise ValueError(f"p-value {index} is {p}; it must lie within 0 and 1")
        largest = max(largest, (len(pvalues) - rank) * p)
        corrected[index] = min(largest, 1.0)
    return corrected


def _array(values: Values) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not array.size or not np.isfinite(array).all():
        raise ValueError("an interval needs at least one item, and a finite number for each")
    return array


def _resampled_means(items: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    rows = max(1, _BLOCK // len(items))
    sizes = [min(rows, RESAMPLES - start) for start in range(0, RESAMPLES, rows)]
    return np.concatenate([items[rng.integers(len(items), size=(m, len(items)))].mean(1) for m in sizes])


def _estimate(value: float, means: NDArray[np.float64], n: int) -> Estimate:
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(float(value), float(low), float(high), n)
