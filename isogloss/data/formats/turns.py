"""Turns in one language each, as most formats provide them, and joining them by ID into examples."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isogloss.data.examples import ParallelExample, Turn
from isogloss.data.formats.lines import kind_of, language_of
from isogloss.data.formats.records import Record, Tell, nobody
from isogloss.data.text import canonical
from isogloss.errors import DataError

TASK = "instruction"  # task of a row that names none
NO_INSTRUCTION = "{} without an instruction"


@dataclass(frozen=True, slots=True)
class ParsedTurn:
    """A turn with its language (our code), file and line."""

    path: Path
    line: int
    id: str
    task: str
    language: str
    turn: Turn


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Part of a file that this reader cannot use and skips.

    Attributes:
        why: Description, with {} for the number of such parts.
        error: Raised if the file has no usable row.
        whole: Whether it is a whole row, or part of a row that is otherwise used.
    """

    why: str
    error: DataError
    whole: bool = True


Only = Callable[[Iterator[ParsedTurn]], Iterable[ParsedTurn]]


def join(
    rows: Iterable[ParsedTurn | LeftOut],
    path: Path,
    tell: Tell = nobody,
    each: Callable[[LeftOut], object] = nobody,
    only: Only = iter,
) -> list[ParallelExample]:
    """Join rows into one example per ID, in the order in which the IDs first occur.

    Args:
        rows: Rows in file order.
        path: The file or folder, for messages.
        tell, each, only: As in `parallel_jsonl.read`.

    Raises:
        DataError: No row can be used, or an ID has a language twice or two tasks.
    """
    found: dict[str, tuple[str, int, dict[str, Turn]]] = {}
    left = Counter[str]()
    error = DataError("the file has no rows; it must have at least one", path)
    whole = used = 0

    def usable() -> Iterator[ParsedTurn]:
        nonlocal error, whole, used
        for row in rows:
            if isinstance(row, ParsedTurn):
                used += 1
                yield row
                continue
            if not left:
                error = row.error
            left[row.why] += 1
            whole += row.whole
            each(row)

    for row in only(usable()):
        task, line, turns = found.setdefault(row.id, (row.task, row.line, {}))
        if task != row.task:
            message = f"id {row.id!r} has task {row.task!r} here and {task!r} in line {line}"
            raise DataError(message + "; an id has one task", row.path, row.line)
        if row.language in turns:
            message = f"id {row.id!r} has {row.language} twice; give each row its own id"
            raise DataError(message, row.path, row.line)
        turns[row.language] = row.turn
    if not used:
        raise error
    if left:
        reasons = "; ".join(why.format(number) for why, number in left.most_common())
        tell(f"{path}: {used + whole} rows, skipped: {reasons}")
    made = []
    while found:  # frees each row as it is converted
        id, (task, _, turns) = found.popitem()
        made.append(ParallelExample(id, task, turns))
    made.reverse()
    return made


def language_or_none(code: object, at: Record) -> str | LeftOut:
    """Return our code of the language, or a `LeftOut` if the language is unknown.

    Raises:
        DataError: The code is not text.
    """
    try:
        return language_of(code, at.path, at.line).code
    except DataError as error:
        if not isinstance(code, str):
            raise
        return LeftOut(f"{{}} in the unknown language {code!r}", error)


def absent(value: object) -> bool:
    """Return whether a cell is empty: null, or NaN from pandas."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def present(cells: Mapping[str, Any]) -> set[str]:
    """Return the names of the cells that are not empty."""
    return {name for name, value in cells.items() if not absent(value)}


def identifier(value: object, at: Record) -> str:
    """Return a string or integer as an ID; 3.0, which pandas makes of 3 if another ID is missing, becomes 3.

    Raises:
        DataError: The value is empty or of another type.
    """
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, dict):
        raise at.error("the id is an object; it must be text or an integer (Indonesian is written 'ind')")
    if absent(value) or value == "":
        raise at.error("no id; give each item text or an integer")
    if not isinstance(value, str):
        raise at.error(f"the id is {value!r}; it must be text or an integer")
    return canonical(value, "the id", at.path, at.line)


def parsed(
    at: Record, id: str, task: str, language: str, instruction: object, response: object
) -> ParsedTurn | LeftOut:
    """Return a row's turn in a language; its response may be absent. Without an instruction, a `LeftOut`.

    Raises:
        DataError: Instruction or response is not text.
    """
    if absent(instruction):
        error = at.error(f"no instruction in {language}; add one or leave {language} out")
        return LeftOut(NO_INSTRUCTION, error)
    asked = _text(instruction, "instruction", language, at)
    if not asked.strip():
        error = at.error(f"the instruction in {language} is empty; write one or leave {language} out")
        return LeftOut(NO_INSTRUCTION, error)
    answer = None if absent(response) else _text(response, "response", language, at)
    return ParsedTurn(at.path, at.line, id, task, language, Turn(asked, answer))


def task_of(value: object, at: Record) -> str:
    """Return the task's name; `TASK` if it is absent.

    Raises:
        DataError: The name is empty or not text.
    """
    if absent(value):
        return TASK
    if not isinstance(value, str) or not value:
        raise at.error(f"the task is {value!r}; it must be a name such as {TASK!r}")
    return canonical(value, "the task", at.path, at.line)


def _text(value: object, field: str, language: str, at: Record) -> str:
    if not isinstance(value, str):
        raise at.error(f"the {field} in {language} is {kind_of(value)}; it must be text")
    return canonical(value, f"the {field} in {language}", at.path, at.line)
