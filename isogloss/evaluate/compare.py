"""Compare two runs, or two groups of runs, on the same items: difference, interval and p-value.

Flow: hits of both → differences per language and over languages → paired bootstrap → Holm over the languages.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from isogloss.errors import RunError
from isogloss.evaluate.estimates import by_id
from isogloss.evaluate.signature import fields_of, unlike
from isogloss.evaluate.statistics import Difference, differences, holm, paired_over_languages
from isogloss.files import read_json

MEASURES = ("alignment", "consistency", "retrieval", "accuracy", "fidelity")
HALVES = {"alignment": ("consistency", "retrieval")}
RESAMPLES = 10_000

Hits = Mapping[str, Mapping[str, Mapping[str, float]]]
"""By measure, language and item (or sentence); items for which a measure is undefined are absent."""


@dataclass(frozen=True)
class Compared:
    """One measure of one suite, A minus B, as fractions.

    Attributes:
        mean: Mean over the languages that both have; each item is resampled together with all its languages.
        languages: By language; p-values are corrected for the number of languages (Holm).
    """

    suite: str
    measure: str
    mean: Difference
    languages: Mapping[str, Difference]


def compare(a: Path, b: Path, *, seed: int = 0) -> list[Compared]:
    """Compare every measure that both runs have after training.

    Raises:
        RunError: The runs share no suite, or a shared suite was measured differently or on different items.
    """
    return compare_groups([a], [b], seed=seed)


def compare_groups(
    a: Sequence[Path],
    b: Sequence[Path],
    *,
    codes: Sequence[str] | None = None,
    measures: Mapping[str, Sequence[str]] | None = None,
    seed: int = 0,
) -> list[Compared]:
    """Compare two groups of runs that differ only in their seed.

    An item's value is its mean over the group's runs. The interval covers the choice of items, not of seeds.

    Args:
        codes: Languages to compare; defaults to all that both groups have.
        measures: By suite, the measures to compare; defaults to all of `MEASURES`.

    Raises:
        RunError: As `compare`.
    """
    ours = _suites(a[0])
    shared, judged = list(ours), dict.fromkeys(ours, True)
    for run in (*a[1:], *b):
        theirs = _suites(run)
        shared = [suite for suite in shared if suite in theirs]
        if not shared:
            raise RunError(
                f"{a[0]} and {run} have no suite in common; "
                f"they have {', '.join(ours)} and {', '.join(theirs)}"
            )
        for suite in shared:
            one, other = (fields_of(suites[suite]["signature"]) for suites in (ours, theirs))
            if (field := unlike(one, other)) is not None:
                one, other = (fields.get(field, "missing") for fields in (one, other))
                raise RunError(
                    f"{suite} was measured differently: {field} is {one} in {a[0]} and {other} in {run}; "
                    "evaluate both with the same settings"
                )
            # The languages that were measured are those that an answer can be identified as.
            judged[suite] &= ours[suite].get("languages") == theirs[suite].get("languages")
    found = []
    for suite in shared:
        read = [_read(run, suite) for run in (*a, *b)]
        for run, one in zip((*a, *b), read, strict=True):
            if one["items"] != read[0]["items"]:
                raise RunError(
                    f"{suite} has different items in {a[0]} and {run}; evaluate both with the same settings"
                )
            here, there = read[0].get("data", {}), one.get("data", {})
            if code := next((c for c in here if c in there and here[c] != there[c]), None):
                raise RunError(
                    f"{suite} has different {code} texts in {a[0]} and {run}; evaluate both on the same data"
                )
        hits = [_hits_of(one) for one in read]
        hits_a, hits_b = _mean_hits(hits[: len(a)], codes), _mean_hits(hits[len(a) :], codes)
        for measure in MEASURES if measures is None else measures.get(suite, ()):
            if measure == "fidelity" and not judged[suite]:
                continue
            if one := _measure(suite, measure, hits_a, hits_b, seed):
                found.append(one)
    return found


def _measure(suite: str, measure: str, a: Hits, b: Hits, seed: int) -> Compared | None:
    halves = HALVES.get(measure, (measure,))
    apart = {half: differences(a.get(half, {}), b.get(half, {})) for half in halves}
    codes = [code for code in apart[halves[0]] if all(apart[half].get(code) for half in halves)]
    if not codes:
        return None

    def over(*codes: str) -> Difference:
        tables = [{code: apart[half][code] for code in codes} for half in halves]
        return paired_over_languages(tables, seed=seed, resamples=RESAMPLES)

    each = {code: over(code) for code in codes}
    corrected = holm([one.p for one in each.values()])
    each = {code: replace(one, p=p) for (code, one), p in zip(each.items(), corrected, strict=True)}
    return Compared(suite, measure, over(*codes), each)


def _suites(run: Path) -> dict[str, dict[str, Any]]:
    """Read the suites of `scores.json`."""
    file = run / "scores.json"
    if not file.is_file():
        raise RunError(f"{run} has no scores.json; run `isogloss evaluate` first")
    return read_json(file, "suites", "remove it and run `isogloss evaluate` again")["suites"]


def _hits_of(read: Mapping[str, Any]) -> Hits:
    """Convert the content of a hits file to `Hits`."""
    return {
        measure: {
            code: by_id(hits, read["ids"].get(measure, {}).get(code)) for code, hits in by_language.items()
        }
        for measure, by_language in read["hits"].items()
    }


def _mean_hits(runs: Sequence[Hits], codes: Sequence[str] | None) -> Hits:
    """Average each item over the runs; items that any run lacks are left out."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for measure in runs[0]:
        for code in runs[0][measure]:
            each = [hits.get(measure, {}).get(code, {}) for hits in runs]
            ids = [id for id in each[0] if all(id in one for one in each)]
            if ids and (codes is None or code in codes):
                found.setdefault(measure, {})[code] = {id: fmean(one[id] for one in each) for id in ids}
    return found


def _read(run: Path, suite: str) -> dict[str, Any]:
    file = run / "predictions" / f"{suite}.after.hits.json"
    if not file.is_file():
        raise RunError(f"{file} is missing; run `isogloss evaluate` again")
    return read_json(file, "ids", "remove scores.json and run `isogloss evaluate` again")
