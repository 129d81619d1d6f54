"""Hyperparameter search for the reinforcement-learning baselines: short trainings, scored on dev data.

    python -m experiments.rl_search --out benchmarks/rl_search.json

One reference model, one seed. Every candidate trains for the same number of seconds, with the learning rate
schedule fitted to that time; later rounds start from the best candidate so far. Rows are added as candidates
finish, so a stopped search resumes with the same command; `spent_s` is the total time after stage 1, without
interrupted candidates. A best value at the edge of the searched range is reported. Nothing here counts as a
method's cost. Install `isogloss[rl]`.
"""

import argparse
import json
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.machine import processor
from experiments import methods
from experiments.contest import Contest, Entry
from isogloss.config import load_config
from isogloss.files import write_json
from isogloss.pipeline.folder import ProgressReporter, open_run
from isogloss.pipeline.stages import run_tune

START: dict[str, dict[str, Any]] = {
    "grpo": {
        "learning_rate": 1e-3,
        "beta": 0.0,
        "num_generations": 8,
        "temperature": 1.0,
        "steps_per_generation": 4,
    },
    "dpo": {
        "learning_rate": 5e-4,
        "beta": 0.1,
        "loss_type": ["sigmoid", "sft"],
        "loss_weights": [1.0, 1.0],
    },
    "sft-grpo": dict(methods.GRPO),
}
"""Settings from which the search starts."""
SEARCH: dict[str, list[list[dict[str, Any]]]] = {
    "grpo": [
        [{"learning_rate": 1e-3}, {"learning_rate": 3e-3}, {"learning_rate": 1e-2}],
        [{"num_generations": 4}, {"num_generations": 16}, {"beta": 0.04}, {"beta": 0.1}],
        [{"temperature": 0.7}, {"temperature": 1.3}],
    ],
    "dpo": [
        [{"learning_rate": 5e-4}, {"learning_rate": 2e-3}, {"learning_rate": 5e-3}],
        [{"beta": 0.03}, {"beta": 0.5}],
    ],
    "sft-grpo": [
        [{"learning_rate": rate} for rate in (3e-5, 1e-4, 3e-4, 1e-3)],
        [{"beta": 0.0}, {"beta": 0.1}],
        [{"temperature": 0.7}, {"temperature": 1.3}],
    ],
}
"""Rounds of changes; each round changes the best candidate of the previous rounds."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/rl-search"), help="run folder of stage 1")
    parser.add_argument("--seconds", type=float, default=120.0, help="training time of a candidate")
    parser.add_argument("--method", choices=tuple(SEARCH), action="append")
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    overrides = [
        f"run={asked.run}",
        "evaluate.split=dev",
        "evaluate.items=70",
        "evaluate.sentences=100",
    ]
    run = open_run(load_config(None, overrides), ProgressReporter())
    run_tune(run)
    contest = Contest(run, points=1)
    contest.limit = asked.seconds
    kept: dict[str, Any] = json.loads(asked.out.read_text("utf-8")) if asked.out.exists() else {"rows": []}
    rows = kept["rows"]
    before = kept.get("spent_s", sum(row["seconds"] for row in rows)) - time.monotonic()
    pairs = None
    for method in asked.method or SEARCH:
        for settings in untried(method, asked.seconds, rows):
            drawn = time.monotonic()
            if method == "dpo" and pairs is None:
                pairs = methods.preference_pairs(contest, run.reference_model())
            drawn_s = time.monotonic() - drawn
            entry = _train(contest, method, settings, pairs)
            rows.append(
                {
                    "method": method,
                    "settings": settings,
                    "limit_s": asked.seconds,
                    "seconds": entry.seconds,
                    "drawn_s": round(drawn_s, 1),
                    "flops": entry.flops,
                    "step": entry.points[-1].step,
                    **entry.points[-1].scores,
                }
            )
            print(json.dumps(rows[-1]), flush=True)
            spent = round(before + time.monotonic(), 1)
            write_json(asked.out, {"schema": 1, "processor": processor(), "spent_s": spent, "rows": rows})
        for line in edges(method, asked.seconds, rows):
            print(line)
    print(f"search time: {before + time.monotonic():.0f} s")


def untried(method: str, limit: float, rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield candidates without a row under this limit; add each one's row before asking for the next."""
    best, tried = START[method], []
    for changes in SEARCH[method]:
        # When a search resumes, rows of later rounds exist too; they must not change this round's start.
        tried += [best | change for change in changes]
        for settings in tried[-len(changes) :]:
            if not any(row["settings"] == settings for row in _alike(method, limit, rows)):
                yield settings
        best = _best(row for row in _alike(method, limit, rows) if row["settings"] in tried)


def edges(method: str, limit: float, rows: list[dict[str, Any]]) -> list[str]:
    """List settings of the best candidate that are the smallest or largest value tried."""
    best, found = _best(_alike(method, limit, rows)), []
    for name in {name for changes in SEARCH[method] for change in changes for name in change}:
        tried = sorted({row["settings"][name] for row in _alike(method, limit, rows)})
        if best[name] in (tried[0], tried[-1]) and best[name] != 0:
            found.append(f"{method}: {name} {best[name]:g} is at the edge of {tried[0]:g} to {tried[-1]:g}")
    return sorted(found)


def _best(rows: Iterable[dict[str, Any]]) -> dict[str, Any]:
    return max(rows, key=lambda row: row["alignment"])["settings"]


def _alike(method: str, limit: float, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for row in rows if (row["method"], row.get("limit_s")) == (method, limit)]


def _train(contest: Contest, method: str, settings: dict[str, Any], pairs: Any) -> Entry:
    if method == "dpo":
        return methods.dpo(contest, settings, pairs)
    return methods.METHODS[method](contest, settings)


if __name__ == "__main__":
    main()
