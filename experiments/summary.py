"""Summary over seeds: means with intervals, and our savings compared with reinforcement learning.

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
"""Minimum number of seeds for a t interval; with fewer, the range is shown."""

Row = Mapping[str, Any]


def over_seeds(values: Iterable[float]) -> dict[str, Any]:
    """Return the mean and 95 % t interval over seeds; with fewer than `FEWEST`, the minimum and maximum.

    Returns:
        `mean`, `low`, `high`, `n`, and the kind of `interval`: "t" or "min-max".
    """
    values = [float(value) for value in values]
    mean, n = statistics.fmean(values), len(values)
    if n < FEWEST:
        return {"mean": mean, "low": min(values), "high": max(values), "n": n, "interval": "min-max"}
    half = float(stdtrit(n - 1, 0.975)) * statistics.stdev(values) / n**0.5
    return {"mean": mean, "low": mean - half, "high": mean + half, "n": n, "interval": "t"}


def is_rl(method: str) -> bool:
    """Return whether a method, or one with other settings (`grpo: beta=0`), is reinforcement learning."""
    return method.partition(":")[0] in RL


def ratios(cost: Row, ours: Row) -> dict[str, float]:
    """Return the ratio of each cost to ours."""
    return {name: cost[name] / ours[name] for name in COSTS}


def summary(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return an entry per method, over its seeds.

    The cost to reach a level (`reached`) is over the `n` seeds that reached it, its ratio to ours (`times`)
    over those where ours reached it too; null if there are none. If no seed reached the level, `not_within`
    is the smallest of the seeds' bounds.
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
    """Return the share of the best RL method's cost that ours saves to reach the same alignment accuracy.

    Returns:
        By seed: the method, the alignment accuracy it reached, and the saved shares of `flops` and `seconds`,
        null if ours did not reach that level; then both shares over the seeds, null if there are none.
    """
    seeds: dict[int, dict[str, Any]] = {}
    for row in rows:
        best = row["reached"].get(BEST_RL)
        if is_rl(row["method"]) and best and row["seed"] not in seeds:
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
