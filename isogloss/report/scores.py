"""Scores: the entries of one suite in `scores.json`, prepared for tables.

Shared by the page and the terminal table, so that both show the same. Independent of HTML.
Flow: scores → Suite (order, labels) → Change (before, after, gain) per measure and language.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

from isogloss.errors import RunError
from isogloss.languages import SOURCE, UnknownLanguageError, resolve
from isogloss.report import figures

MAIN: Final = (
    *("alignment", "consistency", "consistency_kappa", "retrieval", "retrieval_raw", "accuracy", "fidelity"),
)
FURTHER: Final = ("retrieval_strict", "retrieval_margin")
OVER_TASKS: Final = ("mastered", "all")
"""Means of consistency and alignment over equally weighted tasks."""
PHASES: Final = ("before", "after")

NAMES: Final = {
    "alignment": "alignment accuracy",
    "consistency_kappa": "κ, corrected for chance",
    "retrieval_raw": "retrieval, raw cosine",
    "consistency_mastered": "consistency, mastered tasks",
    "consistency_all": "consistency, all tasks",
    "alignment_mastered": "alignment, mastered tasks",
    "alignment_all": "alignment, all tasks",
    "retrieval_strict": "retrieval, strict",
    "retrieval_margin": "retrieval, by margin",
}
MEANINGS: Final = {
    "alignment": "Mean of consistency and retrieval, averaged over languages.",
    "consistency": "Share of items whose answer means the same as the reference model's own English answer.",
    "consistency_kappa": "Cohen's κ of the answers to closed questions: 0 if they agree no more often than "
    "expected by chance from both sides' answer frequencies, 100 if always; mean over tasks.",
    "retrieval": "Share of parallel sentences that find each other among all others by the cosine of their "
    "hidden states, from English and into it. Each language's states are standardised by their mean and "
    "standard deviation on other, unreported sentences; the signature says raw if there were too few.",
    "retrieval_raw": "The same with the raw cosine, at the best layer for it.",
    "retrieval_strict": "Both directions right at once, without ties.",
    "retrieval_margin": "Retrieval by the ratio to the nearest neighbours' similarity instead of the cosine.",
    "accuracy": "Share of items answered correctly.",
    "fidelity": "Share of answers in the requested language, among those that can be distinguished from "
    "English; short words and labels that are the same in every language do not count.",
    "retention": "English accuracy after training minus the reference model's.",
}


@dataclass(frozen=True)
class Label:
    """A language's names; an unknown code is used as its own name, with automatic text direction."""

    code: str
    name: str
    autonym: str
    bcp47: str
    direction: str

    @classmethod
    def of(cls, code: str) -> "Label":
        try:
            language = resolve(code)
        except UnknownLanguageError:
            return cls(code, code, code, "und", "auto")
        return cls(code, language.name, language.autonym, language.bcp47, language.direction)


@dataclass(frozen=True)
class Score:
    """One value with its interval, as fractions; None if the run has none."""

    value: float | None = None
    low: float | None = None
    high: float | None = None

    @classmethod
    def of(cls, entry: Mapping[str, Any] | None) -> "Score":
        entry = entry or {}
        value = entry.get("value", entry.get("mean"))
        return cls(_number(value), _number(entry.get("low")), _number(entry.get("high")))

    @property
    def percent(self) -> str:
        return figures.percent(self.value)

    @property
    def interval(self) -> str:
        return figures.interval(self.low, self.high)

    @property
    def points(self) -> str:
        return figures.points(self.value)

    @property
    def interval_of_points(self) -> str:
        return figures.interval_of_points(self.low, self.high)

    @property
    def step(self) -> int | None:
        """Index of the heat map's ten colours: 0 below 10 %, 9 for 90 % and above."""
        return None if self.value is None else min(9, max(0, int(self.value * 10)))


@dataclass(frozen=True)
class Change:
    """A value before and after training."""

    before: Score
    after: Score

    @property
    def gain(self) -> float | None:
        if self.before.value is None or self.after.value is None:
            return None
        return self.after.value - self.before.value

    @property
    def points(self) -> str:
        return figures.points(self.gain)

    @property
    def arrow(self) -> str:
        """Format as "41.2 → 63.0", or the only side that exists."""
        sides = [side.percent for side in (self.before, self.after) if side.value is not None]
        return " → ".join(sides) or figures.NONE


