"""Tables: any file that `datasets` can open, read through a map from our fields to the table's columns.

One language a row, joined by id:       {"id": "uid", "language": "locale", "instruction": "text"}
all languages in a row:                 {"en.instruction": "question", "sw.instruction": "question_sw"}
A field may be a template of columns:   {"instruction": "{premise}\\n{hypothesis}", "response": "label"}

Opens .csv, .tsv, .json, .jsonl (all of these also .gz), .parquet, .arrow, a folder of such files, and what
`Dataset.save_to_disk` wrote. A .tsv is split at tabs, its quotation marks being text. Nothing is cached.
"""

import csv
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from string import Formatter
from typing import Any, Final

from isogloss.data.examples import ParallelExample
from isogloss.data.formats.lines import language_of, nearest, parse_object, read_lines
from isogloss.data.formats.rows import Row, identifier, join, task_of, turn
from isogloss.data.text import canonical_values
from isogloss.errors import DataError

_TURN: Final = ("instruction", "response")
_FIELDS: Final = ("id", "task", "language", *_TURN)

Cells = Mapping[str, Any]
Numbered = Iterator[tuple[int, Cells]]


def read(
    path: Path, columns: Mapping[str, str], *, language: str = "en", split: str | None = None
) -> list[ParallelExample]:
    """All items of the table, in the order in which their ids first occur.

    Columns inside an object are named with dots (translation.sw). Where all languages are in a row, one
    whose cells are empty is left out. Without an id the number of the row serves.

    Args:
        path: A file or folder.
        columns: Our field (id, task, language, instruction, response, or sw.instruction …) to the name of
            a column, or to a template with names of columns in braces.
        language: The language of instruction and response where there is no language column.
        split: Which part of a folder to read; needed only where it holds several.

    Raises:
        DataError: The table cannot be opened, lacks a column, or has a malformed row. In a file without
            lines (parquet, arrow) the number after the path counts rows.
    """
    languages = _languages(columns, language_of(language, path).code, path)
    table = [(at, _flat(cells)) for at, cells in _open(path, split)]
    names = list(dict.fromkeys(name for _, cells in table for name in cells))
    templates = {field: _template(column, names, path) for field, column in columns.items()} if table else {}
    return join(_rows(table, templates, languages, path), path)


def _languages(columns: Mapping[str, str], default: str, path: Path) -> dict[str, str]:
    """Our language code for each prefix of a field: '' for plain fields, sw for sw.instruction."""
    languages: dict[str, str] = {}
    for field in columns:
        code, _, name = field.rpartition(".")
        if not code and field not in _FIELDS:
            raise DataError(f"{field!r} is not a field; {nearest(field, _FIELDS)}", path)
        if code and name not in _TURN:
            raise DataError(f"{field!r} is not a field; {nearest(name, _TURN)}", path)
        if code or name in _TURN:
            languages[code] = language_of(code, path).code if code else default
    for code in languages:
        field = f"{code}.instruction" if code else "instruction"
        if field not in columns:
            raise DataError(f"the columns name no {field!r}; add it", path)
    if not languages:
        raise DataError("the columns name no 'instruction'; add it", path)
    if len(set(languages.values())) < len(languages):
        raise DataError("the columns name a language twice; keep one of its codes", path)
    if "language" in columns and set(languages) != {""}:
        raise DataError("the columns name both 'language' and languages of their own; keep one kind", path)
    if "language" in columns and "id" not in columns:
        raise DataError("the columns name 'language' but no 'id'; add it, as it joins the languages", path)
    return languages


def _rows(
    table: Sequence[tuple[int, Cells]],
    templates: Mapping[str, Callable[[Cells, int], str | None]],
    languages: Mapping[str, str],
    path: Path,
) -> Iterator[Row]:
    def cell(field: str, cells: Cells, at: int) -> str | None:
        return templates[field](cells, at) if field in templates else None

    for number, (at, cells) in enumerate(table, start=1):
        id = identifier(cell("id", cells, at) if "id" in templates else number, path, at)
        task = task_of(cell("task", cells, at), path, at)
        there = False
        for prefix, default in languages.items():
            code = default
            if "language" in templates:
                code = language_of(cell("language", cells, at), path, at).code
            dot = f"{prefix}." if prefix else ""
            instruction, response = (cell(f"{dot}{field}", cells, at) for field in _TURN)
            if prefix and instruction is None and response is None:
                continue
            there = True
            yield Row(at, id, task, code, turn(instruction, response, code, path, at))
        if not there:
            raise DataError("no instruction in any language; fill one in or remove the row", path, at)


def _template(column: str, names: list[str], path: Path) -> Callable[[Cells, int], str | None]:
    """What fills a field from a row: a column's text, or several in a template."""
    if column in names or "{" not in column:
        _refuse_unknown(column, names, path)
        return lambda cells, at: _text(cells.get(column), column, path, at)
    try:
        parts = [
            (
                text,
                name if name is None else name + (f"!{conv}" if conv else "") + (f":{spec}" if spec else ""),
            )
            for text, name, spec, conv in Formatter().parse(column)
        ]
    except ValueError as error:
        message = f"the template {column!r} is malformed ({error}); write each column as {{name}}"
        raise DataError(message, path) from None
    for _, name in parts:
        if name is not None:
            _refuse_unknown(name, names, path)

    def fill(cells: Cells, at: int) -> str | None:
        values = [None if name is None else _text(cells.get(name), name, path, at) for _, name in parts]
        if all(value is None for value in values):
            return None
        return "".join(text + (value or "") for (text, _), value in zip(parts, values, strict=True))

    return fill


