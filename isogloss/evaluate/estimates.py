"""Means of the measures over languages with intervals, and their spread over languages."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from isogloss.evaluate.metrics import spread
from isogloss.evaluate.statistics import (
    Estimate,
    bootstrap_mean,
    over_tasks,
    resampled_means,
)
from isogloss.languages import SOURCE


def retention(before: Sequence[bool], after: Sequence[bool], seed: int) -> dict[str, Any]:
    """English accuracy with the root adapter minus the reference model's, as a measure of scores.json."""
    change = [float(b) - float(a) for a, b in zip(before, after, strict=True)]
    estimate = bootstrap_mean(change, seed=seed)
    return measure_of(estimate, {SOURCE: estimate})


def spreads(scores: Mapping[str, Any]) -> dict[str, Any]:
    """Return the worst language and the standard deviation over languages, per measure."""
    found = {}
    for name in ("alignment", "consistency", "retrieval", "accuracy", "fidelity"):
        if name in scores:
            values = {code: entry["value"] for code, entry in scores[name]["languages"].items()}
            worst, lowest, deviation = spread(values)
            found[name] = {"worst": [worst, lowest], "sd": deviation}
    return found


def estimates(
    values: Mapping[str, Mapping[str, Sequence[Any]]],
    ids: Mapping[str, Mapping[str, Sequence[str]]],
    seed: int,
) -> dict[str, Any]:
    """Return each measure's mean over languages and its value per language, with intervals.

    Args:
        values: By measure and language, one hit per item; None where the measure is undefined.
        ids: By measure and language, the item ID of each hit; without IDs (sentences) the index is used.
    """
    known = {
        name: {
            code: found
            for code, hits in by_language.items()
            if (found := by_id(hits, ids.get(name, {}).get(code)))
        }
        for name, by_language in values.items()
    }
    scores = {name: _measure([hits], seed) for name, hits in known.items() if hits}
    halves = [known.get("consistency", {}), known.get("retrieval", {})]
    if shared := [code for code in halves[0] if code in halves[1]]:
        halves = [{code: half[code] for code in shared} for half in halves]
        scores["alignment"] = _measure(halves, seed)
    return scores


def _measure(halves: Sequence[Mapping[str, Mapping[str, float]]], seed: int) -> dict[str, Any]:
    """Return the mean over halves with the same languages, as a measure of scores.json."""
    each = {
        code: bootstrap_mean(*(list(half[code].values()) for half in halves), seed=seed) for code in halves[0]
    }
    rng = np.random.default_rng(seed)
    return measure_of(over_tasks([[resampled_means(half, rng)] for half in halves])[""], each)


def by_id(hits: Sequence[Any], ids: Sequence[str] | None) -> dict[str, float]:
    """Return the hits that are not None by item ID, or by index if `ids` is None."""
    named = map(str, range(len(hits))) if ids is None else ids
    return {id: float(hit) for id, hit in zip(named, hits, strict=True) if hit is not None}


def measure_of(mean: Estimate, each: Mapping[str, Estimate]) -> dict[str, Any]:
    """Format a measure for `scores.json`."""
    return {
        "mean": mean.value,
        "low": mean.low,
        "high": mean.high,
        "languages": {code: asdict(estimate) for code, estimate in each.items()},
    }
