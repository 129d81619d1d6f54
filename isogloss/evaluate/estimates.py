"""Measures over languages as means with intervals, and how far they spread."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from isogloss.evaluate.metrics import spread
from isogloss.evaluate.statistics import (
    Estimate,
    bootstrap_alignment,
    bootstrap_apart,
    bootstrap_mean,
    bootstrap_over_languages,
    mean_over_languages,
)
from isogloss.languages import SOURCE


def retention(before: Sequence[bool], after: Sequence[bool], seed: int) -> dict[str, Any]:
    """English accuracy with the root on minus the reference model's, as a measure of scores.json."""
    change = [float(b) - float(a) for a, b in zip(before, after, strict=True)]
    estimate = bootstrap_mean(change, seed=seed)
    return measure_of(estimate, {SOURCE: estimate})


def spreads(scores: Mapping[str, Any]) -> dict[str, Any]:
    """Worst language and standard deviation over languages, per measure."""
    found = {}
    for name in ("alignment", "consistency", "retrieval", "accuracy", "fidelity"):
        if name in scores:
            one = spread({code: entry["value"] for code, entry in scores[name]["languages"].items()})
            found[name] = {"worst": [one.worst, one.lowest], "sd": one.deviation}
    return found


def estimates(values: Mapping[str, Mapping[str, Sequence[Any]]], seed: int) -> dict[str, Any]:
    """By measure, its mean over languages and each language's own, with intervals."""
    known = {
        name: {
            code: told for code, hits in by_language.items() if (told := [h for h in hits if h is not None])
        }
        for name, by_language in values.items()
    }
    scores: dict[str, Any] = {}
    for name, by_language in known.items():
        if by_language:
            each = {code: bootstrap_mean(hits, seed=seed) for code, hits in by_language.items()}
            apart = any(len(hits) != len(values[name][code]) for code, hits in by_language.items())
            scores[name] = measure_of(mean_of(by_language, seed, apart=apart), each)
    consistency, retrieval = known.get("consistency", {}), known.get("retrieval", {})
    shared = [code for code in consistency if code in retrieval]
    if shared:
        each = {code: bootstrap_alignment(consistency[code], retrieval[code], seed=seed) for code in shared}
        sides = [{code: values[code] for code in shared} for values in (consistency, retrieval)]
        if all(len({len(hits) for hits in side.values()}) == 1 for side in sides):
            mean = bootstrap_alignment(*map(mean_over_languages, sides), seed=seed)
        else:
            mean = bootstrap_apart([hits for side in sides for hits in side.values()], seed=seed)
        scores["alignment"] = measure_of(mean, each)
    return scores


def mean_of(
    by_language: Mapping[str, Sequence[float] | Sequence[bool]], seed: int, *, apart: bool
) -> Estimate:
    """Over languages: drawn jointly where all have the same items, else each by itself."""
    if not apart and len({len(hits) for hits in by_language.values()}) == 1:
        return bootstrap_over_languages(by_language, seed=seed)
    return bootstrap_apart(list(by_language.values()), seed=seed)


def measure_of(mean: Estimate, each: Mapping[str, Estimate]) -> dict[str, Any]:
    """A measure as `scores.json` holds it."""
    return {
        "mean": mean.value,
        "low": mean.low,
        "high": mean.high,
        "languages": {code: asdict(estimate) for code, estimate in each.items()},
    }
