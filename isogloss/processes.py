"""Distributed runs, as started by `accelerate launch` or torchrun: the main process writes, the others wait.

All processes run the same code and split the rows of a step. A single process is the main one and never
waits.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object, reduce

from isogloss.errors import ConfigError

PATIENCE = timedelta(days=2)
"""Timeout of collective operations: how long a process waits for the main one."""


def count() -> int:
    """Return the number of processes."""
    return _state().num_processes


def index() -> int:
    """Return the index of this process, starting at 0."""
    return _state().process_index


def refuse_idle_gpus() -> None:
    """Check that a single process does not see several GPUs, all but one of which would be idle.

    Raises:
        ConfigError: It does.
    """
    if torch.cuda.device_count() > 1 and count() == 1:
        raise ConfigError(
            "one process uses one GPU: start several with `accelerate launch`, or set CUDA_VISIBLE_DEVICES=0"
        )


def is_main() -> bool:
    """Return whether this is the main process, which writes files."""
    return _state().is_main_process


def wait() -> None:
    """Wait until all processes get here (barrier)."""
    _state().wait_for_everyone()


@contextmanager
def main_first(together: bool = False) -> Iterator[None]:
    """Run the body on the main process first; the others then find what it has written.

    Args:
        together: Run on all processes at once, for a sharded model whose forward pass needs all of them.
    """
    if together:
        yield
        wait()
        return
    with _state().main_process_first():
        yield


def total(numbers: Sequence[float]) -> list[float]:
    """Sum each number over all processes; every process must call this."""
    if count() == 1:
        return list(numbers)
    summed: Any = reduce(torch.tensor(list(numbers), dtype=torch.float64, device=_state().device), "sum")
    return summed.tolist()


def gathered(items: Sequence[Any]) -> list[Any]:
    """Gather the items of all processes; every process must call this."""
    return list(items) if count() == 1 else gather_object(list(items))


def _state() -> PartialState:
    return PartialState(cpu=not torch.cuda.is_available(), timeout=PATIENCE)
