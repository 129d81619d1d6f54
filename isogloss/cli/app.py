"""The command line's application, and the arguments that several commands share."""

from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from isogloss.cli.screen import out
from isogloss.config import (
    home,
)


class Commands(TyperGroup):
    """Click takes every EOFError for Ctrl-D; from anywhere but the prompt it is a damaged file's."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except EOFError as error:
            raise RuntimeError("a file ended too early") from error


app = typer.Typer(
    cls=Commands,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)


def path_of(text: Any) -> Path:
    """A path on the command line; a shell leaves the `~` of `--out=~/runs` as it is."""
    return home(Path(text))


ConfigFile = Annotated[
    Path | None,
    typer.Argument(
        metavar="[CONFIG]",
        parser=path_of,
        help="YAML settings, or a run's folder; without it the embedded default.",
    ),
]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", parser=path_of, help="A run's folder.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="Change a setting, e.g. distill.epochs=2; repeatable."),
]
DataRoot = Annotated[
    Path | None,
    typer.Option(metavar="FOLDER", parser=path_of, help="Folder of the real data sets; else ISOGLOSS_DATA."),
]


def alone(command: Callable[..., None]) -> typer.Typer:
    """An application of one command, for scripts beside the package."""
    made = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown")
    made.command()(command)
    return made


def _version(asked: bool) -> bool:
    if asked:
        out.print(f"isogloss {version('isogloss')}")
        raise typer.Exit
    return asked


@app.callback()
def start(
    asked: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit."),
    ] = False,
) -> None:
    """Tune a language model on English instructions,
    then have it follow them the same way in every language."""
