"""Common setup for comparing methods: the same rows, a clock that pauses during evaluation, and checkpoints.

Flow: a run after stage 1 → rows in the order of stage 2 → a method trains and calls `tick` → points.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from experiments.ablation import as_usual
from experiments.reward import Prompt
from isogloss.config import with_overrides
from isogloss.data.examples import ParallelExample
from isogloss.data.parallel_text import translation_examples
from isogloss.errors import ConfigError
from isogloss.evaluate import retrieval, runner
from isogloss.evaluate.items import SuiteData
from isogloss.evaluate.suites import load_suite
from isogloss.languages import SOURCE
from isogloss.model.cost import Meter, StageCost
from isogloss.pipeline.folder import Run
from isogloss.pipeline.training_rows import rows_for
from isogloss.teacher.local import written
from isogloss.teacher.rows import Row
from isogloss.train.order import row_order

OURS, REFERENCE = "isogloss", "reference"
MEASURES = ("alignment", "consistency", "retrieval", "accuracy", "fidelity")
LAYER_SENTENCES = 60


def held_out(run: Run) -> SuiteData:
    """Load what every method is evaluated on: the first suite with items, and the first with sentences.

    Raises:
        ConfigError: No suite has items, or none has parallel sentences.
    """
    settings = run.config.evaluate
    items = sentences = None
    for name in settings.suites:
        suite = load_suite(name, run.data_root, settings, run.taught)
        items = items or (suite if suite.items else None)
        sentences = sentences or (suite if suite.sentences else None)
        if items and sentences:
            return replace(items, sentences=sentences.sentences, layer_sentences=sentences.layer_sentences)
    lacks = "parallel sentences, such as flores101" if items else "items, such as massive"
    raise ConfigError(f"evaluate.suites: methods are compared by alignment, and no suite has {lacks}")


@dataclass(frozen=True)
class Point:
    """A method's scores on held-out items at some cost, as fractions."""

    step: int
    flops: float
    seconds: float
    scores: dict[str, float]


@dataclass
class Entry:
    """One method's training: its points and its cost."""

    method: str
    seed: int
    points: list[Point] = field(default_factory=list)
    flops: float = 0.0
    seconds: float = 0.0
    tokens_forwarded: int = 0
    tokens_backpropagated: int = 0
    tokens_generated: int = 0
    ended: str = "trained as long as the others"

    def reached(self, level: float, measure: str = "alignment") -> dict[str, float] | None:
        """Return the cost of the first point that reaches a level of a measure; None if none does."""
        for point in self.points:
            if point.scores[measure] >= level:
                return {"flops": point.flops, "seconds": point.seconds}
        return None

    def best(self, measure: str = "alignment") -> float:
        return max((point.scores[measure] for point in self.points), default=0.0)