def _refuse_unknown(column: str, names: list[str], path: Path) -> None:
    if column not in names:
        raise DataError(f"the table has no column {column!r}; {nearest(column, names)}", path)


def _text(value: Any, column: str, path: Path, at: int) -> str | None:
    """A cell as text; None where it is empty or not a number."""
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, list | dict | bytes):
        message = f"the column {column!r} holds a {type(value).__name__}; only texts and numbers can be read"
        raise DataError(message, path, at)
    return str(value)


def _flat(cells: Cells, prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in cells.items():
        flat.update(_flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value})
    return flat


def _open(path: Path, split: str | None) -> Numbered:
    if path.is_dir():
        return _open_folder(path, split)
    kind = path.name.removesuffix(".gz").rpartition(".")[2].lower()
    if kind not in _OPENERS:
        raise DataError(f"{path.name!r} is not a kind of table; {nearest(kind, _OPENERS)}", path)
    return _OPENERS[kind](path)


def _open_folder(path: Path, split: str | None) -> Numbered:
    if (path / "dataset_dict.json").is_file():
        splits = sorted(p.name for p in path.iterdir() if p.is_dir())
        return _open_folder(path / _one(splits, split, path), None)
    if (path / "state.json").is_file():
        return _saved(path)
    files = sorted(p for p in path.iterdir() if p.name.removesuffix(".gz").rpartition(".")[2] in _OPENERS)
    if not files:
        raise DataError(f"no table in the folder; it must hold files in .{', .'.join(_OPENERS)}", path)
    # Shards are named train-00000-of-00002.parquet, other files train.csv.
    by_split: dict[str, list[Path]] = {}
    for file in files:
        by_split.setdefault(file.name.split(".")[0].split("-0")[0], []).append(file)
    chosen = by_split[_one(list(by_split), split, path)]
    return ((at, cells) for file in chosen for at, cells in _open(file, None))


def _one(splits: list[str], split: str | None, path: Path) -> str:
    if split is None and len(splits) != 1:
        raise DataError(f"the folder holds several splits; name one of {', '.join(splits)}", path)
    if split is not None and split not in splits:
        raise DataError(f"there is no split {split!r}; {nearest(split, splits)}", path)
    return split or splits[0]


def _csv(path: Path) -> Numbered:
    lines = read_lines(path)
    reader = csv.reader((line + "\n" for line in lines), strict=True)
    start = 1
    header: list[str] | None = None
    try:
        for fields in reader:
            if fields and header is None:
                header = fields
            elif fields and header is not None:
                yield start, _named(header, fields, path, start)
            start = reader.line_num + 1
    except csv.Error as error:
        raise DataError(
            f"not CSV ({error}); quote each field that holds a quotation mark", path, start
        ) from None


def _tsv(path: Path) -> Numbered:
    lines = read_lines(path)
    header = lines[0].split("\t") if lines else []
    for number, line in enumerate(lines[1:], start=2):
        if line:
            yield number, _named(header, line.split("\t"), path, number)


def _named(header: list[str], fields: list[str], path: Path, line: int) -> Cells:
    if len(fields) != len(header):
        message = f"{len(fields)} fields, but the header has {len(header)}; each row must have as many"
        raise DataError(message, path, line)
    return dict(zip(header, fields, strict=True))


def _json(path: Path) -> Numbered:
    lines = read_lines(path)
    text = "\n".join(lines)
    if not text.lstrip().startswith("["):
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield number, parse_object(line, path, number)
        return
    try:
        rows = canonical_values(json.loads(text))
    except json.JSONDecodeError as error:
        message = f"not JSON at column {error.colno} ({error.msg}); the file must be one list of objects"
        raise DataError(message, path, error.lineno) from None
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            message = f"item {number} of the list is a {type(row).__name__}; it must be an object"
            raise DataError(message, path)
        yield number, row


def _parquet(path: Path) -> Numbered:
    import pyarrow.parquet

    return _arrow_rows(lambda: pyarrow.parquet.ParquetFile(path).read(), path)


def _arrow(path: Path) -> Numbered:
    import pyarrow

    def table() -> Any:
        with pyarrow.OSFile(str(path)) as file:
            if file.read(6) == b"ARROW1":  # the file format; the library that writes data sets streams
                file.seek(0)
                return pyarrow.ipc.open_file(file).read_all()
            file.seek(0)
            return pyarrow.ipc.open_stream(file).read_all()

    return _arrow_rows(table, path)


def _saved(path: Path) -> Numbered:
    import datasets

    return _arrow_rows(
        lambda: datasets.load_from_disk(str(path), keep_in_memory=True).with_format("arrow")[:], path
    )


def _arrow_rows(load: Callable[[], Any], path: Path) -> Numbered:
    import pyarrow

    try:
        rows = load().to_pylist()
    except FileNotFoundError:
        raise DataError("there is no such file; give the path of an existing file", path) from None
    except (pyarrow.ArrowInvalid, OSError) as error:
        message = str(error).splitlines()[0].rstrip(". ")
        raise DataError(f"the table cannot be read ({message}); write it again", path) from None
    return enumerate(canonical_values(rows), start=1)


_OPENERS: Final[dict[str, Callable[[Path], Numbered]]] = {
    "parquet": _parquet,
    "csv": _csv,
    "tsv": _tsv,
    "json": _json,
    "jsonl": _json,
    "arrow": _arrow,
}
