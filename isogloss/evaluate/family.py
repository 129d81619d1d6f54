"""Consistency family: how consistently all languages, including English, answer closed questions.

In addition to consistency with English, the training target, these measures give the agreement between pairs
and sets of languages and the similarity of full option rankings, for one side (before or after) at a time.
Model-independent: takes meanings and rankings.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean
from typing import Any

from isogloss.evaluate.metrics import (
    ac3,
    agreement,
    correct_overlap,
    rank_c,
    rank_c_chance,
    rank_c_shuffled,
    seaeval_consistency,
)
from isogloss.languages import SOURCE


@dataclass(frozen=True)
class Closed:
    """The answer to a closed question: its meaning, whether it is right, and all options ranked."""

    meaning: str | None
    right: bool
    ranking: tuple[str, ...] | None = None


def consistency_family(answers: Mapping[str, Mapping[str, Closed]], *, seed: int) -> dict[str, Any]:
    """Compute every measure on the items that all languages answer; empty if there are none.

    Languages that share no item with English are left out.

    Args:
        answers: By language (including English) and item ID.
        seed: Seed of the shuffled RankC.
    """
    english = answers.get(SOURCE, {})
    codes = [code for code in answers if answers[code].keys() & english.keys()]
    if len(codes) < 2:
        return {}
    shared = [id for id in answers[codes[0]] if all(id in answers[code] for code in codes)]
    if not shared:
        return {}
    table = {code: [answers[code][id] for id in shared] for code in codes}
    meanings = {code: [one.meaning for one in row] for code, row in table.items()}
    right = {code: [one.right for one in row] for code, row in table.items()}
    accuracy = sum(sum(row) for row in right.values()) / (len(codes) * len(shared))
    sizes = {"2": 2, "3": 3, "all": len(codes)}
    several = {
        name: seaeval_consistency(meanings, size) for name, size in sizes.items() if size <= len(codes)
    }
    found: dict[str, Any] = {
        "items": len(shared),
        "languages": codes,
        "agreement": _matrix(codes, lambda a, b: fmean(agreement(meanings[a], meanings[b]))),
        "correct_overlap": _matrix(codes, lambda a, b: correct_overlap(right[a], right[b])),
        "consistency": several,
        "ac3": {name: ac3(value, accuracy) for name, value in several.items()},
    }
    ranked = {code: [one.ranking for one in row] for code, row in table.items()}
    if all(ranking is not None for row in ranked.values() for ranking in row):
        rankings = {code: [ranking or () for ranking in row] for code, row in ranked.items()}
        pairs = list(combinations(codes, 2))
        shuffled = [rank_c_shuffled(rankings[a], rankings[b], seed=seed) for a, b in pairs]
        known = [value for value in shuffled if value is not None]
        found["rankc"] = {
            "pairs": _matrix(codes, lambda a, b: fmean(rank_c(rankings[a], rankings[b]))),
            "chance": rank_c_chance([len(ranking) for ranking in rankings[codes[0]]]),
            "shuffled": fmean(known) if known else None,
        }
    return found


def _matrix(codes: Sequence[str], of: Any) -> dict[str, dict[str, float | None]]:
    """Compute a symmetric measure for every pair of different languages."""
    found: dict[str, dict[str, float | None]] = {code: {} for code in codes}
    for a, b in combinations(codes, 2):
        found[a][b] = found[b][a] = of(a, b)
    return found
