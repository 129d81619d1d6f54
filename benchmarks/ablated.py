"""Start the ablation that a benchmark is made of."""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterable


def ablate(given: argparse.Namespace, variants: Iterable[str], *words: str) -> list[int]:
    """Train and evaluate what is missing of an ablation; return its seeds, from that of the settings on.

    Args:
        given: Options of the benchmark: `seeds`, `runs` (the folder of all runs) and `set`.
        variants: As in `--variant` of `experiments.ablate`.
        words: Its further arguments.
    """
    command = [sys.executable, "-m", "experiments.ablate", *words]
    command += ["--seeds", str(given.seeds), "--out", str(given.runs)]
    command += [word for one in variants for word in ("--variant", one)]
    command += [word for one in given.set for word in ("--set", one)]
    subprocess.run(command, check=True)
    rows = json.loads((given.runs / "ablation.json").read_text("utf-8"))["rows"]
    return sorted({row["seed"] for row in rows})
