"""The order in which steps read the rows: languages balanced, rows of like length together."""

import random
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from isogloss.config import Distill
from isogloss.data.draw import shares as shared_out
from isogloss.languages import SOURCE
from isogloss.teacher.rows import Row


def training_order(rows: Sequence[Row], settings: Distill, seed: int) -> list[int]:
    """Row numbers in the order in which stage 2 reads them; English gets its share where there is any."""
    parallel = sum(row.language != SOURCE for row in rows)
    replay = settings.replay_fraction if parallel < len(rows) else 0.0
    return schedule(
        [row.language for row in rows],
        round(settings.epochs * parallel / (1 - replay)),
        balance=settings.sampling_temperature,
        batch=settings.batch_size,
        seed=seed,
        fixed={SOURCE: replay},
        alike=[(row.bare, row.tokens) for row in rows],
        # Nobody answers a bare sentence: once the hidden-state term has faded it teaches nothing.
        early=[n for n, row in enumerate(rows) if row.bare] if settings.similarity_decay else (),
        within=settings.similarity_decay,
    )


def schedule(
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
    """Row numbers in the order of training: languages balanced, every row of a language before any again.

    Args:
        languages: The language of each row.
        draws: How many rows are read in all; rounded down to whole batches.
        balance: A language of n rows is drawn in proportion to n^(1/balance).
        batch: Rows per batch; rows that are alike are put together within windows of eight batches.
        alike: What rows of a batch are to be alike in, such as their tokens; sorted by.
        fixed: Share of all draws that a language gets whatever its rows.
        early: Rows that are read in the first `within` of the draws, as far as they have room there.
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
