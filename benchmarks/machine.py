"""What every benchmark says of the machine it ran on, and of what it ran."""

import json
import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any


def about(*packages: str) -> dict[str, Any]:
    """Versions of these packages, the processor, and how much of it torch uses."""
    import torch  # not before a benchmark's own processes have been started

    return {
        "versions": {name: version(name) for name in packages},
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
    }


def put(found: dict[str, Any], out: Path | None) -> None:
    """A benchmark's result into its file, or onto the screen."""
    text = json.dumps(found, indent=1)
    if out:
        out.write_text(text + "\n", encoding="utf-8")
    else:
        print(text)


def processor() -> str:
    """The processor's name where the system tells it, else its kind."""
    lines = Path("/proc/cpuinfo").read_text().split("\n") if Path("/proc/cpuinfo").exists() else []
    return next(
        (line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine()
    )
