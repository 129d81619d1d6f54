"""Table: the scores of one suite for the terminal, and the same in one sentence."""

from collections.abc import Mapping
from typing import Any, Final

from rich import box
from rich.table import Table
from rich.text import Text

from isogloss.report import figures
from isogloss.report.scores import Suite

SHOWN: Final = ("consistency", "retrieval", "alignment", "accuracy", "fidelity")


def summary_table(scores: Mapping[str, Any], suite: str) -> Table:
    """Per language before → after in per cent; the last row is the mean, the interval after below it.

    Fits 80 columns. Texts from the file are never read as markup.

    Raises:
        RunError: The scores have no such suite.
    """
    view = Suite(scores, suite)
    title = Text(f"{suite}: before → after, %")
    table = Table(title=title, box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column(Text("language"), no_wrap=True)
    for measure in SHOWN:
        table.add_column(Text(measure), justify="right", no_wrap=True)
    for label in view.languages:
        cells = [Text(view.change(measure, label.code).arrow) for measure in SHOWN]
        table.add_row(Text(label.name), *cells)
    table.add_section()
    means = [view.mean(measure) for measure in SHOWN]
    cells = [Text(f"{mean.arrow}\n{mean.after.interval}".rstrip()) for mean in means]
    table.add_row(Text("mean"), *cells, style="bold")
    return table


def headline(scores: Mapping[str, Any], suite: str) -> str:
    """One plain sentence: alignment accuracy with its interval, worst language, fidelity, retention.

    Raises:
        RunError: The scores have no such suite.
    """
    view = Suite(scores, suite)
    alignment = view.mean("alignment")
    parts = [f"alignment accuracy {alignment.arrow} %"]
    if alignment.after.interval:
        parts[0] += f" (interval {alignment.after.interval})"
    worst = view.spread("alignment", "after")
    if worst:
        parts.append(f"worst language {worst[0].name} {figures.percent(worst[1])} %")
    fidelity = view.mean("fidelity")
    if fidelity.after.value is not None:
        parts.append(f"fidelity {fidelity.arrow} %")
    if view.retention.value is not None:
        parts.append(f"English accuracy {view.retention.points} points")
    return f"{suite}: " + "; ".join(parts)
