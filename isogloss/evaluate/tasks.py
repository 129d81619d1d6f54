"""Tasks: which ones the reference model masters in English, and means over equally weighted tasks.

A mean over items is dominated by the largest task, and a mean over tasks that the model cannot do says
nothing about a method. Model-independent: takes hits by task, language and item, of one suite or of several.
Flow: hits → mastery (English only) → means over mastered tasks and over all → summary of a run.
"""

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any, Final

import numpy as np

from isogloss.evaluate.estimates import measure_of
from isogloss.evaluate.metrics import agreement, beyond_chance, chance_agreement
from isogloss.evaluate.statistics import Estimate, Resampled, differences, over_tasks, resampled_means
from isogloss.languages import SOURCE

MASTERED_ACCURACY: Final = 0.8
"""Minimum English accuracy of a mastered task."""
MASTERED_COMMONEST: Final = 0.6
"""Maximum share of the commonest answer; above it, accuracy may come from class imbalance alone."""

Hits = Mapping[str, Mapping[str, float]]
"""By language and item ID, the item's score from 0 to 1."""
TaskHits = Mapping[str, Mapping[str, Hits]]
"""By measure (consistency, accuracy, fidelity) and task."""


@dataclass(frozen=True)
class Mastery:
    """How well the reference model masters a task in English.

    Attributes:
        accuracy: Share of right answers; None if no gold is known.
        commonest: Share of the commonest answer.
        rephrased: Self-agreement when the English instruction is rephrased: the noise that exists without
            any other language. None if the data has no paraphrases.
    """

    items: int
    accuracy: float | None
    commonest: float
    rephrased: float | None = None

    @property
    def mastered(self) -> bool:
        return (
            self.accuracy is not None
            and self.accuracy >= MASTERED_ACCURACY
            and self.commonest <= MASTERED_COMMONEST
        )

    def plain(self) -> dict[str, Any]:
        """Return a JSON-serialisable dict."""
        return asdict(self) | {"mastered": self.mastered}


def mastery(answers: Sequence[str], right: Sequence[bool | None], rephrased: Sequence[bool] = ()) -> Mastery:
    """Compute mastery from one task's English answers.

    Args:
        answers: The meaning of each answer, or its wording if it has none. At least one.
        right: Whether each is right; None if its gold is unknown.
        rephrased: For each paraphrased instruction, whether its answer agrees with that to the original.
    """
    known = [hit for hit in right if hit is not None]
    return Mastery(
        len(answers),
        sum(known) / len(known) if known else None,
        max(Counter(answers).values()) / len(answers),
        sum(rephrased) / len(rephrased) if rephrased else None,
    )


def measure(estimates: Mapping[str, Estimate]) -> dict[str, Any]:
    """Format estimates of `over_tasks` as a measure for `scores.json`."""
    return measure_of(estimates[""], {code: one for code, one in estimates.items() if code})


def suite_means(
    consistency: Mapping[str, Hits], retrieval: Hits, mastered: Collection[str], *, seed: int
) -> dict[str, Any]:
    """Return one suite's consistency and alignment over mastered tasks and over all, weighted equally.

    A measure without tasks or languages is left out.
    """
    rng = np.random.default_rng(seed)
    every = {task: resampled_means(hits, rng) for task, hits in consistency.items() if hits}
    return _both(every, mastered, [resampled_means(retrieval, rng)] if retrieval else [])


def corrected_for_chance(
    meanings: Mapping[str, Mapping[str, Sequence[tuple[str | None, str | None]]]],
) -> dict[str, dict[str, float]]:
    """Return Cohen's κ between English and each language's answers, by closed task (`beyond_chance`).

    Chance agreement is computed from both sides' own answers: a model that always gives the same answer has
    full agreement in every language, but a κ of 0.

    Args:
        meanings: By task and language, pairs of the meanings of the English answer and the language's answer.
    """
    found: dict[str, dict[str, float]] = {}
    for task, by_language in meanings.items():
        for code, pairs in by_language.items():
            english, other = zip(*pairs, strict=True)
            observed = sum(agreement(english, other)) / len(pairs)
            value = beyond_chance(observed, chance_agreement(english, other))
            found.setdefault(task, {})[code] = value
    return found


