"""The machine that a plan is made for: this one, or one described in a file."""

import math
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from isogloss.config import Count, Positive, Settings
from isogloss.config.load import validated
from isogloss.config.yaml_io import read_entries
from isogloss.errors import ConfigError
from isogloss.model.load import (
    pick_dtype,
)

EFFICIENCY = 0.4
"""Assumed share of the peak matmul rate that a training step reaches; a machine file may set it."""
CONTEXT = 600 << 20
"""Assumed bytes of a GPU's CUDA context and matmul workspace."""
HEAP = 1.3
"""Assumed bytes of C library heap per byte of temporary tensors on a CPU; 1.2 to 1.4 were observed."""
GIB = 1 << 30
LIMIT = Path("/sys/fs/cgroup/memory.max")
"""File in which Linux tells a container how much memory it may take."""


class MachineFile(Settings):
    """Description of another machine."""

    devices: Count = 1
    """Number of devices."""
    memory_gib: Positive
    """Memory of each device, in GiB."""
    tflops: Positive
    """Rate of large matmuls on each device in the weights' dtype, in 10^12 FLOPs per second."""
    efficiency: Positive = EFFICIENCY
    """Share of this rate that a training step reaches."""
    gpu: bool = True
    """Whether the devices are GPUs; weights are then bfloat16 unless `dtype` is set."""


@dataclass(frozen=True)
class Machine:
    """The machine of a plan; `memory` in bytes and `rate` in FLOPs per second are per device."""

    name: str
    devices: int
    memory: int
    rate: float
    gpu: bool
    efficiency: float = EFFICIENCY
    process: int = CONTEXT
    """Bytes that the program takes on a device before it loads a model."""

    def held(self, alive: int) -> int:
        """Return the bytes allocated for temporary tensors with a peak of `alive` bytes."""
        return alive if self.gpu else round(HEAP * alive)

    def dtype(self, asked: str) -> torch.dtype:
        """Return the dtype of frozen weights on this machine, for the setting `dtype`."""
        return torch.bfloat16 if asked == "auto" and self.gpu else pick_dtype(asked, gpu=self.gpu)


def load_machine(path: Path) -> Machine:
    """Load a machine from a YAML file with the keys devices, memory_gib, tflops, efficiency, gpu.

    Raises:
        ConfigError: The file is missing or malformed.
    """
    if not path.is_file():
        keys = ", ".join(MachineFile.model_fields)
        raise ConfigError(f"--machine {path}: there is no such file; name a YAML file with {keys}")
    written = read_entries(path)
    said = validated(MachineFile, written.entries, written)
    process = CONTEXT if said.gpu else psutil.Process().memory_info().rss
    return Machine(
        path.stem,
        said.devices,
        round(said.memory_gib * GIB),
        said.tflops * 1e12,
        said.gpu,
        said.efficiency,
        process,
    )


def this_machine(dtype: str = "auto") -> Machine:
    """Describe this machine; measures its rate for about a second."""
    gpu = torch.cuda.is_available()
    if gpu:
        memory, devices = torch.cuda.get_device_properties(0).total_memory, torch.cuda.device_count()
    else:
        memory, devices = _allowed(), 1
    kind = pick_dtype(dtype)
    process = CONTEXT if gpu else psutil.Process().memory_info().rss
    return Machine("this machine", devices, memory, measured_rate(kind), gpu, process=process)


def _allowed() -> int:
    """Return the bytes of memory that this process may take on a CPU."""
    total = psutil.virtual_memory().total
    try:
        return min(total, int(LIMIT.read_text("utf-8")))
    except (OSError, ValueError):  # no container, or one without a limit ("max")
        return total


def measured_rate(dtype: torch.dtype, seconds: float = 1.0) -> float:
    """Return the FLOPs per second of a large matmul: the best of at least two runs within `seconds`."""
    gpu = torch.cuda.is_available()
    size = 8192 if gpu else 1024
    a = torch.randn(size, size, device="cuda" if gpu else "cpu").to(dtype)
    ends, best, done = time.monotonic() + seconds, math.inf, 0
    while done < 2 or time.monotonic() < ends:
        began = time.monotonic()
        _ = a @ a
        if gpu:
            torch.cuda.synchronize()
        best, done = min(best, time.monotonic() - began), done + 1
    return 2 * size**3 / best
