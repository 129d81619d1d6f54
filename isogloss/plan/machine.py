"""The machine that a plan is made for: this one, or a file's."""

import math
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
import yaml
from pydantic import ValidationError

from isogloss.config import Count, Positive, Settings
from isogloss.errors import ConfigError
from isogloss.model.load import (
    pick_dtype,
)

EFFICIENCY = 0.4
"""Share of the rate of large products that a step reaches; an assumption, which a machine's file may set."""
CONTEXT = 600 << 20
"""Bytes that a GPU's context and its products' workspace take; an assumption."""
HEAP = 1.3
"""Without a GPU: bytes that the C library's heap holds for each byte of tensors that come and go; 1.2 to 1.4
was seen. An assumption."""
GIB = 1 << 30


class MachineFile(Settings):
    """A machine that is not this one."""

    devices: Count = 1
    """How many."""
    memory_gib: Positive
    """Memory of each device, in GiB."""
    tflops: Positive
    """Rate of large products on each device in the weights' type, in 10^12 operations a second."""
    efficiency: Positive = EFFICIENCY
    """Share of this rate that a step reaches."""
    gpu: bool = True
    """Whether the devices are GPUs: weights are then bfloat16 unless `dtype` says otherwise."""


@dataclass(frozen=True)
class Machine:
    """What a plan is made for; bytes, and operations a second, of each device."""

    name: str
    devices: int
    memory: int
    rate: float
    gpu: bool
    efficiency: float = EFFICIENCY
    process: int = CONTEXT
    """Bytes that the program takes on a device before it has a model."""

    def held(self, alive: int) -> int:
        """Bytes held for tensors of which at most `alive` bytes are needed at once."""
        return alive if self.gpu else round(HEAP * alive)

    def dtype(self, asked: str) -> torch.dtype:
        """The type of frozen weights there."""
        return torch.bfloat16 if asked == "auto" and self.gpu else pick_dtype(asked)


def load_machine(path: Path) -> Machine:
    """A machine from a YAML file: devices, memory_gib, tflops, efficiency, gpu.

    Raises:
        ConfigError: The file is missing or says something else.
    """
    try:
        entries = yaml.safe_load(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"--machine: {path} cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not YAML: {getattr(error, 'problem', error)}") from None
    try:
        said = MachineFile.model_validate(entries)
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(map(str, fault["loc"])) or "a machine"
        raise ConfigError(
            f"{path}: {where}: {fault['msg']}; there are {', '.join(MachineFile.model_fields)}"
        ) from None
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
    """This machine, its rate measured for about a second."""
    gpu = torch.cuda.is_available()
    if gpu:
        memory, devices = torch.cuda.get_device_properties(0).total_memory, torch.cuda.device_count()
    else:
        memory, devices = psutil.virtual_memory().total, 1
    kind = pick_dtype(dtype)
    process = CONTEXT if gpu else psutil.Process().memory_info().rss
    return Machine("this machine", devices, memory, measured_rate(kind), gpu, process=process)


def measured_rate(dtype: torch.dtype, seconds: float = 1.0) -> float:
    """Operations a second of a large product, the best of as many as fit into the time, two at least."""
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
