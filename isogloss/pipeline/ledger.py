"""The ledger: the cost of each stage, summed over resumes without double counting."""

import ctypes
import gc
import resource
import sys
import time
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path

import psutil
import torch

from isogloss import processes
from isogloss.errors import RunError
from isogloss.files import read_json, write_json
from isogloss.model.cost import StageCost

CORE_WATTS, GPU_WATTS = 8.0, 400.0
"""Assumed power of a CPU core and a GPU under load, including their share of memory and cooling."""
ASSUMED = f"{CORE_WATTS:g} W a processor core, {GPU_WATTS:g} W a GPU"


class Ledger:
    """The costs of a run's stages, stored in a file that is replaced atomically."""

    def __init__(self, path: Path):
        self.path = path
        self.stages: dict[str, StageCost] = {}
        if path.exists():
            remedy = "remove it to go on; what was counted so far is lost"
            for entry in read_json(path, "stages", remedy)["stages"]:
                try:
                    self.stages[entry["stage"]] = StageCost(**entry)
                except (KeyError, TypeError):
                    raise RunError(f"{path} is not a ledger of this version; {remedy}") from None

    def begin(self, stage: str) -> StageCost:
        """Return a stage's entry, continuing an earlier one.

        Each cost must be added once, when the work can no longer be lost to a kill: the teacher's when its
        signals are cached; training's at the end, from counts stored in its checkpoints.
        """
        before = self.stages.get(stage, StageCost(stage))
        self.stages[stage] = replace(before, started=time.monotonic(), had_written=_written())
        _reset_peak()
        return self.stages[stage]

    def pause(self, stage: StageCost) -> None:
        """Add the time since `begin` or the last `pause`, and write the file."""
        now, written = time.monotonic(), _written()
        passed = now - stage.started
        stage.seconds = round(stage.seconds + passed, 2)
        stage.device_seconds = round(stage.device_seconds + passed * processes.count(), 2)
        stage.energy_joules = round(stage.energy_joules + passed * processes.count() * _watts(), 1)
        stage.bytes_written += written - stage.had_written
        stage.started, stage.had_written = now, written
        stage.peak_memory_bytes = max(stage.peak_memory_bytes, _peak())
        if not processes.is_main():
            return
        entries = [
            {k: v for k, v in asdict(s).items() if k not in ("started", "had_written")}
            for s in self.stages.values()
        ]
        write_json(self.path, {"schema": 1, "assumed": ASSUMED, "stages": entries})


def _watts() -> float:
    """Return the assumed power of this process's device."""
    return GPU_WATTS if torch.cuda.is_available() else CORE_WATTS * torch.get_num_threads()


def _written() -> int:
    """Return the bytes written by this process so far; 0 except on Linux."""
    return getattr(psutil.Process().io_counters(), "write_chars", 0) if psutil.LINUX else 0


def _reset_peak() -> None:
    """Reset the peak memory counters where the system allows it, so that each stage has its own peak.

    Also asks the C library to return memory that earlier work has freed.
    """
    gc.collect()
    with suppress(OSError, AttributeError):  # glibc
        ctypes.CDLL(None).malloc_trim(0)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with suppress(OSError):  # Linux
        Path("/proc/self/clear_refs").write_text("5")


def _peak() -> int:
    """Return the peak memory in bytes since the reset: of the GPU if there is one, else of the process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_reserved()
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
