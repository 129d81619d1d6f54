"""Which settings serve the reinforcement-learning baselines best: each trained for a while, scored on dev.

    python benchmarks/rl_search.py --out benchmarks/rl_search.json

One reference model, one seed; every candidate is stopped after the same seconds, its step grown and shrunk
within them; later ones start from the best so far. Rows are added as candidates end; one that is there is not
trained again. Nothing here is counted as a method's cost.
Install `isogloss[rl]`.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

from machine import processor

from isogloss.baselines import methods
from isogloss.baselines.contest import Contest, Entry
from isogloss.config import load_config
from isogloss.files import write_json
from isogloss.pipeline import Watcher, open_run, run_tune

START: dict[str, dict[str, Any]] = {
    "grpo": {
        "learning_rate": 1e-3, "beta": 0.0, "num_generations": 8, "temperature": 1.0,
        "steps_per_generation": 4,
    },
    "dpo": {
        "learning_rate": 5e-4, "beta": 0.1, "loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 1.0],
    },
    "sft-grpo": dict(methods.GRPO),
}  # fmt: skip
"""Where the search starts."""
SEARCH: dict[str, list[list[dict[str, Any]]]] = {
    "grpo": [
        [{"learning_rate": 1e-3}, {"learning_rate": 3e-3}, {"learning_rate": 1e-2}],
        [{"num_generations": 4}, {"beta": 0.04}],
    ],
    "dpo": [
        [{"learning_rate": 5e-4}, {"learning_rate": 2e-3}, {"learning_rate": 5e-3}],
        [{"beta": 0.5}],
    ],
    "sft-grpo": [[{"learning_rate": 1e-4}, {"learning_rate": 3e-4}, {"learning_rate": 1e-3}]],
}
"""Rounds of changes; each round changes the best candidate of the rounds before."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/rl-search"), help="run folder of stage 1")
    parser.add_argument("--seconds", type=float, default=120.0, help="training time of a candidate")
    parser.add_argument("--method", choices=tuple(SEARCH), action="append")
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
    pairs, drawn_s = None, 0.0
    for method in asked.method or SEARCH:
        seen: list[dict[str, Any]] = []
        for changes in SEARCH[method]:
            best = max(seen, key=lambda row: row["alignment"])["settings"] if seen else START[method]
            for settings in [{**best, **change} for change in changes]:
                known = [r for r in rows if (r["method"], r["settings"]) == (method, settings)]
                if known:
                    seen += known
                    continue
                if method == "dpo" and pairs is None:
                    began = time.monotonic()
                    pairs = methods.preference_pairs(contest, run.reference_model())
                    drawn_s = time.monotonic() - began
                entry = _train(contest, method, settings, pairs)
                rows.append(
                    {
                        "method": method, "settings": settings, "seconds": entry.seconds,
                        "drawn_s": round(drawn_s, 1), "flops": entry.flops, "step": entry.points[-1].step,
                        **entry.points[-1].scores,
                    }
                )  # fmt: skip
                seen.append(rows[-1])
                print(json.dumps(rows[-1]), flush=True)
                write_json(asked.out, {"schema": 1, "processor": processor(), "rows": rows})


def _train(contest: Contest, method: str, settings: dict[str, Any], pairs: Any) -> Entry:
    if method == "dpo":
        return methods.dpo(contest, settings, pairs)
    return {"grpo": methods.grpo, "sft-grpo": methods.sft_grpo}[method](contest, settings)


if __name__ == "__main__":
    main()
