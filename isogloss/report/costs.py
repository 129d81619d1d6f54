"""Costs: the ledger's stages as rows of text with totals, and the run's cost in one line."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from isogloss.report import figures

COLUMNS: Final = (
    ("seconds", "time", figures.duration),
    ("tokens_forwarded", "tokens forwarded", figures.count),
    ("tokens_backpropagated", "tokens backward", figures.count),
    ("tokens_generated", "tokens generated", figures.count),
    ("teacher_calls", "teacher calls", figures.count),
    ("flops", "arithmetic", lambda number: figures.count(number, "FLOP")),
    ("peak_memory_bytes", "peak memory", figures.size),
    ("energy_joules", "energy", lambda joules: figures.count(joules, "J")),
)


def rows(stages: Iterable[Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    """Return each stage's name with one text per column."""
    return [
        (str(stage.get("stage", "")), [write(stage.get(field)) for field, _, write in COLUMNS])
        for stage in stages
    ]


def totals(stages: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the sums over stages; for memory, the maximum."""
    return [write(_total(stages, field)) for field, _, write in COLUMNS]


def one_line(stages: Sequence[Mapping[str, Any]]) -> str:
    """Format totals as "20 min 46 s · 18.1 M tokens forwarded · 9.21 TFLOP · peak memory 2.10 GiB"."""
    time, forwarded, _, _, _, flops, memory, _ = totals(stages)
    return f"{time} · {forwarded} tokens forwarded · {flops} · peak memory {memory}"


def _total(stages: Iterable[Mapping[str, Any]], field: str) -> float | None:
    known = [stage[field] for stage in stages if stage.get(field) is not None]
    if not known:
        return None
    return max(known) if field == "peak_memory_bytes" else sum(known)
