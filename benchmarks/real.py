"""Benchmark of a real model: our method, its ablations and baselines, on one reference model per seed.

    python benchmarks/real.py --data-root FOLDER
    python benchmarks/real.py --data-root FOLDER --variants ours,sft --seeds 3 --set evaluate.items=30
    python benchmarks/real.py --finished ours=runs/real --setting scarce
    python benchmarks/real.py --finished ours=runs/real-parallel --setting parallel
    (a bundle, such as benchmarks/real/parallel-seed-0, is first copied and evaluated: isogloss evaluate COPY)

Dev data only. Every variant is a run of `python -m experiments.ablate` with the setting's example, so a
stopped benchmark resumes and trains nothing twice; `--finished` adds an existing run. Rows have the measures
by suite and language; `summary` has, by variant and setting, means over seeds and intervals over items.
`python benchmarks/real.py --page` generates docs/results.md from the results.
"""

import argparse
import json
import statistics
from pathlib import Path

import real_page
import yaml
from ablated import ablate
from machine import about, put

from isogloss.evaluate.signature import fields_of

ROOT = Path(__file__).parent.parent
SETTINGS = {"scarce": "examples/real.yaml", "parallel": "examples/real-parallel.yaml"}
"""Example files by setting: unlabelled instructions alone, or all unlabelled parallel text too."""
VARIANTS = {
    "ours": "families",
    "sft": "sft",
    "no-divergence": "no-kl",
    "no-hidden": "no-hidden",
    "prompt": "prompt: distill.teacher_view=prompt distill.teacher_reads=[twin]",
    "shared": "shared",
    "flat": "flat",
    "random": "random",
}
"""Names of variants, and their `--variant` for `experiments.ablate`."""
LOW = ("sw", "ur")
"""Languages of `alignment_low`."""
SUMMARY = (
    "alignment_mastered",
    "alignment_all",
    "consistency_mastered",
    "consistency_all",
    "retrieval",
    "retrieval_raw",
    "alignment_low",
    "fidelity",
    "retention",
)


def rows_of(run: Path, variant: str, seed: int, setting: str) -> list[dict]:
    """Return one row per suite of an evaluated run; the cost is None for a bundle, which does not have it."""
    scores = json.loads((run / "scores.json").read_text("utf-8"))
    stages = json.loads((run / "ledger.json").read_text("utf-8"))["stages"]
    cost = next((stage for stage in stages if stage["stage"] == "distill"), {})
    made = []
    for suite, found in scores["suites"].items():
        split = fields_of(found["signature"])["split"]
        if not split.startswith("dev"):
            raise SystemExit(f"{run}: {suite} was evaluated on {split}; only dev data is allowed")
        measures = {
            side: {
                name: {code: one["value"] for code, one in measure["languages"].items()}
                for name, measure in found[side].items()
            }
            for side in ("before", "after")
        }
        made.append(
            {
                "variant": variant,
                "seed": seed,
                "setting": setting,
                "suite": suite,
                "split": "dev",
                "signature": found["signature"],
                **measures,
                "tasks": found["tasks"],
                "english": found["english"],
                "flops": cost.get("flops"),
                "seconds": cost.get("seconds"),
            }
        )
    return made


def summarise(runs: list[tuple[str, dict]]) -> dict[str, dict]:
    """Return each measure's mean and interval over items by variant, both averaged over seeds.

    `reference` is the model before stage 2.

    Args:
        runs: Pairs of a variant and the `summary` of one seed's scores.
    """
    grouped: dict[str, list[dict]] = {}
    for variant, summary in runs:
        grouped.setdefault(variant, []).append(summary["after"])
        if variant == "ours":
            grouped.setdefault("reference", []).append(summary["before"])
    found: dict[str, dict] = {}
    for variant, seeds in grouped.items():
        for name in SUMMARY:
            values = [value for one in seeds if (value := _value(one, name))]
            if values:
                bounds = {bound: statistics.fmean(one[bound] for one in values) for bound in values[0]}
                found.setdefault(variant, {})[name] = bounds | {"seeds": len(values)}
    return found


def _value(side: dict, name: str) -> dict[str, float] | None:
    """Return a measure's mean and interval; `alignment_low` covers the same languages in every setting."""
    if name != "alignment_low":
        one = side.get(name)
        return one and {bound: one.get(bound, one["mean"]) for bound in ("mean", "low", "high")}
    each = side.get("alignment_all", {}).get("languages", {})
    some = [each[code] for code in LOW if code in each]
    names = {"mean": "value", "low": "low", "high": "high"}
    return (
        {bound: statistics.fmean(one[key] for one in some) for bound, key in names.items()} if some else None
    )


def training(given: argparse.Namespace) -> list[tuple[str, int, Path]]:
    """Train and evaluate what is missing; return variant, seed and run folder of each run."""
    names = given.variants.split(",")
    if unknown := [name for name in names if name not in VARIANTS]:
        raise SystemExit(f"there is no variant {unknown[0]}; choose from {', '.join(VARIANTS)}")
    example = str(ROOT / SETTINGS[given.setting])
    variants = [VARIANTS[name] for name in names]
    seeds = ablate(given, variants, example, "--data-root", str(given.data_root))
    folders = {name: VARIANTS[name].partition(":")[0] for name in names}
    return [(n, seed, given.runs / f"{folders[n]}-{seed}") for n in names for seed in seeds]


def main() -> None:
    """Train and evaluate what is missing, or add finished runs, then write all rows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-root", type=Path, help="folder of public datasets")
    parser.add_argument("--variants", default="ours,sft,no-divergence,shared")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--setting", choices=SETTINGS, default="scarce")
    parser.add_argument("--runs", type=Path, default=Path("runs/real-benchmark"))
    parser.add_argument("--finished", action="append", default=[], metavar="VARIANT=RUN")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "real.json")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--page", action="store_true", help="only write docs/results.md from --out")
    given = parser.parse_args()
    old = json.loads(given.out.read_text("utf-8")) if given.out.exists() else {"summary": {}, "rows": []}
    if given.page:
        real_page.write(old, ROOT / "docs" / "results.md")
        return
    if given.finished:
        found = []
        for one in given.finished:
            variant, _, folder = one.partition("=")
            seed = int(yaml.safe_load((Path(folder) / "config.yaml").read_text("utf-8")).get("seed", 0))
            found.append((variant, seed, Path(folder)))
    elif given.data_root is None:
        parser.error("--data-root is required for training")
    else:
        found = training(given)
    rows, runs = [], []
    for variant, seed, run in found:
        rows += rows_of(run, variant, seed, given.setting)
        summary = json.loads((run / "scores.json").read_text("utf-8"))["summary"]
        runs.append((variant, summary))
    names = {variant for variant, _, _ in found}
    kept = [row for row in old["rows"] if row["setting"] != given.setting or row["variant"] not in names]
    summary = old["summary"]
    for variant, measures in summarise(runs).items():
        summary.setdefault(variant, {})[given.setting] = measures
    written = {
        "summary": summary,
        **about("isogloss", "torch", "transformers", "peft"),
        "overrides": given.set,
        "rows": kept + rows,
    }
    put(written, given.out)


if __name__ == "__main__":
    main()
