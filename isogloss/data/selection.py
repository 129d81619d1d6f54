"""Selection: which of the English examples are worth tuning on, and why each of the others is not.

`select` drops what is broken or said twice, by rules that need no model. `keep_best` then keeps what a model
learns most from, by losses that the caller measured under the base model. Knows no model and no file format.
Flow: select → keep_best → summary, write.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from isogloss.data.examples import ParallelExample, Turn
from isogloss.data.formats.lines import nearest
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
from isogloss.languages.registry import resolve

RULES: Final = ("empty", "degenerate", "truncated", "wrong_language", "duplicate", "near_duplicate")
SCORE_RULES: Final = ("instruction_does_not_help", "below_share")
TOO_LONG: Final = "too_long"
"""Why an example is dropped that has more tokens than stage 1 reads in a row."""


@dataclass(frozen=True)
class Dropped:
    """An example that was not kept: the rule's name, and what it saw."""

    example_id: str
    reason: str
    detail: str


@dataclass(frozen=True)
class Selection:
    """What was kept and what was dropped, both in the order given."""

    kept: tuple[ParallelExample, ...]
    dropped: tuple[Dropped, ...]


def select(
    examples: Iterable[ParallelExample],
    *,
    language: str = "en",
    rules: Sequence[str] = RULES,
    max_chars: int = 8_000,
    near: float = 0.9,
) -> Selection:
    """Keep the examples that pass every rule; each other one is dropped by the first that it fails.

    empty           No instruction or response in the language, or only white space.
    degenerate      The response repeats one unit over half of itself, equals the instruction (unless the
                    task copies, repeats or translates), or is longer than `max_chars`.
    truncated       A long free text that ends in mid-sentence, in an open bracket or quotation, or any
                    text that ends in open code. Short answers and lists without full stops pass.
    wrong_language  Most letters are not of the language's script, or the detector (texts of 40 letters
                    and more) is sure of another language. Tasks that translate are not looked at.
    duplicate       Instruction and response equal an earlier example's but for case, width and spaces.
    near_duplicate  An instruction of 20 words and more has the content words of an earlier one in the same
                    order, and `near` of the character 5-grams (Jaccard). Any other content word, or
                    number, keeps both: items made from one template are not duplicates.

    Args:
        examples: Any number; fifty thousand take well under a minute.
        language: The language whose turns are looked at.
        rules: Which of `RULES` to use; their order is always the one above.
        max_chars: What counts as too long a response.
        near: The Jaccard similarity from which a near duplicate is dropped.

    Raises:
        ConfigError: A rule is unknown, or `near` is not a share.
        UnknownLanguageError: No language is called so.
    """
    for rule in rules:
        if rule not in RULES:
            raise ConfigError(f"{rule!r} is not a rule; {nearest(rule, RULES)}")
    if not 0 < near <= 1:
        raise ConfigError(f"near is {near}; it must be above 0 and at most 1")
    code = resolve(language).code
    checks: dict[str, Callable[[ParallelExample, Turn], str | None]] = {
        "empty": lambda example, turn: empty(turn),
        "degenerate": lambda example, turn: degenerate(example.task, turn, max_chars),
        "truncated": lambda example, turn: truncation(turn.response or "", code),
        "wrong_language": lambda example, turn: wrong_language(example.task, turn, code),
        "duplicate": Duplicates(),
        "near_duplicate": NearDuplicates(near),
    }
    used = [(rule, checks[rule]) for rule in RULES if rule in rules]
    kept: list[ParallelExample] = []
    dropped: list[Dropped] = []
    for example in examples:
        turn = example.turns.get(code, Turn(""))
        found = ((rule, check(example, turn)) for rule, check in used)
        failed = next(((rule, detail) for rule, detail in found if detail), None)
        if failed:
            dropped.append(Dropped(example.id, *failed))
        else:
            kept.append(example)
    return Selection(tuple(kept), tuple(dropped))


def instruction_following_difficulty(
    loss_with: Sequence[float], loss_without: Sequence[float]
) -> list[float]:
    """How little the instruction helps the base model to foresee each response; 1 when not at all.

    The ratio of two mean losses of the response's tokens: after its instruction, and alone (Li et al.
    2024, arXiv:2308.12032). High means hard: much to learn. Over 1 the instruction misleads.

    Raises:
        ValueError: The lengths differ, or a loss is not finite, below 0, or 0 without the instruction.
    """
    ratios = []
    for index, (told, alone) in enumerate(zip(loss_with, loss_without, strict=True)):
        if not (0 <= told < math.inf and 0 < alone < math.inf):
            raise ValueError(f"losses {index} are {told} and {alone}; they must be finite and above 0")
        ratios.append(told / alone)
    return ratios


def keep_best(examples: Sequence[ParallelExample], scores: Sequence[float], share: float) -> Selection:
    """Keep the hardest share of the examples whose instruction helps at all.

    Those with a ratio of 1 and more go first (instruction_does_not_help). Of the rest, `share` with the
    highest ratios stay, rounded to a whole number and at least one of those; equal ratios go by order.

    Args:
        examples: What `select` kept.
        scores: Their `instruction_following_difficulty`.
        share: Of the examples below 1, how much to keep: above 0, at most 1.

    Raises:
        ConfigError: `share` is not in that range.
        ValueError: The lengths differ, or a score is not a number.
    """
    if not 0 < share <= 1:
        raise ConfigError(f"share is {share}; it must be above 0 and at most 1")
    rows = list(zip(examples, scores, strict=True))
    if any(math.isnan(score) for score in scores):
        raise ValueError("a score is not a number; every score must be one")
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
    """How many examples each rule dropped, in the order of the rules; rules that dropped none are absent."""
    counts = Counter(dropped.reason for dropped in selection.dropped)
    return {reason: counts[reason] for reason in (*RULES, TOO_LONG, *SCORE_RULES) if counts[reason]}


def write(selection: Selection, path: Path) -> None:
    """Write one line per example, first the kept: its id, whether it was kept, else reason and detail."""
    rows: list[dict[str, Any]] = [{"id": example.id, "kept": True} for example in selection.kept]
    rows += [
        {"id": dropped.example_id, "kept": False, "reason": dropped.reason, "detail": dropped.detail}
        for dropped in selection.dropped
    ]
    write_lines(path, rows)
