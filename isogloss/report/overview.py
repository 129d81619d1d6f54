"""Overview: what a whole run says, over all its suites, and what to conclude for each language.

Shared by the page and the terminal. Knows no HTML. Tasks that the reference model does not master in English
are kept apart: that all languages agree with a wrong answer helps nobody.
Flow: scores.json's summary and its suites' tasks → Overview (means, a verdict per language, a row per task).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

from isogloss.report import figures
from isogloss.report.scores import OVER_TASKS, PHASES, Change, Label, Score, Suite

RELIABLE: Final = 0.85
"""Consistency over mastered tasks from which on a language can be used as English is …"""
USABLE: Final = 0.7
"""… and from which on with care."""
RULE: Final = (
    f"Reliable: at least {RELIABLE:.0%} of the answers to mastered tasks mean the same as in English; with "
    f"care: at least {USABLE:.0%}; below that, not to be relied on."
).replace("%", " %")
MASTERED: Final = (
    "A task is mastered when the reference model, asked in English, is right on at least 80 % of its items "
    "and gives no answer to more than 60 % of them. Only there does agreeing with it mostly mean being right."
)
FAITHFUL: Final = 0.95
"""Fidelity below which a language's verdict mentions it."""


@dataclass(frozen=True)
class Verdict:
    """What a user should conclude for a language: a word, how good it is, and what else to know."""

    word: str
    tone: str
    notes: tuple[str, ...]

    @property
    def text(self) -> str:
        return "; ".join((self.word, *self.notes))


@dataclass(frozen=True)
class TaskRow:
    """One task of one suite.

    Attributes:
        rephrased: How often the reference model agrees with itself when the English question is reworded.
    """

    name: str
    mastered: bool
    accuracy: Score
    commonest: Score
    rephrased: Score
    consistency: Change
    kappa: Change


class Overview:
    """A run's `summary`, read through; false where the scores have none."""

    def __init__(self, scores: Mapping[str, Any]):
        self.scores = scores
        self.summary: Mapping[str, Any] = scores.get("summary") or {}

    def __bool__(self) -> bool:
        return any(self.summary.get(phase) for phase in PHASES)

    def mean(self, measure: str) -> Change:
        return Change(*(Score.of(self._measure(phase, measure)) for phase in PHASES))

    def change(self, measure: str, code: str) -> Change:
        cells = (self._measure(phase, measure).get("languages", {}).get(code) for phase in PHASES)
        return Change(*map(Score.of, cells))

    def spoken(self, measure: str) -> int:
        """Over how many languages a measure's mean is."""
        return len(self._measure("after", measure).get("languages", {}))

    @cached_property
    def languages(self) -> tuple[Label, ...]:
        """All that have a measure, in the order of the suites."""
        found = dict.fromkeys(code for suite in self.scores["suites"].values() for code in suite["languages"])
        return tuple(Label.of(code) for code in found)

    @cached_property
    def measures(self) -> tuple[str, ...]:
        """Those that the summary has, over mastered tasks first."""
        names = [f"{name}_{kind}" for kind in OVER_TASKS for name in ("alignment", "consistency")]
        return tuple(
            name
            for name in (*names, "retrieval", "retrieval_raw", "fidelity")
            if any(self._measure(phase, name) for phase in PHASES)
        )

    @property
    def by_consistency(self) -> list[Label]:
        """From the most consistent language down."""
        name = f"consistency_{self.kind}"
        return sorted(self.languages, key=lambda label: -(self.change(name, label.code).after.value or 0))

    @cached_property
    def low(self) -> tuple[Label, ...]:
        return tuple(Label.of(code) for code in self.summary.get("low", ()))

    @property
    def kind(self) -> str:
        """Over which tasks means are shown first: `mastered`, or `all` where none is."""
        return "mastered" if self.summary.get("mastered") else "all"

    @property
    def counted(self) -> str:
        """How many tasks are mastered, in words."""
        every, mastered = len(self.summary.get("tasks", ())), len(self.summary.get("mastered", ()))
        if not every:
            return "sentences alone"
        return f"{mastered} of {every} task{'s' * (every != 1)} mastered in English"

    def verdict(self, code: str) -> Verdict:
        """By the consistency over mastered tasks; without it there is nothing to conclude."""
        consistency, notes = self.change("consistency_mastered", code), []
        now, was = consistency.after, consistency.before
        if now.value is None:
            measured = self.change("consistency_all", code).after.value is not None
            why = "no task mastered in English" if measured else "measured by retrieval alone"
            return Verdict("nothing to conclude", "soft", (why,))
        if was.value is not None and now.low is not None and now.low <= was.value:
            notes.append("no gain shown")
        fidelity = self.change("fidelity", code).after.value
        if fidelity is not None and fidelity < FAITHFUL:
            notes.append(f"{figures.percent(1 - fidelity)} % not in the language")
        if cut := self._cut(code):
            notes.append(f"up to {figures.percent(cut)} % cut short")
        if now.value >= RELIABLE:
            return Verdict("reliable", "yes", tuple(notes))
        if now.value >= USABLE:
            return Verdict("with care", "fair", tuple(notes))
        return Verdict("not to be relied on", "no", tuple(notes))

    @cached_property
    def tasks(self) -> list[TaskRow]:
        """Mastered ones first, in the order of the suites."""
        rows = []
        for name, entry in self.scores["suites"].items():
            suite, english = Suite(self.scores, name), (entry.get("english") or {}).get("tasks", {})
            for task in suite.tasks:
                one = english.get(task, {})
                accuracy, commonest, rephrased = (
                    Score(one.get(key)) for key in ("accuracy", "commonest", "rephrased")
                )
                rows.append(
                    TaskRow(
                        name if task == name else f"{name}: {task}",
                        bool(one.get("mastered")),
                        accuracy,
                        commonest,
                        rephrased,
                        suite.task_mean(task),
                        suite.task_mean(task, "kappa"),
                    )
                )
        return sorted(rows, key=lambda row: not row.mastered)

    def _cut(self, code: str) -> float:
        """The largest share of cut answers over the suites, where it is worth a word."""
        shares = [
            (suite.get("cut") or {}).get("after", {}).get(code, 0.0)
            for suite in self.scores["suites"].values()
        ]
        return most if (most := max(shares, default=0.0)) >= 0.01 else 0.0

    def _measure(self, phase: str, measure: str) -> Mapping[str, Any]:
        return self.summary.get(phase, {}).get(measure) or {}
