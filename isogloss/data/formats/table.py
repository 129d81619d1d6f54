"""Tables: files and folders of them, read with a mapping from our fields to the table's columns.

One language per row, joined by id:     {"id": "uid", "language": "locale", "instruction": "text"}
all languages in a row:                 {"en.instruction": "question", "sw.instruction": "question_sw"}
A field may be a template of columns:   {"instruction": "{premise}\\n{hypothesis}", "response": "label"}

`records` lists the supported files.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from string import Formatter
from typing import Any, Final

from isogloss.data.examples import ParallelExample
from isogloss.data.formats.lines import kind_of, language_of, nearest
from isogloss.data.formats.records import Record, Tell, nobody, read_records
from isogloss.data.formats.turns import (
    NO_INSTRUCTION,
    LeftOut,
    Only,
    ParsedTurn,
    absent,
    identifier,
    join,
    language_or_none,
    parsed,
    task_of,
)
from isogloss.data.text import canonical
from isogloss.errors import DataError
from isogloss.languages import SOURCE

_TURN: Final = ("instruction", "response")
_FIELDS: Final = ("id", "task", "language", *_TURN)

Fill = Callable[[Record], str | None]


def read(
    path: Path,
    columns: Mapping[str, str],
    *,
    split: str | None = None,
    tell: Tell = nobody,
    only: Only = iter,
) -> list[ParallelExample]:
    """Return all items of the table, in the order in which their IDs first occur.

    Columns inside an object are named with dots (translation.sw). If all languages are in a row, a language
    with empty cells is skipped. A row in an unknown language is also skipped. Without an id, the row number
    is used.

    Args:
        columns: Maps our field (id, task, language, instruction, response, or sw.instruction …) to the name
            of a column, or to a template with column names in braces.
        path, split, tell, only: As in `parallel_jsonl.read`.

    Raises:
        DataError: The table cannot be opened, lacks a column, has a malformed row, or has no usable row. In a
            file without lines (parquet, arrow), the number after the path is the row number.
    """
    languages = _languages(columns, path)
    # Read twice: a column's type is known only at its end, and a table may not fit in memory.
    names, whole = _columns(_flat_records(path, split, tell))
    columns = {field: canonical(column) for field, column in columns.items()}
    fills = {field: _template(column, names, path) for field, column in columns.items()} if names else {}
    table = (_with_integers(record, whole) for record in _flat_records(path, split))
    return join(_rows(table, fills, languages), path, tell, only=only)


def _flat_records(path: Path, split: str | None, tell: Tell = nobody) -> Iterator[Record]:
    for record in read_records(path, split, tell=tell):
        yield record._replace(cells=_flat(record.cells))


def _languages(columns: Mapping[str, str], path: Path) -> dict[str, str]:
    """Return our language code for each field prefix: '' (English) for plain fields, sw for sw.response."""
    languages: dict[str, str] = {}
    for field in columns:
        code, _, name = field.rpartition(".")
        given, known = (name, _TURN) if code else (field, _FIELDS)
        if given not in known:
            raise DataError(f"{field!r} is not a field; {nearest(given, known)}", path)
        if code or name in _TURN:
            languages[code] = language_of(code, path).code if code else SOURCE
    for code in languages or [""]:
        field = f"{code}.instruction" if code else "instruction"
        if field not in columns:
            raise DataError(f"the columns name no {field!r}; add it", path)
    if len(set(languages.values())) < len(languages):
        raise DataError("the columns name a language twice; keep one of its codes", path)
    if "language" in columns and set(languages) != {""}:
        raise DataError(
            "the columns name both 'language' and fields such as sw.instruction; keep one kind", path
        )
    if "language" in columns and "id" not in columns:
        raise DataError("the columns name 'language' but no 'id'; add it, as it joins the languages", path)
    return languages


def _rows(
    table: Iterable[Record], fills: Mapping[str, Fill], languages: Mapping[str, str]
) -> Iterator[ParsedTurn | LeftOut]:
    def cell(field: str, record: Record) -> str | None:
        return fills[field](record) if field in fills else None

    for number, record in enumerate(table, start=1):
        code = _language(cell("language", record), record) if "language" in fills else ""
        if isinstance(code, LeftOut):
            yield code
            continue
        id = identifier(cell("id", record) if "id" in fills else number, record)
        task = task_of(cell("task", record), record)
        there = False
        for prefix, default in languages.items():
            dot = f"{prefix}." if prefix else ""
            instruction, response = (cell(f"{dot}{field}", record) for field in _TURN)
            if prefix and instruction is None and response is None:
                continue
            there = True
            yield parsed(record, id, task, code or default, instruction, response)
        if not there:
            error = record.error("no instruction in any language; add one or remove the row")
            yield LeftOut(NO_INSTRUCTION, error)


def _language(code: str | None, at: Record) -> str | LeftOut:
    if code is None:
        return LeftOut("{} without a language", at.error("no language; add it"))
    return language_or_none(code, at)


def _template(column: str, names: list[str], path: Path) -> Fill:
    """Return a function that fills a field from a row: with a column's text, or several in a template."""
    if column in names or "{" not in column:
        _refuse_unknown(column, names, path)
        return lambda record: _text(column, record)
    try:
        parts = [
            (text, name and name + (f"!{conv}" if conv else "") + (f":{spec}" if spec else ""))
            for text, name, spec, conv in Formatter().parse(column)
        ]
    except ValueError as error:
        message = f"the template {column!r} is malformed ({error}); write each column as {{name}}"
        raise DataError(message, path) from None
    for _, name in parts:
        if name is not None:
            _refuse_unknown(name, names, path)

    def fill(record: Record) -> str | None:
        values = [None if name is None else _text(name, record) for _, name in parts]
        if all(value is None for value in values):
            return None
        return "".join(text + (value or "") for (text, _), value in zip(parts, values, strict=True))

    return fill


def _refuse_unknown(column: str, names: list[str], path: Path) -> None:
    if column not in names:
        raise DataError(f"the table has no column {column!r}; {nearest(column, names)}", path)


def _text(column: str, record: Record) -> str | None:
    """Return a cell as text; None if it is empty or NaN."""
    value = record.cells.get(column)
    if absent(value) or value == "":
        return None
    if isinstance(value, list | dict | bytes):
        raise record.error(f"the column {column!r} has {kind_of(value)}; only text and numbers can be read")
    return str(value)


def _columns(table: Iterable[Record]) -> tuple[list[str], set[str]]:
    """Return all columns, and those of integers that pandas made floats because a cell is empty."""
    names: dict[str, None] = {}
    gaps, others = set[str](), set[str]()
    for record in table:
        for name, value in record.cells.items():
            names.setdefault(name)
            if absent(value):
                gaps.add(name)
            elif not (isinstance(value, float) and value.is_integer()):
                others.add(name)
    return list(names), gaps - others


def _with_integers(record: Record, whole: Collection[str]) -> Record:
    numbers = {
        name: int(value)
        for name in whole
        if isinstance(value := record.cells.get(name), float) and not absent(value)
    }
    return record._replace(cells={**record.cells, **numbers}) if numbers else record


def _flat(cells: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in cells.items():
        flat.update(_flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value})
    return flat
