"""The real model: our method, its parts taken away one by one, and its opponents, one reference model a seed.

    python benchmarks/real.py --data-root FOLDER --out benchmarks/real.json
    python benchmarks/real.py --data-root FOLDER --variants ours,sft --seeds 3 --set evaluate.items=30

Dev data only. Every variant is a run of `isogloss ablate` over examples/real.yaml, so a stopped benchmark
goes on where it was, and trains nothing twice. Rows have the measures by suite and language;
`summary` has, by variant and setting, the means over seeds with the lowest and highest seed.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

from machine import about

EXAMPLE = Path(__file__).parent.parent / "examples" / "real.yaml"
VARIANTS = {
    "ours": "languages.tree=families",
    "sft": "distill.kl=0 distill.hidden=0 languages.tree=shared",
    "no-divergence": "distill.kl=0",
    "no-hidden": "distill.hidden=0",
    "prompt": "distill.teacher_view=prompt distill.teacher_reads=[twin]",
    "shared": "languages.tree=shared",
    "flat": "languages.tree=flat",
    "random": "languages.tree=random",
}
"""By name, what it changes in the example's stage 2. `sft` is what a user would do without us: cross-entropy
on the same rows, one adapter of the same capacity for all languages."""
SUMMARY = (
    "alignment_mastered", "alignment_all", "consistency_mastered", "consistency_all", "retrieval",
    "retrieval_raw", "alignment_low", "fidelity", "retention",
)  # fmt: skip


def rows_of(run: Path, variant: str, seed: int, setting: str) -> list[dict]:
    """One row per suite of a run that was measured."""
    scores = json.loads((run / "scores.json").read_text("utf-8"))
    stages = json.loads((run / "ledger.json").read_text("utf-8"))["stages"]
    cost = next(stage for stage in stages if stage["stage"] == "distill")
    made = []
    for suite, found in scores["suites"].items():
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
                "flops": cost["flops"],
                "seconds": cost["seconds"],
            }
        )
    return made


def summarise(runs: list[tuple[str, str, dict]]) -> dict:
    """By setting and variant: each measure's mean over seeds, the lowest and the highest seed.

    Args:
        runs: Setting, variant and the `summary` of one seed's scores.
    """
    grouped: dict[tuple[str, str], list[dict]] = {}
    for setting, variant, summary in runs:
        grouped.setdefault((setting, variant), []).append(summary)
    found: dict[str, dict] = {}
    for (setting, variant), seeds in grouped.items():
        for side in ("before", "after"):
            means = {}
            for name in SUMMARY:
                values = [one[side][name]["mean"] for one in seeds if one.get(side, {}).get(name)]
                if values:
                    means[name] = {
                        "mean": statistics.fmean(values),
                        "low": min(values),
                        "high": max(values),
                        "seeds": len(values),
                    }
            found.setdefault(setting, {}).setdefault(variant, {})[side] = means
    return found


def main() -> None:
    """Train and measure what is missing, then write all rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--variants", default="ours,sft,no-divergence,shared")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--setting", default="scarce")
    parser.add_argument("--runs", type=Path, default=Path("runs/real-benchmark"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/real.json"))
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    given = parser.parse_args()
    names = given.variants.split(",")
    if unknown := [name for name in names if name not in VARIANTS]:
        parser.error(f"there is no variant {unknown[0]}; there are {', '.join(VARIANTS)}")
    command = [sys.executable, "-m", "isogloss", "ablate", str(EXAMPLE), "--data-root", str(given.data_root)]
    command += ["--seeds", str(given.seeds), "--out", str(given.runs)]
    command += [word for name in names for word in ("--variant", f"{name}: {VARIANTS[name]}")]
    command += [word for one in given.set for word in ("--set", one)]
    subprocess.run(command, check=True)
    rows, runs = [], []
    for name in names:
        for seed in range(given.seeds):
            run = given.runs / f"{name}-{seed}"
            rows += rows_of(run, name, seed, given.setting)
            summary = json.loads((run / "scores.json").read_text("utf-8"))["summary"]
            runs.append((given.setting, name, summary))
    old = json.loads(given.out.read_text("utf-8")) if given.out.exists() else {"rows": [], "summary": {}}
    kept = [row for row in old["rows"] if row["setting"] != given.setting or row["variant"] not in names]
    summary = old["summary"]
    summary.setdefault(given.setting, {}).update(summarise(runs)[given.setting])
    written = {"summary": summary, **about(), "overrides": given.set, "rows": kept + rows}
    given.out.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
