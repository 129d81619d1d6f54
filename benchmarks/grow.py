"""Compare a language added to a finished run with a run that had it from the start.

    python benchmarks/grow.py --seeds 3 --out benchmarks/grow.json

Runs the demo with twelve languages, and with fourteen (German and Chinese added), on one reference model per
seed. Then each of the two is added separately to a copy of the run of twelve. Its cost can be compared with
the FLOPs of stage 2 with fourteen languages. A stopped benchmark resumes.
"""

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

from ablated import ablate
from machine import about, put

from isogloss.config import dump_config, load_config

JOINING = ("de", "zh")
"""One language whose family is in the tree, and one without a relative in it."""
WITH = "from-start"


def command(*words: str | Path) -> None:
    subprocess.run([sys.executable, "-m", "isogloss", *map(str, words)], check=True)


def join(run: Path, seed: int, code: str, joining: list[str]) -> None:
    """Copy the seed's run of twelve languages, add a language to it, and evaluate it."""
    if not run.exists():
        part = run.with_name(run.name + ".part")
        shutil.rmtree(part, ignore_errors=True)
        shutil.copytree(run.with_name(f"families-{seed}"), part)
        (part / "scores.json").unlink()
        config = load_config(part / "config.yaml").model_copy(update={"run": run})
        (part / "config.yaml").write_text(dump_config(config), encoding="utf-8")
        command("add-language", part, code, *(word for one in joining for word in ("--set", one)))
        part.rename(run)
    command("evaluate", run)


def scores(run: Path, code: str) -> dict[str, float]:
    """Return a language's alignment and its two parts, consistency and retrieval."""
    after = json.loads((run / "scores.json").read_text("utf-8"))["suites"]["demo"]["after"]
    return {
        name: after[name]["languages"][code]["value"] for name in ("alignment", "consistency", "retrieval")
    }


def flops(run: Path, stage: str) -> float:
    stages = json.loads((run / "ledger.json").read_text("utf-8"))["stages"]
    return next(one["flops"] for one in stages if one["stage"] == stage)


def row(joined: Path, seed: int, code: str) -> Mapping:
    start = joined.with_name(f"{WITH}-{seed}")
    return {
        "language": code,
        "seed": seed,
        "joined": scores(joined, code),
        "from_start": scores(start, code),
        "flops": flops(joined, f"add {code}"),
        "from_start_flops": flops(start, "distill"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=1, help="parallel runs")
    parser.add_argument("--runs", type=Path, default=Path("runs/grow"), help="folder for all runs")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="setting for all runs"
    )
    parser.add_argument(
        "--joining", action="append", default=[], metavar="NAME=VALUE", help="setting for adding a language"
    )
    parser.add_argument(
        "--name", default="joined", help="name prefix of runs with an added language; one per --joining"
    )
    parser.add_argument("--out", type=Path, help="JSON file; printed if not given")
    given = parser.parse_args()
    targets = ",".join((*load_config().languages.targets, *JOINING))
    variants = ("families", f"{WITH}: languages.targets=[{targets}]")
    seeds = ablate(given, variants, "--jobs", str(given.jobs))
    calls = [
        (given.runs / f"{given.name}-{code}-{seed}", seed, code) for seed, code in product(seeds, JOINING)
    ]
    with ThreadPoolExecutor(given.jobs) as pool:
        list(pool.map(lambda call: join(*call, given.joining), calls))
    rows = [row(*call) for call in calls]
    put(
        {"settings": given.set, "joining": given.joining, "rows": rows, **about("isogloss", "torch")},
        given.out,
    )


if __name__ == "__main__":
    main()
