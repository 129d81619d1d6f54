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


def official_table(scores: Mapping[str, Any], suite: str) -> Table:
    """The benchmark's own metrics, mean over languages, before → after in per cent."""
    by_phase = scores["suites"][suite]["official"]
    table = Table(
        title=Text(f"{suite}: the benchmark's own metrics, %"), box=box.SIMPLE_HEAD, show_edge=False
    )
    for name in ("task", "metric", "languages", "mean", "unreadable"):
        table.add_column(Text(name), justify="left" if name in ("task", "metric") else "right", no_wrap=True)
    after = by_phase["after"]
    for task, metrics in after["tasks"].items():
        unread = after.get("unreadable", {}).get(task)
        for metric, one in metrics.items():
            was = by_phase["before"].get("tasks", {}).get(task, {}).get(metric, {}).get("mean")
            means = " → ".join(figures.percent(value) for value in (was, one["mean"]))
            count = "" if unread is None else str(sum(unread.values()))
            table.add_row(
                *map(Text, (task, metric.replace("_", " "), str(len(one["languages"])), means, count))
            )
    if after.get("overall") is not None:
        values = (by_phase["before"].get("overall"), after["overall"])
        means = " → ".join(figures.percent(value) for value in values)
        table.add_row(Text("overall"), Text("mean over tasks"), "", Text(means), "", style="bold")
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