class Measures:
    """Accessors for measures by phase: those of one suite, or of a run's summary."""

    entries: Mapping[str, Any]

    def mean(self, measure: str) -> Change:
        return Change(*(Score.of(self._measure(phase, measure)) for phase in PHASES))

    def change(self, measure: str, code: str) -> Change:
        cells = (self._measure(phase, measure).get("languages", {}).get(code) for phase in PHASES)
        return Change(*map(Score.of, cells))

    def spoken(self, measure: str) -> int:
        """Number of languages in a measure's mean."""
        return len(self._measure("after", measure).get("languages", {}))

    def _measure(self, phase: str, measure: str) -> Mapping[str, Any]:
        return self.entries.get(phase, {}).get(measure) or {}


class Suite(Measures):
    """Accessors for one suite of `scores.json`."""

    def __init__(self, scores: Mapping[str, Any], name: str):
        suites = scores["suites"]
        if name not in suites:
            raise RunError(f"scores.json has no suite {name!r}; it has {', '.join(suites) or 'none'}")
        self.name = name
        self.entries = suites[name]

    @cached_property
    def languages(self) -> tuple[Label, ...]:
        return tuple(Label.of(code) for code in self.entries.get("languages", ()))

    @cached_property
    def measures(self) -> tuple[str, ...]:
        """The measures of this suite, the main ones first; without retention, which is not per language."""
        return tuple(m for m in MAIN + FURTHER if any(m in self.entries.get(phase, {}) for phase in PHASES))

    @cached_property
    def headline(self) -> tuple[str, Change, int] | None:
        """The first main measure, else the first of the benchmark's own, with its number of languages."""
        for measure in MAIN:
            if self.mean(measure).after.value is not None:
                return measure_name(measure), self.mean(measure), self.spoken(measure)
        for task, metric, was, now in self.official:
            return f"{task} {metric}", Change(Score.of(was), Score.of(now)), len(now["languages"])
        return None

    @property
    def official(self) -> Iterator[tuple[str, str, Mapping[str, Any], Mapping[str, Any]]]:
        """The benchmark's own metrics: task, metric, and the entry before (may be empty) and after."""
        before, after = (
            ((self.entries.get("official") or {}).get(phase) or {}).get("tasks", {}) for phase in PHASES
        )
        for task, metrics in after.items():
            for metric, now in metrics.items():
                yield task, metric.replace("_", " "), before.get(task, {}).get(metric, {}), now

    @cached_property
    def main(self) -> str | None:
        """The first main measure that this suite has."""
        return next((measure for measure in MAIN if measure in self.measures), None)

    def cut(self, phase: str) -> float | None:
        """Mean over languages other than English of the share of truncated generated answers."""
        shares = (self.entries.get("cut") or {}).get(phase, {})
        return _mean(share for code, share in shares.items() if code != SOURCE)

    def spread(self, measure: str, phase: str) -> tuple[Label, float, float | None] | None:
        """Return the worst language, its value, and the standard deviation over languages."""
        entry = self.entries.get("spread", {}).get(phase, {}).get(measure)
        if not entry or not entry.get("worst"):
            return None
        code, value = entry["worst"]
        return Label.of(code), float(value), _number(entry.get("sd"))

    @cached_property
    def tasks(self) -> tuple[str, ...]:
        by_phase = self.entries.get("tasks", {})
        return tuple(dict.fromkeys(task for phase in PHASES for task in by_phase.get(phase, {})))

    def task(self, task: str, code: str, measure: str = "tasks") -> Change:
        by_phase = self.entries.get(measure, {})
        return Change(*(Score(_number(by_phase.get(p, {}).get(task, {}).get(code))) for p in PHASES))

    def task_mean(self, task: str, measure: str = "tasks") -> Change:
        """Average a task over the languages that have it: consistency (`tasks`), or `kappa`."""
        rows = [self.task(task, label.code, measure) for label in self.languages]
        return Change(
            Score(_mean(row.before.value for row in rows)), Score(_mean(row.after.value for row in rows))
        )


def measure_name(measure: str) -> str:
    """Return a measure's display name, such as "alignment accuracy"."""
    return NAMES.get(measure, measure)


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _mean(values: Iterator[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
