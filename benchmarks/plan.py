"""Compare the memory and FLOPs predicted by `isogloss plan` with measurements.

    python benchmarks/plan.py --run runs/demo --steps benchmarks/distill_step.json --out benchmarks/plan.json

Covers every stage of a finished run, from its ledger, and one optimiser step of W1 with a live teacher, as
measured on a CPU by `benchmarks/distill_step.py` (`--steps` is its output). Run both on the machine that runs
this.
"""

import argparse
import json
import tempfile
from pathlib import Path

from distill_step import WORKLOADS, Workload, languages_of, ranks, rows_of
from machine import about, put
from transformers import AutoConfig

from isogloss.adapters.tree import build_tree
from isogloss.config import Config, load_config
from isogloss.pipeline.logging import quiet
from isogloss.plan.machine import this_machine
from isogloss.plan.preflight import plan
from isogloss.plan.stages import distill_plan
from isogloss.plan.work import StagePlan, Work


def row(what: str, stage: StagePlan, flops: float, memory: int) -> dict:
    return {
        "what": what,
        "stage": stage.stage,
        "planned_flops": stage.flops,
        "measured_flops": flops,
        "planned_bytes": stage.memory_bytes,
        "measured_bytes": memory,
        "parts": stage.memory,
        "flops_ratio": stage.flops / flops,
        "bytes_ratio": stage.memory_bytes / memory,
    }


def of_run(folder: Path) -> list[dict]:
    """Return a row per stage."""
    config = load_config(folder / "config.yaml").model_copy(update={"run": folder})
    ledger = {one["stage"]: one for one in json.loads((folder / "ledger.json").read_text("utf-8"))["stages"]}
    return [
        row(folder.name, stage, ledger[stage.stage]["flops"], ledger[stage.stage]["peak_memory_bytes"])
        for stage in plan(config, this_machine(config.dtype)).stages
    ]


def step_of(work: Workload) -> StagePlan:
    """Return the plan of one step of the workload, including the teacher's signals."""
    with tempfile.TemporaryDirectory() as folder:
        kind = dict(work.model)
        AutoConfig.for_model(kind.pop("model_type"), **kind).save_pretrained(folder)
        settings: Config = load_config(
            None,
            [
                f"model={folder}",
                "dtype=bfloat16",
                f"distill.batch_size={work.rows}",
                "distill.epochs=1",
                "distill.kl_weight=1",
                "distill.similarity_weight=1",
                "distill.replay_fraction=0",
                "distill.similarity_decay=0",
                f"distill.adapter.ranks={json.dumps(ranks(work))}",
                f"distill.adapter.target_modules={json.dumps(work.targets)}",
                f"distill.adapter.layers={work.model['num_hidden_layers']}",
            ],
        )
        planned = Work(settings, this_machine(settings.dtype))
        vars(planned).update(rows=rows_of(work), tree=build_tree(languages_of(work), ranks=ranks(work)))
        return distill_plan(planned)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--run", type=Path, action="append", default=[], help="a finished run's folder")
    parser.add_argument("--steps", type=Path, help="the JSON of benchmarks/distill_step.py with W1")
    parser.add_argument("--out", type=Path, help="JSON file; printed if not given")
    given = parser.parse_args()
    quiet()
    rows = [one for folder in given.run for one in of_run(folder)]
    if given.steps:
        measured = {
            (one["workload"], one["contender"]): one for one in json.loads(given.steps.read_text("utf-8"))
        }
        found = measured["W1", "isogloss-live"]
        rows.append(row("W1", step_of(WORKLOADS["W1"]), found["flops"], found["peak_rss_bytes"]))
    put({"rows": rows, **about("isogloss", "torch", "transformers")}, given.out)


if __name__ == "__main__":
    main()
