"""One run by several processes, as `accelerate launch` or torchrun starts them: one writes, the others wait.

All of them do the same and share a step's rows. Alone, a process is the one that writes, and nothing waits.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object, reduce

PATIENCE = timedelta(days=2)
"""How long a process waits for the one that writes."""


def count() -> int:
    """How many there are."""
    return _state().num_processes


def index() -> int:
    """Which of them this is, from 0 on."""
    return _state().process_index


def is_main() -> bool:
    """Whether this is the one that writes."""
    return _state().is_main_process


def wait() -> None:
    """Until all are here."""
    _state().wait_for_everyone()


@contextmanager
def main_first(together: bool = False) -> Iterator[None]:
    """The one that writes goes first; the others find what it has written.

    Args:
        together: All go at the same time, as each has a part of the model that is read; one writes.
    """
    if together:
        yield
        wait()
        return
    with _state().main_process_first():
        yield


def total(numbers: Sequence[float]) -> list[float]:
    """Sums over all processes, which all must ask for."""
    if count() == 1:
        return list(numbers)
    summed: Any = reduce(torch.tensor(list(numbers), dtype=torch.float64, device=_state().device), "sum")
    return summed.tolist()


def gathered(items: Sequence[Any]) -> list[Any]:
    """The items of all processes, which all must give."""
    return list(items) if count() == 1 else gather_object(list(items))


def _state() -> PartialState:
    return PartialState(cpu=not torch.cuda.is_available(), timeout=PATIENCE)
