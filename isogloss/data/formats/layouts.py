"""Detects the layout of a file from the keys of its first row: our parallel format or a chat layout.

A table with other columns matches none of them; its columns are named in the settings
(`data: {type: table, columns: …}`).
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from isogloss.data.examples import ParallelExample
from isogloss.data.formats import chat_jsonl, parallel_jsonl
from isogloss.data.formats.records import Tell, nobody, read_records
from isogloss.data.formats.turns import LeftOut, Only, present
from isogloss.errors import DataError
from isogloss.languages import UnknownLanguageError, resolve

CHATS: Final = {
    "messages": "messages",
    "conversations": "ShareGPT",
    "prompt": "prompt and completion",
    "instruction": "instruction and output (Alpaca, Dolly)",
}
"""Names of the layouts of `chat_jsonl` by the key that identifies them."""
_PARALLEL: Final = {"id", "task", "language", "instruction", "response"}


class Layout(NamedTuple):
    """How a file is read.

    Attributes:
        type: The settings' `data.type`.
        name: Name for display.
    """

    type: str
    name: str


def layout_of(path: Path, split: str | None = None) -> Layout:
    """Detect the layout from the first row.

    Raises:
        DataError: The file cannot be opened, is empty, or its first row matches no known layout.
    """
    first = next(read_records(path, split, kind="jsonl"), None)
    if first is None:
        raise DataError("the file has no rows; it must have at least one", path)
    if (found := _layout(first.cells)) is None:
        keys = ", ".join(map(str, list(first.cells)[:12]))
        raise DataError(
            f"the keys are {keys}, which match no known layout; map them in the settings, as "
            "data: {type: table, columns: {instruction: …, response: …}}",
            first.path,
            first.line,
        )
    return found


def read(
    path: Path,
    language: str = "en",
    *,
    split: str | None = None,
    tell: Tell = nobody,
    each: Callable[[LeftOut], object] = nobody,
    only: Only = iter,
) -> tuple[Layout, list[ParallelExample]]:
    """Return a file's layout and all its items.

    Args:
        language: The language of chats that name none.
        path, split, tell, each, only: As in `parallel_jsonl.read`.

    Raises:
        DataError: As for `layout_of`, or a row is malformed.
    """
    layout = layout_of(path, split)
    if layout.type == "parallel":
        return layout, parallel_jsonl.read(path, split=split, tell=tell, each=each, only=only)
    return layout, chat_jsonl.read(path, language, split=split, tell=tell, each=each, only=only)


def _layout(cells: Mapping[str, Any]) -> Layout | None:
    there = present(cells)
    if {"id", "language", "instruction"} <= cells.keys() <= _PARALLEL:
        return Layout("parallel", "one language a row")
    if key := chat_jsonl.key_of(there):
        return Layout("chat", CHATS[key])
    if any(isinstance(cells[key], Mapping) and _is_language(key) for key in there - {"id", "task"}):
        return Layout("parallel", "all languages in a row")
    return None


def _is_language(key: str) -> bool:
    try:
        resolve(key)
    except UnknownLanguageError:
        return False
    return True
