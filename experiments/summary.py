"""Rows of several seeds in one: means with intervals, and what ours saves beside reinforcement learning.

Flow: rows of methods.json → by method, scores and costs over seeds; by seed, the best RL method and ours.
"""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from scipy.special import stdtrit

RL = ("dpo", "grpo", "sft-grpo")
BEST_RL, OWN_BEST = "best-rl", "own-best"
COSTS = ("flops", "seconds")
SCORES = ("alignment", "consistency", "retrieval", "accuracy", "fidelity", "retention")
FEWEST = 3
"""Seeds that a t interval is made from; fewer are shown as they are."""

Row = Mapping[str, Any]


def over_seeds(values: Iterable[float]) -> dict[str, Any]:
    """Mean and 95 % t interval over seeds; the smallest and the largest value where there are under `FEWEST`.

    Returns:
        `mean`, `low`, `high`, `n`, and in `interval` which of the two it is: "t" or "min-max".
    """
    values = [float(value) for value in values]
    mean, n = statistics.fmean(values), len(values)
    if n < FEWEST:
        return {"mean": mean, "low": min(values), "high": max(values), "n": n, "interval": "min-max"}
    half = float(stdtrit(n - 1, 0.975)) * statistics.stdev(values) / n**0.5
    return {"mean": mean, "low": mean - half, "high": mean + half, "n": n, "interval": "t"}


def ratios(cost: Row, ours: Row) -> dict[str, float]:
    """How many times ours it is."""
    return {name: cost[name] / ours[name] for name in COSTS}


def summary(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """An entry per method, over its seeds.

    What a level cost to reach (`reached`), and how many `times` ours, is over the seeds that reached it, `n`
    of them; null where none did. Then `not_within` is the least of the seeds' bounds.
    """
    found = []
    for method in dict.fromkeys(row["method"] for row in rows):
        group = [row for row in rows if row["method"] == method]
        entry: dict[str, Any] = {"method": method, "seeds": len(group)}
        for name in (*SCORES, *COSTS):
            values = [row[name] for row in group if row[name] is not None]
            entry[name] = over_seeds(values) if values else None
        entry |= {"levels": {}, "reached": {}, "times": {}, "not_within": {}}
        for level in dict.fromkeys(level for row in group for level in row["reached"]):
            asked = [row for row in group if level in row["reached"]]
            there = [row for row in asked if row["reached"][level]]
            both = [row for row in there if row["ours"][level]]
            bounds = [bound for row in asked if (bound := row["not_within"].get(level))]
            entry["levels"][level] = over_seeds(row["levels"][level] for row in asked)
            entry["reached"][level] = _costs(row["reached"][level] for row in there)
            entry["times"][level] = _costs(ratios(row["reached"][level], row["ours"][level]) for row in both)
            if not there:
                least = {name: min(bound[name] for bound in bounds) for name in COSTS} if bounds else None
                entry["not_within"][level] = least
        found.append(entry)
    return found


def saving(rows: Sequence[Row]) -> dict[str, Any]:
    """Share of its cost by which ours is below the best RL method's, both to where that method comes.

    Returns:
        By seed which method it was, the alignment accuracy it reached, and the shares in `flops` and
        `seconds`, null where ours did not come as far; both shares over the seeds, null where there is none.
    """
    seeds: dict[int, dict[str, Any]] = {}
    for row in rows:
        best = row["reached"].get(BEST_RL)
        if row["method"] in RL and best and row["seed"] not in seeds:
            ours = row["ours"][BEST_RL]
            seeds[row["seed"]] = {
                "seed": row["seed"],
                "method": row["method"],
                "alignment": row["levels"][BEST_RL],
                **{name: 1 - ours[name] / best[name] if ours else None for name in COSTS},
            }
    found = list(seeds.values())
    return {
        "seeds": found,
        **(_costs(one for one in found if one["flops"] is not None) or dict.fromkeys(COSTS)),
    }


def _costs(costs: Iterable[Row]) -> dict[str, Any] | None:
    costs = list(costs)
    return {name: over_seeds(cost[name] for cost in costs) for name in COSTS} if costs else None
