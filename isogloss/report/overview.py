"""Overview: a run's results over all its suites, with a conclusion for each language.

Shared by the page and the terminal; independent of HTML. Tasks that the reference model does not master in
English are kept separate: it is no use if all languages agree with a wrong answer.
Flow: scores.json's summary and its suites' tasks → Overview (means, a verdict per language, a row per task).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

from isogloss.report import figures
from isogloss.report.scores import OVER_TASKS, PHASES, Change, Label, Measures, Score, Suite

RELIABLE: Final = 0.85
"""Minimum consistency over mastered tasks for a language to count as reliable."""
USABLE: Final = 0.7
"""Minimum consistency over mastered tasks for a language to be used with care."""
RULE: Final = (
    "By consistency, the share of answers that mean the same as in English, as a mean over mastered tasks: "
    f"reliable from {RELIABLE:.0%}, with care from {USABLE:.0%}; below that, not to be relied on."
).replace("%", " %")
MASTERED: Final = (
    "A task is mastered when the reference model, asked in English, is right on at least 80 % of its items "
    "and gives no single answer to more than 60 % of them. Only on such tasks does agreeing with it mostly "
    "mean being right."
)
FAITHFUL: Final = 0.95
"""Fidelity below which it is mentioned in a language's verdict."""


@dataclass(frozen=True)
class Verdict:
    """The conclusion for a language: a word, its tone (for colouring), and further notes."""

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
        rephrased: Self-agreement of the reference model when the English question is rephrased.
    """

    name: str
    mastered: bool
    accuracy: Score
    commonest: Score
    rephrased: Score
    consistency: Change
    kappa: Change


class Overview(Measures):
    """Accessors for a run's `summary`; falsy if the scores have none."""

    def __init__(self, scores: Mapping[str, Any]):
        self.scores = scores
        self.entries = scores.get("summary") or {}

    def __bool__(self) -> bool:
        return any(self.entries.get(phase) for phase in PHASES)

    @cached_property
    def languages(self) -> tuple[Label, ...]:
        """All languages of the suites, in their order."""
        found = dict.fromkeys(code for suite in self.scores["suites"].values() for code in suite["languages"])
        return tuple(Label.of(code) for code in found)

    @cached_property
    def measures(self) -> tuple[str, ...]:
        """The measures that the summary has, those over mastered tasks first."""
        names = [f"{name}_{kind}" for kind in OVER_TASKS for name in ("alignment", "consistency")]
        return tuple(
            name
            for name in (*names, "retrieval", "retrieval_raw", "fidelity")
            if any(self._measure(phase, name) for phase in PHASES)
        )

    @property
    def by_consistency(self) -> list[Label]:
        """Languages sorted from most to least consistent."""
        name = f"consistency_{self.kind}"
        return sorted(self.languages, key=lambda label: -(self.change(name, label.code).after.value or 0))

    @cached_property
    def low(self) -> tuple[Label, ...]:
        return tuple(Label.of(code) for code in self.entries.get("low", ()))

    @property
    def kind(self) -> str:
        """The tasks of the main means: `mastered`, or `all` if none is mastered."""
        return "mastered" if self.entries.get("mastered") else "all"

    @property
    def counted(self) -> str:
        """The number of mastered tasks, in words."""
        every, mastered = len(self.entries.get("tasks", ())), len(self.entries.get("mastered", ()))
        if not every:
            return "sentences only"
        return f"{mastered} of {every} task{'s' * (every != 1)} mastered in English"

    def verdict(self, code: str) -> Verdict:
        """Judge a language by its consistency over mastered tasks; without it there is no conclusion."""
        consistency, notes = self.change("consistency_mastered", code), []
        now = consistency.after
        if now.value is None:
            measured = self.change("consistency_all", code).after.value is not None
            why = "none of its tasks is mastered in English" if measured else "measured by retrieval only"
            return Verdict("no conclusion", "soft", (why,))
        gain = self.change("consistency_gain", code).after
        if gain.high is not None and gain.high < 0:
            notes.append("worse than before")
        elif gain.low is not None and gain.low <= 0:
            notes.append("no gain shown")
        fidelity = self.change("fidelity", code).after.value
        if fidelity is not None and fidelity < FAITHFUL:
            notes.append(f"{figures.percent(1 - fidelity)} % not in the language")
        if cut := self._cut(code):
            notes.append(f"up to {figures.percent(cut)} % truncated")
        if now.value >= RELIABLE:
            return Verdict("reliable", "yes", tuple(notes))
        if now.value >= USABLE:
            return Verdict("with care", "fair", tuple(notes))
        return Verdict("not to be relied on", "no", tuple(notes))

    @cached_property
    def tasks(self) -> list[TaskRow]:
        """All tasks, mastered ones first, in the order of the suites."""
        rows = []
        for name, entry in self.scores["suites"].items():
            suite, english = Suite(self.scores, name), (entry.get("english") or {}).get("tasks", {})
            for task in suite.tasks:
                one = english.get(task, {})
                rows.append(
                    TaskRow(
                        name if task == name else f"{name}: {task}",
                        bool(one.get("mastered")),
                        Score(one.get("accuracy")),
                        Score(one.get("commonest")),
                        Score(one.get("rephrased")),
                        suite.task_mean(task),
                        suite.task_mean(task, "kappa"),
                    )
                )
        return sorted(rows, key=lambda row: not row.mastered)

    def _cut(self, code: str) -> float:
        """Largest share of truncated answers after training over the suites; 0 if below 1 %."""
        suites = self.scores["suites"].values()
        shares = [(suite.get("cut") or {}).get("after", {}).get(code, 0.0) for suite in suites]
        return most if (most := max(shares, default=0.0)) >= 0.01 else 0.0
