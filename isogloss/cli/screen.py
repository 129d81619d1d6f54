"""Terminal output while something runs: lines and progress bars."""

import contextlib
import sys
import time
import unicodedata
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TextColumn
from rich.text import Text

from isogloss.errors import ConfigError
from isogloss.languages import Language

RECENT = 8
"""Number of lines of progress over which the remaining time is estimated."""

out, err = Console(highlight=False), Console(stderr=True, highlight=False)


class Clock(ProgressColumn):
    """Remaining time while a task runs, elapsed time when it is done."""

    def render(self, task: Task) -> Text:
        if task.finished:
            return Text(f"{clock_time(task.finished_time or 0)}")
        left = task.time_remaining
        return Text("" if left is None else f"{clock_time(left)} left", style="cyan")


class Screen:
    """Shows the progress of a run: bars on a terminal, otherwise a plain line now and then."""

    every = 15.0
    """Seconds between two plain lines."""

    def say(self, text: str) -> None:
        """Print a line about the current stage."""
        out.print(escape(text), style="bold", soft_wrap=not out.is_terminal)

    @contextmanager
    def bar(self, what: str) -> Iterator[Callable[[int, int], None]]:
        """Show progress with the remaining time."""
        with self._bar(what) if out.is_terminal else self._lines(what) as progress:
            yield progress

    @contextmanager
    def _bar(self, what: str) -> Iterator[Callable[[int, int], None]]:
        columns = (
            SpinnerColumn(finished_text="[green]✓[/]"),
            TextColumn("{task.description:<20}"),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f} %"),
            Clock(),
        )
        with Progress(*columns, console=out) as progress:
            task = progress.add_task(escape(what), total=None)
            yield lambda done, of: progress.update(task, completed=done, total=of)
            total = progress.tasks[0].total or 1
            progress.update(task, completed=total, total=total)

    @contextmanager
    def _lines(self, what: str) -> Iterator[Callable[[int, int], None]]:
        began = said = time.monotonic()
        # The first step may compile, or be the first after a resumed half: neither tells the rate.
        recent: deque[tuple[float, int]] = deque(maxlen=RECENT)

        def progress(done: int, of: int) -> None:
            nonlocal said
            now = time.monotonic()
            if not recent or now - said >= self.every:
                recent.append((now, done))
            if now - said >= self.every and 0 < done < of:
                said = now
                then, before = recent[0]
                rest = (now - then) * (of - done) / (done - before) if done > before else None
                left = f", {clock_time(rest)} left" if rest is not None else ""
                print_line(f"  {what}: {100 * done // of} %{left}")

        yield progress
        print_line(f"  {what}: {clock_time(time.monotonic() - began)}")


def print_line(text: str) -> None:
    """Print a line without wrapping it, so that a path in it can be copied."""
    out.print(escape(text), soft_wrap=True)


def print_first(most: int, lines: Sequence[str]) -> None:
    """Print the first lines of a list, which may hold text of a dataset, and the number of the others."""
    for line in lines[:most]:
        print_line(printable(line))
    if len(lines) > most:
        out.print(f"and {len(lines) - most} more")


def clock_time(seconds: float) -> str:
    """Format seconds as minutes and seconds, with hours if there are any."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def typed_lines(language: Language) -> Iterator[str]:
    """Yield lines that are typed or piped in, until an empty line or the end of input."""
    asked = sys.stdin.isatty()
    if asked:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  # arrow keys and history
        out.print(f"Ask in {language.name}; an empty line quits.")
    while True:
        try:
            line = input("> " if asked else "").strip()
        except EOFError:
            if asked:
                out.print()
            return
        if not line:
            return
        yield readable(line)


def readable(text: str) -> str:
    """Return a typed text unchanged.

    Raises:
        ConfigError: The text is in another encoding.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ConfigError(
            "the instruction is not UTF-8; set the terminal to UTF-8, or convert the text"
        ) from None
    return text


def printable(text: str) -> str:
    """Replace control characters, which a terminal would execute, in text of a model or dataset."""
    return "".join("�" if unicodedata.category(c) == "Cc" and c not in "\n\t" else c for c in text)
