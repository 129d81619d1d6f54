"""Scores: the entries of `scores.json` under one suite, made ready for a table on paper or terminal.

Shared by the page and the terminal table, so that both say the same. Knows no HTML.
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
"""Means in which every task counts alike, of consistency and alignment."""
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
    "alignment": "The mean of consistency and retrieval, then over languages.",
    "consistency": "Share of items whose answer means the same as the reference model's own English answer.",
    "consistency_kappa": "Cohen's κ of the answers to closed questions: 0 where they agree no more often "
    "than both sides' habits alone would bring about, 100 where always; mean over tasks.",
    "retrieval": "Share of parallel sentences that find each other among all others by the cosine of their "
    "hidden states, from English and into it; each language's states less their mean, by their spread, both "
    "taken from other sentences. The signature says so; it says raw where there were too few for that.",
    "retrieval_raw": "The same by the plain cosine, at the layer that is best for it.",
    "retrieval_strict": "Both directions right at once, and no tie.",
    "retrieval_margin": "Retrieval by the ratio to the nearest neighbours' similarity instead of cosine.",
    "accuracy": "Share of items answered as the gold says.",
    "fidelity": "Share of answers written in the language that was asked for, among those that can be told "
    "from English; labels that are the same words in every language and short words do not count.",
    "retention": "English accuracy after training minus the reference model's.",
}


@dataclass(frozen=True)
class Label:
    """What a language is called; an unknown code is its own name and leaves its direction to the text."""

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
    """One value with its interval, as fractions; None where the run has none."""

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
        """Which of the ten colours of the heat map: 0 for below 10 %, 9 for 90 % and above."""
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
        """As "41.2 → 63.0", or the one side there is."""
        sides = [side.percent for side in (self.before, self.after) if side.value is not None]
        return " → ".join(sides) or figures.NONE


class Suite:
    """One suite of `scores.json`, read through."""

    def __init__(self, scores: Mapping[str, Any], name: str):
        suites = scores["suites"]
        if name not in suites:
            raise RunError(f"scores.json has no suite {name!r}; it has {', '.join(suites) or 'none'}")
        self.name = name
        self.entries: Mapping[str, Any] = suites[name]

    @cached_property
    def languages(self) -> tuple[Label, ...]:
        return tuple(Label.of(code) for code in self.entries.get("languages", ()))

    @cached_property
    def measures(self) -> tuple[str, ...]:
        """The measures this suite has, the main ones first; retention is not one of a language."""
        return tuple(m for m in MAIN + FURTHER if any(m in self.entries.get(phase, {}) for phase in PHASES))

    def mean(self, measure: str) -> Change:
        return Change(*(Score.of(self._measure(phase, measure)) for phase in PHASES))

    def change(self, measure: str, code: str) -> Change:
        cells = (self._measure(phase, measure).get("languages", {}).get(code) for phase in PHASES)
        return Change(*map(Score.of, cells))

    @cached_property
    def spoken(self) -> int:
        """Over how many languages the mean is that the suite is headed with."""
        found = self._measure("after", self.main).get("languages", {}) if self.main else {}
        return len(found) or len(self.languages)

    @cached_property
    def headline(self) -> tuple[str, Change] | None:
        """What the suite is headed with: its first main measure, else its benchmark's own first metric."""
        for measure in MAIN:
            if self.mean(measure).after.value is not None:
                return measure_name(measure), self.mean(measure)
        official = self.entries.get("official") or {}
        for task, metrics in (official.get("after") or {}).get("tasks", {}).items():
            for metric, one in metrics.items():
                was = (official.get("before") or {}).get("tasks", {}).get(task, {}).get(metric)
                return f"{task} {metric.replace('_', ' ')}", Change(Score.of(was), Score.of(one))
        return None

    @cached_property
    def main(self) -> str | None:
        """The first of its main measures."""
        return next((measure for measure in MAIN if measure in self.measures), None)

    def cut(self, phase: str) -> float | None:
        """Share of the written answers that had no end within their limit, mean over the languages."""
        shares = (self.entries.get("cut") or {}).get(phase, {})
        return _mean(share for code, share in shares.items() if code != SOURCE)

    def spread(self, measure: str, phase: str) -> tuple[Label, float, float | None] | None:
        """The worst language, its value, and the standard deviation over languages."""
        entry = self.entries.get("spread", {}).get(phase, {}).get(measure)
        if not entry or not entry.get("worst"):
            return None
        code, value = entry["worst"]
        return Label.of(code), float(value), _number(entry.get("sd"))

    @cached_property
    def retention(self) -> Score:
        return Score.of(self._measure("after", "retention"))

    @cached_property
    def tasks(self) -> tuple[str, ...]:
        by_phase = self.entries.get("tasks", {})
        return tuple(dict.fromkeys(task for phase in PHASES for task in by_phase.get(phase, {})))

    def task(self, task: str, code: str, measure: str = "tasks") -> Change:
        by_phase = self.entries.get(measure, {})
        return Change(*(Score(_number(by_phase.get(p, {}).get(task, {}).get(code))) for p in PHASES))

    def task_mean(self, task: str, measure: str = "tasks") -> Change:
        """Over the languages that have the task: consistency, or `kappa`."""
        rows = [self.task(task, label.code, measure) for label in self.languages]
        return Change(
            Score(_mean(row.before.value for row in rows)), Score(_mean(row.after.value for row in rows))
        )

    def _measure(self, phase: str, measure: str) -> Mapping[str, Any]:
        return self.entries.get(phase, {}).get(measure) or {}


def measure_name(measure: str) -> str:
    """As people write it: alignment accuracy, retrieval (strict)."""
    return NAMES.get(measure, measure)


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _mean(values: Iterator[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
