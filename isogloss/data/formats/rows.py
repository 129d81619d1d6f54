"""Rows: one turn in one language, as most formats give it, and their joining by id into examples."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from isogloss.data.examples import ParallelExample, Turn
from isogloss.data.text import canonical
from isogloss.errors import DataError

TASK = "instruction"  # the task of a row that names none


@dataclass(frozen=True, slots=True)
class Row:
    """A turn, the language it is in (our code), and the line where it stands."""

    line: int
    id: str
    task: str
    language: str
    turn: Turn


def join(rows: Iterable[Row], path: Path) -> list[ParallelExample]:
    """One example per id, in the order in which the ids first occur.

    Raises:
        DataError: There is no row, or an id has a language twice, or two tasks.
    """
    firsts: dict[str, Row] = {}
    turns: dict[str, dict[str, Turn]] = {}
    for row in rows:
        first = firsts.setdefault(row.id, row)
        if first.task != row.task:
            message = f"id {row.id!r} has task {row.task!r} here and {first.task!r} in line {first.line}"
            raise DataError(message + "; an id has one task", path, row.line)
        of_id = turns.setdefault(row.id, {})
        if row.language in of_id:
            message = f"id {row.id!r} has {row.language} twice; give each row an id of its own"
            raise DataError(message, path, row.line)
        of_id[row.language] = row.turn
    if not firsts:
        raise DataError("the file holds no row; give it at least one", path)
    return [ParallelExample(id, first.task, turns[id]) for id, first in firsts.items()]


def identifier(value: object, path: Path, line: int) -> str:
    """A text or whole number as an id.

    Raises:
        DataError: It is empty or something else.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, dict):
        message = "the id is an object; it must be a text or a whole number (Indonesian is written 'ind')"
        raise DataError(message, path, line)
    if value is None or value == "":
        raise DataError("no id; give each item a text or a whole number", path, line)
    if not isinstance(value, str):
        raise DataError(f"the id is {value!r}; it must be a text or a whole number", path, line)
    return value


def turn(instruction: object, response: object, language: str, path: Path, line: int) -> Turn:
    """A turn whose instruction is not empty; the response may be absent (None).

    Raises:
        DataError: The instruction is absent or empty, or one of them is no text.
    """
    if instruction is None:
        raise DataError(f"no instruction in {language}; add one or leave {language} out", path, line)
    asked = _text(instruction, "instruction", language, path, line)
    if not asked.strip():
        message = f"the instruction in {language} is empty; write one or leave {language} out"
        raise DataError(message, path, line)
    answer = None if response is None else _text(response, "response", language, path, line)
    return Turn(asked, answer)


def task_of(value: object, path: Path, line: int) -> str:
    """The task's name; absent means `TASK`.

    Raises:
        DataError: It is empty or no text.
    """
    if value is None:
        return TASK
    if not isinstance(value, str) or not value:
        raise DataError(f"the task is {value!r}; it must be a name such as {TASK!r}", path, line)
    return value


def _text(value: object, field: str, language: str, path: Path, line: int) -> str:
    if not isinstance(value, str):
        message = f"the {field} in {language} is a {type(value).__name__}; it must be a text"
        raise DataError(message, path, line)
    return canonical(value, f"the {field} in {language}", path, line)
