"""Turns, one in one language, as most formats give them, and their joining by id into examples."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from isogloss.data.examples import ParallelExample, Turn
from isogloss.data.formats.lines import language_of
from isogloss.data.formats.records import Tell, nobody
from isogloss.data.text import canonical
from isogloss.errors import DataError

TASK = "instruction"  # the task of a row that names none


@dataclass(frozen=True, slots=True)
class ParsedTurn:
    """A turn, the language it is in (our code), and the file and line where it stands."""

    path: Path
    line: int
    id: str
    task: str
    language: str
    turn: Turn


@dataclass(frozen=True, slots=True)
class LeftOut:
    """What a file holds and this reader cannot use, which is no reason to refuse the rest.

    Attributes:
        why: In words, {} being how many there are of the same.
        error: What is said where the file holds nothing else.
        whole: Whether it is a row, or a part of one that is used otherwise.
    """

    why: str
    error: DataError
    whole: bool = True


Only = Callable[[Iterator[ParsedTurn]], Iterable[ParsedTurn]]


def nothing(left: LeftOut) -> None:
    """Heeds nothing that is left out."""


def join(
    rows: Iterable[ParsedTurn | LeftOut],
    path: Path,
    tell: Tell = nobody,
    each: Callable[[LeftOut], object] = nothing,
    only: Only = iter,
) -> list[ParallelExample]:
    """One example per id, in the order in which the ids first occur.

    Args:
        rows: In the order of the file.
        path: The file or folder, for messages.
        tell: Hears how much is left out, and why, in one line.
        each: Is given everything that is left out.
        only: Of all rows those that are wanted.

    Raises:
        DataError: There is no row that can be used, or an id has a language twice, or two tasks.
    """
    found: dict[str, tuple[str, int, dict[str, Turn]]] = {}
    left = Counter[str]()
    error = DataError("the file holds no row; give it at least one", path)
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
            message = f"id {row.id!r} has {row.language} twice; give each row an id of its own"
            raise DataError(message, row.path, row.line)
        turns[row.language] = row.turn
    if not used:
        raise error
    if left:
        reasons = "; ".join(why.format(number) for why, number in left.most_common())
        tell(f"{path}: left out of {used + whole} rows: {reasons}")
    made = []
    while found:  # so that no row is held twice
        id, (task, _, turns) = found.popitem()
        made.append(ParallelExample(id, task, turns))
    made.reverse()
    return made


def language_or_none(code: object, path: Path, line: int) -> str | LeftOut:
    """Our code of the language; a row in a language that is not known here is left out.

    Raises:
        DataError: It is no text.
    """
    try:
        return language_of(code, path, line).code
    except DataError as error:
        if not isinstance(code, str):
            raise
        return LeftOut(f"{{}} in {code!r}, which is no language known here", error)


def absent(value: object) -> bool:
    """Whether a cell is empty: null, or pandas' not-a-number."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def identifier(value: object, path: Path, line: int) -> str:
    """A text or whole number as an id; 3.0, which pandas makes of 3 where an id is missing, is 3.

    Raises:
        DataError: It is empty or something else.
    """
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, dict):
        message = "the id is an object; it must be a text or a whole number (Indonesian is written 'ind')"
        raise DataError(message, path, line)
    if absent(value) or value == "":
        raise DataError("no id; give each item a text or a whole number", path, line)
    if not isinstance(value, str):
        raise DataError(f"the id is {value!r}; it must be a text or a whole number", path, line)
    return canonical(value, "the id", path, line)


def turn(instruction: object, response: object, language: str, path: Path, line: int) -> Turn:
    """A turn whose instruction is not empty; the response may be absent (None).

    Raises:
        DataError: The instruction is absent or empty, or one of them is no text.
    """
    if absent(instruction):
        raise DataError(f"no instruction in {language}; add one or leave {language} out", path, line)
    asked = _text(instruction, "instruction", language, path, line)
    if not asked.strip():
        message = f"the instruction in {language} is empty; write one or leave {language} out"
        raise DataError(message, path, line)
    answer = None if absent(response) else _text(response, "response", language, path, line)
    return Turn(asked, answer)


def task_of(value: object, path: Path, line: int) -> str:
    """The task's name; absent means `TASK`.

    Raises:
        DataError: It is empty or no text.
    """
    if absent(value):
        return TASK
    if not isinstance(value, str) or not value:
        raise DataError(f"the task is {value!r}; it must be a name such as {TASK!r}", path, line)
    return canonical(value, "the task", path, line)


def _text(value: object, field: str, language: str, path: Path, line: int) -> str:
    if not isinstance(value, str):
        message = f"the {field} in {language} is a {type(value).__name__}; it must be a text"
        raise DataError(message, path, line)
    return canonical(value, f"the {field} in {language}", path, line)
