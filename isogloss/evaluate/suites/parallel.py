"""Your own parallel JSON lines: instructions in several languages, with optional responses."""

from collections.abc import Sequence
from pathlib import Path

from isogloss.config import ParallelSuite
from isogloss.data.draw import FIXED, draw, labels_of, sample
from isogloss.data.examples import Turn
from isogloss.data.formats import parallel_jsonl
from isogloss.errors import DataError
from isogloss.evaluate.items import Item, SuiteData
from isogloss.languages import SOURCE

FEWEST = 40
"""Minimum number of instructions in all languages for retrieval; a quarter is used to choose the layer."""


def load(
    root: Path | None,
    split: str,
    languages: Sequence[str],
    items: int,
    sentences: int,
    options: ParallelSuite = ParallelSuite(),  # frozen
) -> SuiteData:
    """Load examples that have English and one of the languages, spread over tasks and labels.

    Retrieval is between instructions. Accuracy covers the examples with a response in every language.
    """
    if options.path is None:
        raise DataError("the parallel suite needs a file; set evaluate.parallel.path")
    notes: list[str] = []
    examples = [
        example
        for example in parallel_jsonl.read(options.path, tell=notes.append)
        if SOURCE in example.turns and any(code in example.turns for code in languages)
    ]
    if not examples:
        raise DataError(f"no example has both English and one of {', '.join(languages)}", options.path)
    made = []
    labels = labels_of(examples)
    for example in sample(
        examples, items, key=lambda e: e.id, strata=lambda e: (e.task, labels.get(e.id, ""))
    ):
        turns = {
            code: turn if (turn.response or "").strip() else Turn(turn.instruction)
            for code, turn in example.turns.items()
            if code in (SOURCE, *languages)
        }
        known = all(turn.response is not None for turn in turns.values())
        measures = {"consistency", "fidelity"} | ({"accuracy"} if known else set())
        made.append(Item(example.id, example.task, turns, measures=frozenset(measures)))
    codes = [SOURCE, *(code for code in languages if any(code in e.turns for e in examples))]
    # Deduplicate: a copy of a reported text may otherwise have been used to choose the layer.
    distinct = {e.turns[SOURCE].instruction: e for e in reversed(examples)}.values()
    shared = [e for e in distinct if all(code in e.turns for code in codes)]
    shared = shared if len(shared) >= FEWEST else []
    shared = draw(shared, FIXED, key=lambda e: e.id, strata=lambda e: (e.task,), power=1)
    for_layer, reported = shared[: len(shared) // 4], shared[len(shared) // 4 :][:sentences]

    def texts(chosen: list) -> dict[str, tuple[str, ...]]:
        return {code: tuple(e.turns[code].instruction for e in chosen) for code in codes} if chosen else {}

    return SuiteData(
        "parallel", "1", split, tuple(made), texts(reported), texts(for_layer), notes=tuple(notes)
    )
