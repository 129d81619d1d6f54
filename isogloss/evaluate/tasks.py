"""Tasks: which of them the reference model masters in English, and means in which every task counts alike.

A mean over items lets the largest task decide; a mean over tasks that nobody can do says nothing of a method.
Knows no model: hits by task, language and item go in, of one suite or of all suites together.
Flow: hits → mastery (English alone) → means over mastered tasks and over all → summary of a run.
"""

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np

from isogloss.evaluate.metrics import agreement, beyond_chance, chance_agreement
from isogloss.evaluate.statistics import Estimate, Resampled, over_tasks, resampled_means
from isogloss.languages import SOURCE

MASTERED_ACCURACY: Final = 0.8
"""English accuracy from which on a task can be mastered."""
MASTERED_COMMONEST: Final = 0.6
"""Share of one answer in the outputs above which it is not: it may be right by class imbalance alone."""

Hits = Mapping[str, Mapping[str, float]]
"""By language and item id, what an item counts, from 0 to 1."""
TaskHits = Mapping[str, Mapping[str, Hits]]
"""By measure (consistency, accuracy, fidelity) and task."""


@dataclass(frozen=True)
class Mastery:
    """How well the reference model does a task in English.

    Attributes:
        accuracy: Share of right answers; None where nobody knows what is right.
        commonest: Share of the commonest answer among all.
        rephrased: How often it agrees with itself when the English instruction is worded otherwise: the noise
            that is there without any other language. None where the data has no other wording.
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
        """As JSON."""
        return asdict(self) | {"mastered": self.mastered}


def mastery(answers: Sequence[str], right: Sequence[bool | None], rephrased: Sequence[bool] = ()) -> Mastery:
    """Of one task's English answers.

    Args:
        answers: What was answered: the meaning, or the wording where it has none. At least one.
        right: Whether each is; None where its gold is not known.
        rephrased: For each answer to another wording whether it agrees with the one to the first.
    """
    known = [hit for hit in right if hit is not None]
    return Mastery(
        len(answers),
        sum(known) / len(known) if known else None,
        max(Counter(answers).values()) / len(answers),
        sum(rephrased) / len(rephrased) if rephrased else None,
    )


def measure(estimates: Mapping[str, Estimate]) -> dict[str, Any]:
    """Estimates of `over_tasks` as a measure of `scores.json`."""
    mean = estimates[""]
    return {
        "mean": mean.value,
        "low": mean.low,
        "high": mean.high,
        "languages": {code: asdict(one) for code, one in estimates.items() if code},
    }


def suite_means(
    consistency: Mapping[str, Hits], retrieval: Hits, mastered: Collection[str], *, seed: int
) -> dict[str, Any]:
    """Consistency and alignment of one suite, its tasks weighted equally: over mastered tasks and over all.

    A measure without a task or a language is left out.
    """
    rng = np.random.default_rng(seed)
    every = {task: resampled_means(hits, rng) for task, hits in consistency.items() if hits}
    found = resampled_means(retrieval, rng) if retrieval else {}
    return _both(every, mastered, [found] if found else [])


def corrected_for_chance(
    meanings: Mapping[str, Mapping[str, Sequence[tuple[str | None, str | None]]]],
) -> dict[str, dict[str, float]]:
    """Cohen's κ of the answers in English and in a language, by closed task and language (`beyond_chance`).

    The chance agreement is of both sides' own answers: a model that says the same to everything agrees with
    itself in every language, and has a κ of 0.

    Args:
        meanings: By task and language, the meanings of the English answer and of the language's.
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
    """Per language the mean over its tasks, then over languages; without an interval.

    Empty where there is no task.
    """
    codes = dict.fromkeys(code for by_language in by_task.values() for code in by_language)
    each = {code: _mean([row[code] for row in by_task.values() if code in row]) for code in codes}
    if not each:
        return {}
    return {
        "mean": _mean(list(each.values())),
        "languages": {code: {"value": value} for code, value in each.items()},
    }


@dataclass(frozen=True)
class SuiteHits:
    """One side of a suite: hits by task, and retrieval's by sentence, standardised and by plain cosine."""

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
    """A run in a few numbers, over all its suites, for both sides; what a run lacks is left out.

    A task is a suite's task, `suite/task`, and counts as much as any other; so does each suite that has
    sentences. Every mean is one over tasks, then over languages, its interval a bootstrap over the items of
    every task. `alignment_low` is of the low-resource languages over all tasks, `alignment_low_mastered` over
    the mastered ones.
    `retention` is the change of English accuracy, mean over tasks.

    Args:
        mastered: The tasks, as `suite/task`, that the reference model masters.
        low: The low-resource languages.
    """
    sides = {"before": before, "after": after}
    found: dict[str, Any] = {phase: _side_summary(side, mastered, low, seed) for phase, side in sides.items()}
    change = {
        name: {SOURCE: {id: row[id] - earlier[name][id] for id in row if id in earlier.get(name, {})}}
        for earlier in [_of_english(before)]
        for name, row in _of_english(after).items()
    }
    rng = np.random.default_rng(seed)
    kept = [resampled_means(hits, rng) for hits in change.values() if hits[SOURCE]]
    if estimates := over_tasks([kept]):
        found["after"]["retention"] = measure(estimates)
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
    """Consistency, and alignment where there is retrieval, over mastered tasks and over all."""
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


def _tasks(side: Mapping[str, SuiteHits], name: str) -> dict[str, Hits]:
    """A measure's hits by `suite/task`, English left out: it is what the others are compared with."""
    found = {}
    for suite, hits in side.items():
        for task, by_language in hits.tasks.get(name, {}).items():
            if others := {code: row for code, row in by_language.items() if code != SOURCE and row}:
                found[f"{suite}/{task}"] = others
    return found


def _of_english(side: Mapping[str, SuiteHits]) -> dict[str, Mapping[str, float]]:
    """English accuracy by `suite/task` and item."""
    return {
        f"{suite}/{task}": by_language[SOURCE]
        for suite, hits in side.items()
        for task, by_language in hits.tasks.get("accuracy", {}).items()
        if SOURCE in by_language
    }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
