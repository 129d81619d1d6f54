"""Other wordings of the tasks' English questions, which stage 1 takes turns with."""

import random
from collections.abc import Iterable
from dataclasses import replace
from functools import cache
from importlib import resources

import yaml

from isogloss.data.examples import ParallelExample, Turn
from isogloss.languages import SOURCE


@cache
def _templates() -> dict[str, list[str]]:
    text = (resources.files("isogloss.data.tasks") / "english_wordings.yaml").read_text("utf-8")
    return yaml.safe_load(text)


def english_wordings(task: str, **inputs: str) -> tuple[str, ...]:
    """Return the other wordings of a task's English question, filled in; none for a task that has none."""
    return tuple(template.format(**inputs) for template in _templates().get(task, ()))


def vary_wordings(examples: Iterable[ParallelExample], seed: int) -> list[ParallelExample]:
    """Return the examples with their English instruction in one of its wordings, drawn by seed and ID.

    All wordings are equally likely, the instruction's own among them.
    """
    return [_vary(example, seed) if example.wordings else example for example in examples]


def _vary(example: ParallelExample, seed: int) -> ParallelExample:
    turn = example.turns[SOURCE]
    drawn = random.Random(f"{seed} {example.id}").choice((turn.instruction, *example.wordings))
    return replace(example, turns={**example.turns, SOURCE: Turn(drawn, turn.response)})
