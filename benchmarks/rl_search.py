"""Which settings serve the reinforcement-learning baselines best: each trained for a while, scored on dev.

    python benchmarks/rl_search.py --out benchmarks/rl_search.json

One reference model, one seed; every candidate changes the settings of `isogloss.baselines.methods` that are
named in its row, and is stopped after the same seconds. Rows are added as candidates end; one that is there
is not trained again. Nothing here is counted as a method's cost. Install `isogloss[rl]`.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

from machine import processor

from isogloss.baselines import methods
from isogloss.baselines.contest import Contest
from isogloss.config import load_config
from isogloss.files import write_json
from isogloss.pipeline import Watcher, open_run, run_tune

GRPO: list[dict[str, Any]] = [
    {},
    {"learning_rate": 1e-3},
    {"learning_rate": 3e-3},
    {"learning_rate": 1e-3, "num_generations": 4},
    {"learning_rate": 1e-3, "num_generations": 16},
    {"learning_rate": 1e-3, "temperature": 1.3},
    {"learning_rate": 1e-3, "beta": 0.04},
    {"learning_rate": 1e-3, "num_iterations": 2},
]
DPO: list[dict[str, Any]] = [
    {},
    {"learning_rate": 5e-4},
    {"learning_rate": 2e-3},
    {"learning_rate": 5e-4, "beta": 0.5},
    {"learning_rate": 5e-4, "loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 1.0]},
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/rl-search"), help="run folder of stage 1")
    parser.add_argument("--seconds", type=float, default=120.0, help="training time of a candidate")
    parser.add_argument("--method", choices=("grpo", "dpo"), action="append")
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    overrides = [
        f"run={asked.run}", "evaluate.split=dev", "evaluate.items=70", "evaluate.sentences=100",
    ]  # fmt: skip
    run = open_run(load_config(None, overrides), Watcher())
    run_tune(run)
    contest = Contest(run, points=1)
    contest.limit = asked.seconds
    rows = json.loads(asked.out.read_text("utf-8"))["rows"] if asked.out.exists() else []
    candidates = [("grpo", one) for one in GRPO] + [("dpo", one) for one in DPO]
    pairs = None
    for method, change in candidates:
        known = any((row["method"], row["change"]) == (method, change) for row in rows)
        if known or method not in (asked.method or ("grpo", "dpo")):
            continue
        drawn_s = None
        if method == "grpo":
            entry = methods.grpo(contest, {**methods.GRPO, **change})
        else:
            began = time.monotonic()
            if pairs is None:
                pairs = methods.preference_pairs(contest, run.reference_model())
                drawn_s = round(time.monotonic() - began, 1)
            entry = methods.dpo(contest, {**methods.DPO, **change}, pairs)
        rows.append(
            {
                "method": method, "change": change, "seconds": entry.seconds, "drawn_s": drawn_s,
                "flops": entry.flops, "step": entry.points[-1].step, **entry.points[-1].scores,
            }
        )  # fmt: skip
        print(json.dumps(rows[-1]), flush=True)
        write_json(
            asked.out,
            {"schema": 1, "processor": processor(), "grpo": methods.GRPO, "dpo": methods.DPO, "rows": rows},
        )


if __name__ == "__main__":
    main()
