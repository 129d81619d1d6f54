"""The Typer application, and the arguments that several commands share."""

from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from isogloss.cli.screen import out
from isogloss.config import home


class Commands(TyperGroup):
    """Click treats every EOFError as Ctrl-D; outside the prompt it comes from a damaged file."""

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
    """Parse a path argument, expanding `~`: a shell does not expand it in `--out=~/runs`."""
    return home(Path(text))


ConfigFile = Annotated[
    Path | None,
    typer.Argument(
        metavar="[CONFIG]",
        parser=path_of,
        help="YAML settings file or run folder. Default: the embedded demo settings.",
    ),
]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", parser=path_of, help="Run folder.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="Change a setting, e.g. evaluate.items=9; repeatable."),
]
DataRoot = Annotated[
    Path | None,
    typer.Option(metavar="FOLDER", parser=path_of, help="Folder of public datasets. Default: ISOGLOSS_DATA."),
]
AsJson = Annotated[bool, typer.Option("--json", help="JSON on standard output.")]


def alone(command: Callable[..., None]) -> typer.Typer:
    """Return an application with a single command, for scripts outside the package."""
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
    then make it follow them the same way in every language."""
