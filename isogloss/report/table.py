"""Tables of a run's scores for the terminal, and a suite's headline sentence."""

from collections.abc import Mapping
from typing import Any, Final

from rich import box
from rich.table import Table
from rich.text import Text

from isogloss.report import figures
from isogloss.report.overview import Overview
from isogloss.report.scores import OVER_TASKS, PHASES, Suite, measure_name

SHOWN: Final = (
    *("consistency", "consistency_kappa", "retrieval", "retrieval_raw", "alignment", "accuracy", "fidelity"),
)
WIDEST: Final = 5
"""Measures that fit 80 columns; if there are more, those in `HEADS` only appear in the headline."""
HEADS: Final = {"consistency_kappa": "κ", "retrieval_raw": "raw cosine"}


def overview_table(scores: Mapping[str, Any]) -> Table | None:
    """Tabulate the conclusion per language, with means over mastered and over all tasks.

    Fits 80 columns. Returns None if the scores have no summary.
    """
    view = Overview(scores)
    if not view:
        return None
    table = _table(f"The run: {view.counted}; before → after, %", "language")
    shown = (f"consistency_{view.kind}", "retrieval", f"alignment_{view.kind}")
    shown = [name for name in shown if view.mean(name).after.value is not None]
    for name in shown:
        table.add_column(Text(name.split("_")[0]), justify="right", no_wrap=True)
    table.add_column(Text("conclusion"))
    for label in view.by_consistency:
        cells = [Text(view.change(name, label.code).arrow) for name in shown]
        table.add_row(Text(label.name), *cells, Text(view.verdict(label.code).text))
    table.add_section()
    # Without mastered tasks, retrieval alone, which has no tasks, would fill their row.
    for kind in OVER_TASKS if view.kind == "mastered" else (view.kind,):
        means = [view.mean(name.replace(view.kind, kind)) for name in shown]
        if any(mean.after.value is not None for mean in means):
            cells = [Text(f"{mean.arrow}\n{mean.after.interval}".rstrip()) for mean in means]
            table.add_row(Text(f"{kind} tasks"), *cells, style="bold" if kind == view.kind else "")
    return table


def tasks_table(scores: Mapping[str, Any]) -> Table | None:
    """Tabulate, per task, the reference model's mastery in English and the consistency over languages."""
    view = Overview(scores)
    if not view.tasks:
        return None
    table = _table("Tasks: reference model in English, and consistency with it, %", "task")
    for name in ("English", "commonest", "reworded", "consistency", "κ"):
        table.add_column(Text(name), justify="right", no_wrap=True)
    table.add_column(Text("mastered"), no_wrap=True)
    for row in view.tasks:
        alone = (row.accuracy.percent, row.commonest.percent, row.rephrased.percent)
        cells = (*alone, row.consistency.arrow, row.kappa.after.percent, "yes" if row.mastered else "no")
        table.add_row(Text(row.name), *map(Text, cells))
    return table


def summary_table(scores: Mapping[str, Any], suite: str) -> Table:
    """Tabulate before → after per language, in per cent; the last rows are means.

    The first mean is over items, with the interval after training below it; the others are over equally
    weighted tasks: those that the reference model masters in English, and all. Fits 80 columns. Texts from
    the file are never interpreted as markup.

    Raises:
        RunError: The scores have no such suite.
    """
    view = Suite(scores, suite)
    shown = [measure for measure in SHOWN if measure in view.measures]
    shown = shown if len(shown) <= WIDEST else [measure for measure in shown if measure not in HEADS]
    table = _table(f"{suite}: before → after, %", "language")
    for measure in shown:
        table.add_column(Text(HEADS.get(measure, measure)), justify="right", no_wrap=True)
    for label in view.languages:
        cells = [Text(view.change(measure, label.code).arrow) for measure in shown]
        table.add_row(Text(label.name), *cells)
    table.add_section()
    means = [view.mean(measure) for measure in shown]
    cells = [Text(f"{mean.arrow}\n{mean.after.interval}".rstrip()) for mean in means]
    table.add_row(Text("mean"), *cells, style="bold")
    for kind in OVER_TASKS:
        means = [view.mean(f"{measure}_{kind}") for measure in shown]
        if any(mean.after.value is not None for mean in means):
            cells = [Text(mean.arrow if mean.after.value is not None else "") for mean in means]
            table.add_row(Text(f"{kind} tasks"), *cells)
    return table


def _table(title: str, first: str) -> Table:
    table = Table(
        title=Text(title), box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0)
    )
    table.add_column(Text(first), no_wrap=True)
    return table


def official_table(scores: Mapping[str, Any], suite: str) -> Table:
    """Tabulate the benchmark's own metrics, averaged over languages, before → after in per cent."""
    view = Suite(scores, suite)
    table = Table(
        title=Text(f"{suite}: the benchmark's own metrics, %"), box=box.SIMPLE_HEAD, show_edge=False
    )
    for name in ("task", "metric", "languages", "mean", "unreadable"):
        table.add_column(Text(name), justify="left" if name in ("task", "metric") else "right", no_wrap=True)
    before, after = (view.entries["official"][phase] for phase in PHASES)
    for task, metric, was, now in view.official:
        unread = after.get("unreadable", {}).get(task)
        means = f"{figures.percent(was.get('mean'))} → {figures.percent(now['mean'])}"
        count = "" if unread is None else str(sum(unread.values()))
        table.add_row(*map(Text, (task, metric, str(len(now["languages"])), means, count)))
    if after.get("overall") is not None:
        means = f"{figures.percent(before.get('overall'))} → {figures.percent(after['overall'])}"
        table.add_row(Text("overall"), Text("mean over tasks"), "", Text(means), "", style="bold")
    return table


def headline(scores: Mapping[str, Any], suite: str) -> str:
    """Summarise a suite in one line: headline measure, interval, worst language, fidelity, retention.

    Raises:
        RunError: The scores have no such suite.
    """
    view = Suite(scores, suite)
    if view.headline is None:
        return f"{suite}: nothing was measured"
    name, first, _ = view.headline
    parts = [f"{name} {first.arrow} %"]
    if first.after.interval:
        parts[0] += f" (interval {first.after.interval})"
    worst = view.spread(view.main, "after") if view.main else None
    if worst:
        parts.append(f"worst language {worst[0].name} {figures.percent(worst[1])} %")
    for measure in ("retrieval_raw", "consistency_kappa", "fidelity"):
        mean = view.mean(measure)
        if mean.after.value is not None and measure != view.main:
            parts.append(f"{measure_name(measure)} {mean.arrow} %")
    if (retention := view.mean("retention").after).value is not None:
        parts.append(f"English accuracy {retention.points} points")
    if cut := view.cut("after"):
        parts.append(f"{figures.percent(cut)} % of the answers truncated at the token limit")
    return f"{suite}: " + "; ".join(parts)
