"""Selection: which of the English examples are worth tuning on, and why each of the others is not.

`select` drops broken and duplicate examples by rules that need no model. `keep_best` then keeps the examples
that a model learns most from, by losses that the caller measured under the base model. Depends on no model
and no file format.
Flow: select → keep_best → summary, write.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from isogloss.data.examples import ParallelExample, Turn
from isogloss.data.selection_rules import (
    Duplicates,
    NearDuplicates,
    degenerate,
    empty,
    truncation,
    wrong_language,
)
from isogloss.errors import ConfigError
from isogloss.files import write_lines
from isogloss.languages import SOURCE

RULES: Final = ("empty", "degenerate", "truncated", "wrong_language", "duplicate", "near_duplicate")
SCORE_RULES: Final = ("instruction_does_not_help", "below_share")
TOO_LONG: Final = "too_long"
"""Reason for dropping an example with more tokens than stage 1 allows in a row."""


@dataclass(frozen=True)
class Dropped:
    """A dropped example: its ID, the name of the rule that it failed, and what the rule found."""

    example_id: str
    reason: str
    detail: str


@dataclass(frozen=True)
class Selection:
    """Kept and dropped examples, both in the order given."""

    kept: tuple[ParallelExample, ...]
    dropped: tuple[Dropped, ...]


def select(examples: Iterable[ParallelExample], *, max_chars: int = 8_000) -> Selection:
    """Keep the examples that pass every rule in English; drop each other by the first rule that it fails.

    empty           No instruction or response, or only white space.
    degenerate      The response repeats one unit over at least half of its length, equals the instruction
                    (unless the task copies, repeats or translates), or is longer than `max_chars`.
    truncated       A long free text ends in mid-sentence, or within an open bracket or quotation, or any
                    text ends within a code block. Short answers and lists without full stops pass.
    wrong_language  Most letters are not Latin, or the detector (for texts of at least 40 letters) is sure of
                    another language. Translation tasks are not checked.
    duplicate       Instruction and response equal an earlier example's except for case, width and spaces.
    near_duplicate  An instruction of at least 20 words has the same content words as an earlier one, in the
                    same order, and a Jaccard similarity of character 5-grams of at least 0.9. Any
                    different content word or number keeps both: items from one template are no duplicates.

    Args:
        examples: Any number; fifty thousand take well under a minute.
        max_chars: Maximum length of a response in characters.
    """
    checks: dict[str, Callable[[ParallelExample, Turn], str | None]] = {
        "empty": lambda example, turn: empty(turn),
        "degenerate": lambda example, turn: degenerate(example.task, turn, max_chars),
        "truncated": lambda example, turn: truncation(turn.response or "", SOURCE),
        "wrong_language": lambda example, turn: wrong_language(example.task, turn, SOURCE),
        "duplicate": Duplicates(),
        "near_duplicate": NearDuplicates(),
    }
    kept: list[ParallelExample] = []
    dropped: list[Dropped] = []
    for example in examples:
        turn = example.turns.get(SOURCE, Turn(""))
        found = ((rule, check(example, turn)) for rule, check in checks.items())
        failed = next(((rule, detail) for rule, detail in found if detail), None)
        if failed:
            dropped.append(Dropped(example.id, *failed))
        else:
            kept.append(example)
    return Selection(tuple(kept), tuple(dropped))


def instruction_following_difficulty(
    loss_with: Sequence[float], loss_without: Sequence[float]
) -> list[float]:
    """Return how little the instruction helps the base model to predict each response; 1 means not at all.

    The ratio of two mean losses over the response tokens: with the instruction and without it (Li et al.
    2024, arXiv:2308.12032). A high ratio means that there is much to learn; above 1 the instruction misleads.
    An instruction does not help with a response whose loss is 0 without it.

    Raises:
        ValueError: The lengths differ, or a loss is negative or not finite.
    """
    ratios = []
    for index, (instructed, alone) in enumerate(zip(loss_with, loss_without, strict=True)):
        if not (0 <= instructed < math.inf and 0 <= alone < math.inf):
            raise ValueError(
                f"losses {index} are {instructed} and {alone}; they must be finite and not negative"
            )
        ratios.append(instructed / alone if alone else 1.0)
    return ratios


def keep_best(examples: Sequence[ParallelExample], scores: Sequence[float], share: float) -> Selection:
    """Keep the hardest share of the examples whose instruction helps at all.

    Examples with a ratio of at least 1 are dropped (instruction_does_not_help). Of the rest, the `share` with
    the highest ratios is kept, rounded to a whole number and at least one; ties go to the earlier example.

    Args:
        examples: What `select` kept.
        scores: Their `instruction_following_difficulty`.
        share: Fraction of the examples with a ratio below 1 to keep: above 0, at most 1.

    Raises:
        ConfigError: `share` is not in that range.
        ValueError: The lengths differ, or a score is NaN.
    """
    if not 0 < share <= 1:
        raise ConfigError(f"share is {share}; it must be above 0 and at most 1")
    rows = list(zip(examples, scores, strict=True))
    if any(math.isnan(score) for score in scores):
        raise ValueError("a score is NaN; every score must be a number")
    helped = [index for index, (_, score) in enumerate(rows) if score < 1]
    count = max(1, math.floor(share * len(helped) + 0.5))
    best = set(sorted(helped, key=lambda index: -rows[index][1])[:count])
    useless, easy = SCORE_RULES
    return Selection(
        tuple(example for index, (example, _) in enumerate(rows) if index in best),
        tuple(
            Dropped(example.id, easy if score < 1 else useless, f"ratio {score:.3f}")
            for index, (example, score) in enumerate(rows)
            if index not in best
        ),
    )


def summary(selection: Selection) -> dict[str, int]:
    """Count the examples that each rule dropped, in the order of the rules; omit rules that dropped none."""
    counts = Counter(dropped.reason for dropped in selection.dropped)
    return {reason: counts[reason] for reason in (*RULES, TOO_LONG, *SCORE_RULES) if counts[reason]}


def write(selection: Selection, path: Path) -> None:
    """Write one line per example, kept ones first: its ID, whether it was kept, else reason and detail."""
    rows: list[dict[str, Any]] = [{"id": example.id, "kept": True} for example in selection.kept]
    rows += [
        {"id": dropped.example_id, "kept": False, "reason": dropped.reason, "detail": dropped.detail}
        for dropped in selection.dropped
    ]
    write_lines(path, rows)
