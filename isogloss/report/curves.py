"""Curves: coordinates of a line chart per stage and quantity, drawn and coloured by the template.

Flow: rows of curves.jsonl → (stage, quantity) → at most `MOST` points, each a mean → Chart.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from isogloss.report import figures

MAIN: Final = ("loss", "kl", "ce", "replay", "similarity")
MOST: Final = 160  # points in one line: two pixels each on a phone
WIDTH, HEIGHT = 360, 190
LEFT, RIGHT, TOP, BOTTOM = 44, 12, 12, 30


@dataclass(frozen=True)
class Tick:
    """An axis tick: its position in the chart's units, and its label."""

    at: float
    text: str


@dataclass(frozen=True)
class Chart:
    """One line in a box of `WIDTH` × `HEIGHT`."""

    stage: str
    quantity: str
    line: str
    end: tuple[float, float]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    summary: str
    steps_per_point: int
    left_out: int


def charts(rows: Sequence[Mapping[str, Any]]) -> tuple[list[Chart], list[Chart]]:
    """Return the charts of the main quantities (`MAIN`) and of all others, in stage order."""
    stages = list(dict.fromkeys(str(row.get("stage", "")) for row in rows))
    main: list[Chart] = []
    further: list[Chart] = []
    for stage in stages:
        of_stage = [row for row in rows if str(row.get("stage", "")) == stage and _is_number(row.get("step"))]
        found = {key for row in of_stage for key, value in row.items() if _is_number(value)} - {"step"}
        for key in sorted(found, key=lambda key: (MAIN.index(key) if key in MAIN else len(MAIN), key)):
            chart = _chart(stage, key, of_stage)
            if chart is not None:
                (main if key in MAIN else further).append(chart)
    return main, further


def _chart(stage: str, quantity: str, rows: Iterable[Mapping[str, Any]]) -> Chart | None:
    numbers = [(float(r["step"]), float(r[quantity])) for r in rows if _is_number(r.get(quantity))]
    known = sorted((x, y) for x, y in numbers if math.isfinite(x) and math.isfinite(y))
    if not known:
        return None
    each = math.ceil(len(known) / MOST)
    points = [_mean(known[start : start + each]) for start in range(0, len(known), each)]
    x_marks = _marks(known[0][0], known[-1][0], whole=True)
    y_marks = _marks(min(y for _, y in points), max(y for _, y in points))
    x_low, x_high = known[0][0], max(known[-1][0], known[0][0] + 1)
    y_low, y_high = y_marks[0], y_marks[-1]

    def across(x: float) -> float:
        return round(LEFT + (x - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT), 1)

    def down(y: float) -> float:
        return round(HEIGHT - BOTTOM - (y - y_low) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM), 1)

    placed = [(across(x), down(y)) for x, y in points]
    first, last = figures.short(points[0][1]), figures.short(points[-1][1])
    return Chart(
        stage=stage,
        quantity=quantity,
        line=" ".join(f"{x:g},{y:g}" for x, y in placed),
        end=placed[-1],
        x_ticks=tuple(Tick(across(x), figures.short(x)) for x in x_marks if x_low <= x <= x_high),
        y_ticks=tuple(Tick(down(y), figures.short(y)) for y in y_marks),
        summary=f"{first} → {last} over {figures.count(len(known))} logged steps",
        steps_per_point=each,
        left_out=len(numbers) - len(known),
    )


def _marks(low: float, high: float, *, whole: bool = False) -> list[float]:
    """Return three to six round numbers that enclose the range."""
    if high <= low:
        high = low + (abs(low) or 1.0)
    rough = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= rough * 0.999)
    step = max(step, 1.0) if whole else step
    start, stop = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    places = max(12, 2 - math.floor(math.log10(step)))
    return [round(index * step, places) for index in range(start, stop + 1)]


def _mean(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    return sum(x for x, _ in points) / len(points), sum(y for _, y in points) / len(points)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
