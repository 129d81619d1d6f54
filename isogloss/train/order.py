"""The training order of rows: languages balanced, rows of similar length batched together."""

import random
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from isogloss.config import Distill, Tune
from isogloss.data.draw import shares as shared_out
from isogloss.languages import SOURCE
from isogloss.teacher.rows import Row


def english_order(lengths: Sequence[int], settings: Tune, seed: int) -> list[int]:
    """Return the row numbers in stage 1's training order; `lengths` are the rows' tokens."""
    return row_order(
        [SOURCE] * len(lengths),
        round(len(lengths) * settings.epochs),
        balance=1.0,
        batch=settings.batch_size,
        alike=lengths,
        seed=seed,
    )


def training_order(rows: Sequence[Row], settings: Distill, seed: int) -> list[int]:
    """Return the row numbers in stage 2's training order; English rows, if any, get the replay share."""
    parallel = sum(row.language != SOURCE for row in rows)
    replay = settings.replay_fraction if parallel < len(rows) else 0.0
    return row_order(
        [row.language for row in rows],
        round(settings.epochs * parallel / (1 - replay)),
        balance=settings.sampling_temperature,
        batch=settings.batch_size,
        seed=seed,
        fixed={SOURCE: replay},
        alike=[(row.bare, row.tokens) for row in rows],
        # Bare sentences have no response: they train nothing once the hidden-state term has decayed to 0.
        early=[n for n, row in enumerate(rows) if row.bare] if settings.similarity_decay else (),
        within=settings.similarity_decay,
    )


def row_order(
    languages: Sequence[str],
    draws: int,
    *,
    balance: float,
    batch: int,
    alike: Sequence[Any],
    seed: int,
    fixed: Mapping[str, float] | None = None,
    early: Collection[int] = (),
    within: float = 1.0,
) -> list[int]:
    """Return row numbers in training order, with languages balanced.

    A row is repeated only after all rows of its language.

    Args:
        draws: Total number of rows read; rounded down to whole batches, at least one.
        balance: A language of n rows is drawn in proportion to n^(1/balance).
        alike: Sort key of each row, such as its tokens: rows are sorted by it within windows of eight
            batches, so that a batch holds similar rows.
        fixed: Share of all draws for a language, regardless of its number of rows.
        early: Rows that are read within the first `within` of the draws, as far as they fit.
        within: Share of the draws, from 0 to 1.
    """
    rng = random.Random(seed)
    rows_of: dict[str, list[int]] = {}
    for number, code in enumerate(languages):
        rows_of.setdefault(code, []).append(number)
    fixed = {code: share for code, share in (fixed or {}).items() if code in rows_of}
    weights = {code: len(rows) ** (1 / balance) for code, rows in rows_of.items() if code not in fixed}
    free = 1 - sum(fixed.values())
    shares = {code: free * weight / sum(weights.values()) for code, weight in weights.items()} | fixed
    draws = max(batch, draws // batch * batch)
    drawn: list[int] = []
    for code, wanted in shared_out(draws, shares, dict.fromkeys(shares, draws)).items():
        queue: list[int] = []
        for _ in range(wanted):
            if not queue:
                queue = rng.sample(rows_of[code], len(rows_of[code]))
            drawn.append(queue.pop())
    rng.shuffle(drawn)
    if early:
        first = set(early)
        those, others = ([n for n in drawn if (n in first) == one] for one in (True, False))
        room = max(0, int(within * draws) - len(those))
        begin = those + others[:room]
        rng.shuffle(begin)
        drawn = begin + others[room:]
    ordered: list[int] = []
    window = 8 * batch
    for start in range(0, draws, window):
        part = sorted(drawn[start : start + window], key=lambda number: alike[number])
        batches = [part[i : i + batch] for i in range(0, len(part), batch)]
        rng.shuffle(batches)
        ordered.extend(number for one in batches for number in one)
    return ordered