class Contest:
    """What every method gets: reference model, rows, held-out items."""

    def __init__(self, run: Run, *, points: int):
        """
        Args:
            run: Run with stage 1 done; its `evaluate` settings define the held-out items.
            points: Number of evaluations of a method: at its last step, and each earlier one at 1/√2 of the
                steps of the next.
        """
        self.run, self.points = run, points
        self.limit: float | None = None
        """Seconds after which a method is stopped; None for no limit."""
        settings = run.config.evaluate
        self.suite = held_out(run)
        self.reference = run.reference_model()
        self.plain = retrieval.Model(self.reference, run.tokenizer)
        self.english = runner.english_answers(self.plain, self.suite, settings, lambda done, of: None).texts
        self.right = runner.english_right(self.suite, self.english)

    def rows(self, run: Run) -> list[Row]:
        """Return stage 2's rows for a run's tree, including the English ones."""
        return rows_for(run, self.reference, self.run.examples, run.tree, run.taught, StageCost("rows"))

    @cached_property
    def prompts(self) -> list[Prompt]:
        """Prompts and responses except English ones, in stage 2's balance and order."""
        return self._prompts(self.parallel)

    def taught_prompts(self, model: nn.Module) -> list[Prompt]:
        """Return the same prompts, with a model's answers to the teacher's prompts as responses."""
        tokenizer, longest = self.run.tokenizer, self.run.config.evaluate.max_new_tokens
        # If the teacher's prompt were the English twin alone, it would answer in English.
        run = Run(with_overrides(self.run.config, as_usual("teacher_view")), self.run.reporter)
        rows = [row for row in self.rows(run) if row.language != SOURCE and not row.bare]
        return self._prompts(written(model, rows, tokenizer, tokenizer, max_new_tokens=longest))

    @cached_property
    def parallel(self) -> list[Row]:
        """Stage 2's rows without the English ones."""
        return [row for row in self.rows(self.run) if row.language != SOURCE and not row.bare]

    @cached_property
    def _by_id(self) -> dict[str, ParallelExample]:
        pairs = translation_examples(self.run.pairs(self.run.taught, "translation"))
        return {example.id: example for example in (*self.run.examples, *pairs)}

    def example(self, row: Row) -> ParallelExample:
        """Return the example that a row was made from."""
        return self._by_id[row.id.rpartition("/")[0]]

    def order(self, parallel: Sequence[Row]) -> list[int]:
        """Return row indices with the frequency and order of stage 2."""
        settings = self.run.config.distill
        return row_order(
            [row.language for row in parallel],
            round(settings.epochs * len(parallel)),
            balance=settings.sampling_temperature,
            batch=settings.batch_size,
            seed=self.run.config.seed,
            alike=[len(row.student.prompt) for row in parallel],
        )

    def _prompts(self, parallel: Sequence[Row]) -> list[Prompt]:
        """Return a prompt per row, with the frequency and order of stage 2."""
        texts = self.run.tokenizer.batch_decode(
            [list(row.student.response) for row in parallel], skip_special_tokens=True
        )
        found = []
        for number in self.order(parallel):
            row = parallel[number]
            turn = self.example(row).turns[row.language]
            found.append(Prompt(turn.instruction, texts[number].strip(), row.language))
        return found

    @cached_property
    def english_responses(self) -> list[str]:
        return [e.turns[SOURCE].response or "" for e in self.run.examples]

    def measure(self, subject: retrieval.Model) -> dict[str, float]:
        """Return mean scores over the languages on the held-out items, and retention in English."""
        settings, seed = self.run.config.evaluate, self.run.config.seed
        few = {code: texts[:LAYER_SENTENCES] for code, texts in self.suite.layer_sentences.items()}
        quiet = lambda done, of: None  # noqa: E731
        retriever = retrieval.retriever(
            subject, self.plain, replace(self.suite, layer_sentences=few), settings, quiet
        )
        side = runner.evaluate_side(
            subject, self.suite, self.run.taught, self.english, retriever, settings, seed, quiet
        )
        given = runner.english_answers(subject, self.suite, settings, quiet)
        right = runner.english_right(self.suite, given.texts)
        scores = {name: side.scores[name]["mean"] for name in MEASURES if name in side.scores}
        if right:
            scores["retention"] = (sum(right) - sum(self.right)) / len(right)
        return scores

    def start(self, method: str, subject: retrieval.Model, steps: int, met: float = 1.0) -> "MethodRun":
        """Return a counter for a method that takes `steps` steps."""
        return MethodRun(self, Entry(method, self.run.config.seed), subject, steps, met)


class MethodRun:
    """A running method; as a context manager, counts time and FLOPs inside, except during evaluation."""

    def __init__(self, contest: Contest, entry: Entry, subject: retrieval.Model, steps: int, met: float):
        self.contest, self.entry, self.subject, self.steps = contest, entry, subject, steps
        self.meter = Meter(subject.model, met)
        self.marks = {int(steps / 2 ** (number / 2)) for number in range(contest.points)} - {0}
        self.began = 0.0

    def __enter__(self) -> "MethodRun":
        self._counting = self.meter.counting()
        self._counting.__enter__()
        self.began = time.monotonic()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._rest()

    def tick(self, step: int) -> bool:
        """Evaluate if due after an optimiser step; return False if the method must stop."""
        late = self.contest.limit is not None and self.spent >= self.contest.limit
        if step in self.marks or late:
            self.measure(step)
        if late:
            self.entry.ended = f"stopped at its time limit, step {step} of {self.steps}"
        return not late

    @property
    def spent(self) -> float:
        return self.entry.seconds + time.monotonic() - self.began

    def measure(self, step: int) -> None:
        """Add a point; neither its time nor its FLOPs count."""
        self._rest()
        entry = self.entry
        point = Point(step, entry.flops, round(entry.seconds, 2), self.contest.measure(self.subject))
        entry.points.append(point)
        self.contest.run.reporter.say(
            f"{entry.method}: step {step} of {self.steps}, {entry.seconds:.0f} s, "
            f"{entry.flops / 1e12:.1f} TFLOP, alignment {100 * point.scores['alignment']:.1f} %"
        )
        self.__enter__()

    def _rest(self) -> None:
        entry = self.entry
        entry.seconds += time.monotonic() - self.began
        self.began = time.monotonic()
        self._counting.__exit__(None, None, None)
        entry.flops = self.meter.flops
        entry.tokens_forwarded = self.meter.forward_tokens
        entry.tokens_backpropagated = self.meter.backward_tokens
        entry.tokens_generated = self.meter.generated


def work_folder(run: Run, method: str) -> Path:
    """Return the working folder of a method's trainer."""
    return run.folder / "contest" / method
