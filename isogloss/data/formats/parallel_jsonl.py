"""Our own format: JSON lines of the same instruction in several languages, in either of two forms.

All languages of an item in one line (what `write` makes), the codes being any that the registry knows:

    {"id": "1", "task": "qa", "en": {"instruction": "…", "response": "…"}, "sw": {"instruction": "…"}}

or one language a line, joined by id:

    {"id": "1", "task": "qa", "language": "sw", "instruction": "…", "response": "…"}

The first row settles the form of the file. A task may be left out, and so may a response, which a teacher
then writes. Indonesian is `ind` in the first form, because `id` is the item's.
"""

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from isogloss.data.examples import ParallelExample, Turn
from isogloss.data.formats.lines import language_of, nearest, read_objects, write_lines
from isogloss.data.formats.rows import Row, identifier, join, task_of, turn
from isogloss.errors import DataError
from isogloss.languages.registry import resolve

_ITEM: Final = ("id", "task")
_TURN: Final = ("instruction", "response")
_ROW: Final = (*_ITEM, "language", *_TURN)


def read(path: Path) -> list[ParallelExample]:
    """All items of the file, in the order in which their ids first occur.

    Raises:
        DataError: The file is missing, or a row is malformed.
    """
    return join(_rows(path), path)


def write(path: Path, examples: Iterable[ParallelExample]) -> None:
    """Write one item a line, in place of what the file held; a name in .gz is compressed."""
    write_lines(path, (json.dumps(_item(example), ensure_ascii=False) for example in examples))


def _rows(path: Path) -> Iterator[Row]:
    form: bool | None = None
    for line, row in read_objects(path):
        one_language = "language" in row or "instruction" in row
        if form is None:
            form = one_language
        if form != one_language:
            forms = ("one language", "all languages of an item")
            here, before = forms if one_language else forms[::-1]
            message = f"this row holds {here} and the first row {before}; use one form in a file"
            raise DataError(message, path, line)
        yield from [_row(row, path, line)] if one_language else _wide(row, path, line)


def _row(row: Mapping[str, Any], path: Path, line: int) -> Row:
    _refuse_unknown(row, _ROW, path, line)
    if "language" not in row:
        raise DataError('no language; add one such as "language": "sw"', path, line)
    language = language_of(row["language"], path, line).code
    return Row(
        line,
        identifier(row.get("id"), path, line),
        task_of(row.get("task"), path, line),
        language,
        turn(row.get("instruction"), row.get("response"), language, path, line),
    )


def _wide(row: Mapping[str, Any], path: Path, line: int) -> Iterator[Row]:
    id, task = identifier(row.get("id"), path, line), task_of(row.get("task"), path, line)
    codes = [key for key in row if key not in _ITEM]
    if not codes:
        raise DataError('no language; add one such as "sw": {"instruction": "…"}', path, line)
    for code in codes:
        language = language_of(code, path, line).code
        said = row[code]
        if not isinstance(said, dict):
            message = f"{code} holds a {type(said).__name__}; it must be an object with an instruction"
            raise DataError(message, path, line)
        _refuse_unknown(said, _TURN, path, line)
        yield Row(
            line,
            id,
            task,
            language,
            turn(said.get("instruction"), said.get("response"), language, path, line),
        )


def _refuse_unknown(keys: Iterable[str], known: Collection[str], path: Path, line: int) -> None:
    for key in keys:
        if key not in known:
            raise DataError(f"{key!r} is not a key; {nearest(key, known)}", path, line)


def _item(example: ParallelExample) -> dict[str, Any]:
    turns = {_key(code): _said(said) for code, said in example.turns.items()}
    return {"id": example.id, "task": example.task, **turns}


def _key(code: str) -> str:
    return resolve(code).iso639_3 if code in _ITEM else code


def _said(said: Turn) -> dict[str, str]:
    response = {} if said.response is None else {"response": said.response}
    return {"instruction": said.instruction, **response}
