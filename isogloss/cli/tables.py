"""Tables that commands print."""

import contextlib
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from isogloss.files import read_json
from isogloss.languages import Language, UnknownLanguageError, resolve
from isogloss.languages import languages as registry

if TYPE_CHECKING:
    from isogloss.inference import Asker
    from isogloss.pipeline.folder import Run
    from isogloss.plan.preflight import Plan
from isogloss.cli.screen import out, print_first, print_line, printable


def show_scores(job: "Run") -> None:
    """Print a run's scores by suite, then over all suites."""
    from isogloss.report.table import headline, official_table, overview_table, summary_table, tasks_table

    scores = read_json(job.folder / "scores.json", "suites", "remove it and run `isogloss evaluate` again")
    for suite in scores["suites"]:
        out.print()
        out.print(summary_table(scores, suite))
        if scores["suites"][suite].get("official"):
            out.print(official_table(scores, suite))
        out.print(escape(headline(scores, suite)))
    for table in (tasks_table(scores), overview_table(scores)):
        if table is not None:
            out.print()
            out.print(table)
    out.print()


def columns(*names: str, left: int = 1, title: str = "") -> Table:
    """Return a plain table whose cells do not wrap; columns after the first `left` ones are right-aligned."""
    table = Table(box=None, header_style="bold", pad_edge=False, title=escape(title), title_justify="left")
    for number, name in enumerate(names):
        table.add_column(name, no_wrap=True, justify="left" if number < left else "right")
    return table


def show_plan(found: "Plan") -> None:
    """Print a row per stage, its memory by component, then assumptions and what to change."""
    from isogloss.report import figures

    table = columns("stage", "forwarded", "backward", "generated", "FLOPs", "time", "memory")
    for stage in found.stages:
        table.add_row(
            stage.stage,
            *(figures.count(n) for n in (stage.tokens_forwarded, stage.tokens_backpropagated)),
            figures.count(stage.tokens_generated),
            figures.count(stage.flops, "FLOP"),
            figures.duration(found.seconds(stage)),
            figures.size(stage.memory_bytes),
        )
    out.print(table)
    for stage in found.stages:
        parts = ", ".join(f"{name} {figures.size(size)}" for name, size in stage.memory.items())
        disk = f"; on disk {figures.size(stage.disk)}, {figures.size(stage.kept)} of it kept"
        print_line(f"{stage.stage}: {parts}{disk if stage.disk else ''}")
    machine = found.machine
    print_line(
        f"On {machine.name}: {machine.devices} × {figures.size(machine.memory)}, "
        f"{figures.count(machine.rate, 'FLOP')} per second, at {machine.efficiency:.0%} utilisation"
    )
    for line in (*found.settings, *found.notes):
        print_line(line)
    for line in found.advice or ["It fits."]:
        print_line(line)


def difference_cells(one: dict) -> tuple[str, str, str, str]:
    """Format a paired difference in points, its interval, p and n."""
    return *points_cells(one["value"], one["low"], one["high"]), f"{one['p']:.4f}", str(one["n"])


def points_cells(value: float, low: float, high: float) -> tuple[str, str]:
    """Format a difference of fractions and its interval in points."""
    return f"{100 * value:+.1f}", f"{100 * low:+.1f} to {100 * high:+.1f}"


def show_selection(job: "Run") -> None:
    """Print how many English items are dropped, by reason, and the first of them."""
    from isogloss.data.selection import summary
    from isogloss.pipeline.stages import select_english

    chosen = select_english(job)
    table = columns("reason", "items")
    for reason, count in summary(chosen).items():
        table.add_row(escape(reason), str(count))
    table.add_row("kept", str(len(chosen.kept)), style="bold")
    out.print(table)
    print_first(20, [f"{one.example_id}: {one.reason}: {one.detail}" for one in chosen.dropped])


def search_languages(text: str) -> list[Language]:
    """Return the languages with the text in a name, code, family or script; or the exact match alone."""
    wanted = text.strip().casefold()
    with contextlib.suppress(UnknownLanguageError):
        return [resolve(text)]
    return [
        one
        for one in registry().values()
        if wanted in " ".join((*one.codes(), one.name, one.autonym, *one.family, one.script)).casefold()
    ]


def language_card(one: Language) -> Table:
    """Return a table of all that the registry knows about a language."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    rows = {
        one.code: f"{one.name}, {one.autonym}",
        "BCP 47": one.bcp47,
        "ISO 639-3": one.iso639_3,
        "FLORES-101": one.flores101,
        "FLORES-200": one.flores200,
        "FLORES+": one.flores_plus,
        "NTREX": one.ntrex,
        "XGLUE": one.xglue,
        "MASSIVE": one.massive,
        "script": f"{one.script}, {'right to left' if one.direction == 'rtl' else 'left to right'}",
        "family": " / ".join(one.family),
        "resources": one.resource,
    }
    for name, value in rows.items():
        if value is not None:
            table.add_row(escape(name), escape(value))
    return table


def show_answers(asker: "Asker", text: str, twin: str | None) -> None:
    """Print answers side by side."""
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 3, 0, 0))
    answers = asker.answers(text, twin)
    for name in answers:
        table.add_column(name, overflow="fold")
    table.add_row(*(escape(printable(answer)) or "—" for answer in answers.values()))
    out.print(table)
