"""What every data format is read into: the same instruction, with its response, in several languages."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Turn:
    """One instruction and its response in one language; no response yet means a teacher writes it."""

    instruction: str
    response: str | None = None


@dataclass(frozen=True)
class ParallelExample:
    """One meaning in several languages: `turns` maps our language codes to what is said in each."""

    id: str
    task: str
    turns: Mapping[str, Turn]
