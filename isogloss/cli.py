"""The command line: a command parses, calls one function, prints."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from isogloss.config import Config, load_config
from isogloss.errors import IsoglossError, RunError

if TYPE_CHECKING:
    from isogloss.pipeline import Run

app = typer.Typer(
    help="Tune a language model on English instructions, then have it follow them the same way in every language.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
out, err = Console(), Console(stderr=True)

ConfigFile = Annotated[
    Path | None, typer.Argument(metavar="[CONFIG]", help="YAML settings; without it the embedded default.")
]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="Change a setting, e.g. distill.lr=0.001; repeatable."),
]
DataRoot = Annotated[Path | None, typer.Option(help="Folder of the real data sets; else ISOGLOSS_DATA.")]


class Screen:
    """Shows a run on the terminal; the Watcher that the pipeline speaks to."""

    def say(self, text: str) -> None:
        out.print(f"[bold]{escape(text)}[/]")

    @contextmanager
    def bar(self, what: str) -> Iterator:
        """A bar with the time left."""
        columns = (
            SpinnerColumn(), TextColumn("{task.description:<22}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
        )  # fmt: skip
        with Progress(*columns, console=out, transient=False) as progress:
            task = progress.add_task(what, total=None)
            yield lambda done, of: progress.update(task, completed=done, total=of)


@app.command()
def run(config: ConfigFile = None, set_: Overrides = None, data_root: DataRoot = None) -> None:
    """The whole job: English tuning, distillation, evaluation, report."""
    job = _open(config, set_, data_root)
    from isogloss import pipeline

    if not pipeline.run_all(job):
        out.print(f"{job.folder} is complete; its report is {job.folder / 'report.html'}")
        return
    _show_scores(job)
    out.print(f"Report: {job.folder / 'report.html'}")


@app.command()
def tune(
    config: ConfigFile = None,
    set_: Overrides = None,
    data_root: DataRoot = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only show which items would be left out, and why.")
    ] = False,
) -> None:
    """Stage 1: selected English instructions tune the base."""
    if dry_run:
        _show_selection(_prepare(config, set_, data_root))
        return
    job = _open(config, set_, data_root)
    from isogloss import pipeline

    pipeline.run_tune(job)
    out.print(f"Reference model: {job.tuned}")


@app.command()
def distill(config: ConfigFile = None, set_: Overrides = None, data_root: DataRoot = None) -> None:
    """Stage 2: the hierarchy of prompts is distilled into one adapter per language."""
    job = _open(config, set_, data_root)
    from isogloss import pipeline

    pipeline.run_distill(job)
    out.print(f"Adapters: {job.folder / 'adapters'}")


@app.command()
def evaluate(config: ConfigFile = None, set_: Overrides = None, data_root: DataRoot = None) -> None:
    """Every measure, before and after."""
    job = _open(config, set_, data_root)
    from isogloss import pipeline

    pipeline.run_evaluate(job)
    _show_scores(job)


@app.command()
def report(run_folder: RunFolder) -> None:
    """Write the page of a run again."""
    from isogloss import pipeline

    out.print(f"Report: {pipeline.run_report(pipeline.load_run(run_folder))}")


@app.command()
def languages(
    search: Annotated[str, typer.Argument(help="Part of a name or code; all languages without it.")] = "",
) -> None:
    """The languages that are known, with all their codes."""
    from isogloss.languages import languages as registry

    table = Table(box=None, header_style="bold")
    for name in (
        "code",
        "name",
        "autonym",
        "FLORES-101",
        "FLORES-200",
        "XGLUE",
        "script",
        "family",
        "resources",
    ):
        table.add_column(name, no_wrap=name != "family")
    wanted = search.casefold()
    for code, one in registry().items():
        row = [
            code,
            one.name,
            one.autonym,
            one.flores101,
            one.flores200,
            one.xglue or "",
            one.script,
            " / ".join(one.family),
            one.resource,
        ]
        if wanted in " ".join(row).casefold():
            table.add_row(*map(escape, row))
    if not table.rows:
        raise RunError(f"no language has {search!r} in its name or codes")
    out.print(table)


@app.command()
def ask(
    run_folder: RunFolder,
    text: Annotated[str | None, typer.Argument(help="The instruction; without it a prompt loop.")] = None,
    language: Annotated[str, typer.Option(help="The language asked in, any code.")] = "en",
    twin: Annotated[
        str | None, typer.Option(help="The same instruction in English, to compare with.")
    ] = None,
) -> None:
    """Zero-shot and aligned answers side by side."""
    _quiet()
    from isogloss import asking, pipeline

    asker = asking.Asker(pipeline.load_run(run_folder), language)
    if text is not None:
        _show_answers(asker, text, twin)
        return
    out.print(f"Ask in {asker.language.name}; an empty line ends.")
    while line := typer.prompt("", default="", show_default=False, prompt_suffix="> "):
        _show_answers(asker, line, None)


def main() -> None:
    """The entry point: what a user can mend is one line on stderr and exit code 2."""
    try:
        app(standalone_mode=True)
    except IsoglossError as error:
        for line in str(error).split("\n"):
            err.print(f"[red]error[/] {escape(line)}", soft_wrap=True)
        sys.exit(2)
    except KeyboardInterrupt:
        err.print("stopped; run the same command to go on")
        sys.exit(130)


def _settings(config: Path | None, overrides: list[str] | None, data_root: Path | None) -> Config:
    given = tuple(overrides or ())
    if data_root is not None:
        given += (f"data_root={data_root}",)
    return load_config(config, given)


def _prepare(config: Path | None, overrides: list[str] | None, data_root: Path | None) -> "Run":
    """A run whose folder is not touched."""
    settings = _settings(config, overrides, data_root)
    _quiet()
    from isogloss import pipeline

    return pipeline.Run(settings, Screen())  # type: ignore[arg-type]  # a Screen is a Watcher in all but name


def _open(config: Path | None, overrides: list[str] | None, data_root: Path | None) -> "Run":
    job = _prepare(config, overrides, data_root)
    from isogloss import pipeline

    pipeline.check(job)
    return pipeline.open_run(job.config, job.watcher)


def _quiet() -> None:
    """A run speaks for itself: the libraries' own logs and bars stay silent."""
    import os
    import warnings

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", module="(torch|transformers|peft|accelerate)")


def _show_scores(job: "Run") -> None:
    import json

    from isogloss.report.table import headline, summary_table

    scores = json.loads((job.folder / "scores.json").read_text("utf-8"))
    for suite in scores["suites"]:
        out.print(summary_table(scores, suite))
        out.print(headline(scores, suite))


def _show_selection(job: "Run") -> None:
    from isogloss import pipeline
    from isogloss.data.selection import summary

    chosen = pipeline.select_english(job)
    table = Table(
        "reason", "items", box=None, header_style="bold", title="English items", title_justify="left"
    )
    for reason, count in summary(chosen).items():
        table.add_row(reason, str(count))
    table.add_row("kept", str(len(chosen.kept)), style="bold")
    out.print(table)
    for dropped in chosen.dropped[:20]:
        out.print(escape(f"{dropped.example_id}: {dropped.reason}: {dropped.detail}"))


def _show_answers(asker, text: str, twin: str | None) -> None:
    table = Table(box=None, header_style="bold", show_edge=False)
    columns = asker.answers(text, twin)
    for name in columns:
        table.add_column(name)
    table.add_row(*(escape(answer) or "—" for answer in columns.values()))
    out.print(table)
    if asker.note:
        out.print(escape(asker.note), style="dim")


if __name__ == "__main__":
    main()