def over_language_tasks(by_task: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """Average each language over its tasks, then over languages, without an interval.

    Empty if there are no tasks.
    """
    codes = dict.fromkeys(code for by_language in by_task.values() for code in by_language)
    each = {code: fmean([row[code] for row in by_task.values() if code in row]) for code in codes}
    if not each:
        return {}
    return {
        "mean": fmean(each.values()),
        "languages": {code: {"value": value} for code, value in each.items()},
    }


@dataclass(frozen=True)
class SuiteHits:
    """One side of a suite: hits by task, and retrieval by sentence, standardised and by raw cosine."""

    tasks: TaskHits
    retrieval: Hits
    retrieval_raw: Hits


def summary(
    before: Mapping[str, SuiteHits],
    after: Mapping[str, SuiteHits],
    mastered: Collection[str],
    *,
    low: Collection[str] = (),
    seed: int,
) -> dict[str, Any]:
    """Summarise a run over all its suites, for both sides; measures that it lacks are left out.

    All tasks (`suite/task`) have equal weight, as do all suites with sentences. Means are over tasks, then
    over languages; intervals come from a bootstrap over the items of every task. `alignment_low` covers the
    low-resource languages over all tasks, `alignment_low_mastered` over the mastered ones. `retention` is the
    change in English accuracy over all tasks, `consistency_gain` that in consistency over the mastered ones;
    both are paired by item.

    Args:
        mastered: Tasks that the reference model masters, as `suite/task`.
        low: Low-resource languages.
    """
    sides = {"before": before, "after": after}
    found: dict[str, Any] = {phase: _side_summary(side, mastered, low, seed) for phase, side in sides.items()}
    english = _changes(*(_tasks(side, "accuracy", lambda code: code == SOURCE) for side in sides.values()))
    others = _changes(_tasks(before, "consistency"), _tasks(after, "consistency"))
    gained = {task: hits for task, hits in others.items() if task in mastered}
    for name, changes in (("retention", english), ("consistency_gain", gained)):
        rng = np.random.default_rng(seed)
        if estimates := over_tasks([[resampled_means(hits, rng) for hits in changes.values()]]):
            found["after"][name] = measure(estimates)
    every = dict.fromkeys(name for side in sides.values() for name in _tasks(side, "consistency"))
    names = {"tasks": list(every), "mastered": [task for task in every if task in mastered]}
    return found | names | {"low": sorted(low)}


def _side_summary(
    side: Mapping[str, SuiteHits], mastered: Collection[str], low: Collection[str], seed: int
) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    every = {task: resampled_means(hits, rng) for task, hits in _tasks(side, "consistency").items()}
    sentences = [resampled_means(one.retrieval, rng) for one in side.values() if one.retrieval]
    raw = [resampled_means(one.retrieval_raw, rng) for one in side.values() if one.retrieval_raw]
    faithful = [resampled_means(hits, rng) for hits in _tasks(side, "fidelity").values()]
    found = _both(every, mastered, sentences)
    for name, resampled in (("retrieval", sentences), ("retrieval_raw", raw), ("fidelity", faithful)):
        if estimates := over_tasks([resampled]):
            found[name] = measure(estimates)

    def of_low(resampled: Resampled) -> Resampled:
        return {code: one for code, one in resampled.items() if code in low}

    scarce = {task: of_low(one) for task, one in every.items()}
    names = {"alignment_all": "alignment_low", "alignment_mastered": "alignment_low_mastered"}
    for name, value in _both(scarce, mastered, list(map(of_low, sentences))).items():
        if name in names:
            found[names[name]] = value
    return found


def _both(
    every: Mapping[str, Resampled], mastered: Collection[str], retrieval: Sequence[Resampled]
) -> dict[str, Any]:
    """Return consistency, and alignment if there is retrieval, over mastered tasks and over all."""
    chosen: dict[str, Callable[[str], bool]] = {
        "mastered": lambda task: task in mastered,
        "all": lambda _: True,
    }
    found = {}
    for name, wanted in chosen.items():
        tasks = [resampled for task, resampled in every.items() if wanted(task)]
        for which, halves in (("consistency", [tasks]), ("alignment", [tasks, retrieval])):
            if estimates := over_tasks(halves):
                found[f"{which}_{name}"] = measure(estimates)
    return found


def _tasks(
    side: Mapping[str, SuiteHits], name: str, wanted: Callable[[str], bool] = lambda code: code != SOURCE
) -> dict[str, Hits]:
    """Return a measure's hits by `suite/task`; by default without English, the standard of comparison."""
    found = {}
    for suite, hits in side.items():
        for task, by_language in hits.tasks.get(name, {}).items():
            if kept := {code: row for code, row in by_language.items() if wanted(code) and row}:
                found[f"{suite}/{task}"] = kept
    return found


def _changes(before: Mapping[str, Hits], after: Mapping[str, Hits]) -> dict[str, Hits]:
    """Return, by task, language and item, the score after minus that before, where there are both."""
    found: dict[str, Hits] = {}
    for task, by_language in after.items():
        change = differences(by_language, before.get(task, {}))
        if kept := {code: row for code, row in change.items() if row}:
            found[task] = kept
    return found
