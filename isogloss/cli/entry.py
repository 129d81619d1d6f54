"""The entry point: each command parses its arguments, calls one function, and prints.

Torch is not imported before the settings are known to be valid.
"""

import gc
import io
import sys
from collections.abc import Sequence
from typing import Any

import typer
from rich.markup import escape

from isogloss.cli import data, measuring, training, using
from isogloss.cli.app import app
from isogloss.cli.screen import err
from isogloss.errors import IsoglossError

COMMANDS = (
    training.run,
    training.tune,
    training.distill,
    training.cache,
    measuring.teacher_prompt,
    measuring.teacher_gain,
    measuring.transfer,
    measuring.evaluate,
    measuring.report,
    data.languages,
    using.ask,
    using.export,
    training.add_language,
    data.data,
    data.translate,
    measuring.compare,
    measuring.suites,
    measuring.check_leaks,
    training.plan,
    using.serve,
)
"""All commands, in the order of `isogloss --help`; each is named after its function, with dashes."""
for command in COMMANDS:
    app.command()(command)


def main(arguments: Sequence[str] | None = None, app: typer.Typer = app, name: str = "isogloss") -> None:
    """Run the command line. An error that the user can fix gives one line on stderr and exit code 2.

    Args:
        arguments: Those of the command line if not given.
        app: Another application, of a script outside the package.
        name: Program name in messages.
    """
    # Python's collector would look through a data set's rows again and again while they are read.
    gc.set_threshold(20_000)
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words and name == "isogloss":
        words = ["--help"]
    # A terminal with another encoding prints ? for characters it lacks, instead of ending the run.
    for stream, errors in ((sys.stdout, "replace"), (sys.stderr, "replace"), (sys.stdin, "surrogateescape")):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=errors)
    try:
        code = app(words, prog_name=name, standalone_mode=False) or 0
        if code == INTERRUPTED:  # Typer has caught the interrupt
            raise KeyboardInterrupt
        sys.exit(code)
    except IsoglossError as error:
        _refuse(str(error))
    except USAGE_ERROR as error:
        path = error.ctx.command_path if error.ctx else "isogloss"
        _refuse(f"{' '.join(error.format_message().split())} See `{path} --help`.")
    except (KeyboardInterrupt, typer.Abort):
        kept = not words or words[0] not in UNSAVED
        err.print("stopped; the same command resumes from what was saved" if kept else "stopped")
        sys.exit(INTERRUPTED)
    except BrokenPipeError:  # the reader of our output has exited
        sys.stdout = None  # type: ignore[assignment]  # so that nothing is flushed at exit
        sys.exit(1)
    except OSError as error:
        # Without errno it is transformers' message of several lines for a missing model.
        message = str(error).split("\n")[0] if error.errno is None else error.strerror or str(error)
        _refuse(message if error.filename is None else f"{error.filename}: {message}")


USAGE_ERROR: Any = typer.BadParameter.__base__
"""Raised by Typer for an unknown command or option, or a missing argument."""
INTERRUPTED = 130
UNSAVED = ("ask", "plan", "compare", "check-leaks", "teacher-gain", "teacher-prompt")
"""Commands that only print, so that nothing is left to resume."""


def _refuse(lines: str) -> None:
    for line in lines.split("\n"):
        err.print(f"[red]error[/] {escape(line)}", soft_wrap=True)
    sys.exit(2)
