"""Machine and software information included in every benchmark's result."""

import json
import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any


def about(*packages: str) -> dict[str, Any]:
    """Return the versions of packages, the CPU, its cores and torch's threads."""
    import torch  # imported only after a benchmark has started its processes

    return {
        "versions": {name: version(name) for name in packages},
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
    }


def put(found: Any, out: Path | None) -> None:
    """Write a benchmark's result to a file, or print it."""
    text = json.dumps(found, indent=1)
    if out:
        out.write_text(text + "\n", encoding="utf-8")
    else:
        print(text)


def processor() -> str:
    """Return the CPU's model name if known, else its architecture."""
    lines = Path("/proc/cpuinfo").read_text().split("\n") if Path("/proc/cpuinfo").exists() else []
    return next(
        (line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine()
    )
