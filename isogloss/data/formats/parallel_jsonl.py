"""Our own format: JSON lines of the same instruction in several languages, in one of two forms.

All languages of an item on one line (as `write` does), under any code that the registry knows:

    {"id": "1", "task": "qa", "en": {"instruction": "…", "response": "…"}, "sw": {"instruction": "…"}}

or one language per line, joined by id:

    {"id": "1", "task": "qa", "language": "sw", "instruction": "…", "response": "…"}

The first row decides the form of the file. A task may be left out, and so may a response, which a teacher
then writes; a language that is null counts as absent. Indonesian is `ind` in the first form, because `id` is
the item's ID. The same rows may also be a list in a .json file, or a .csv or .parquet file.
"""

import gzip
import json
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Any, Final

from isogloss.data.examples import ParallelExample
from isogloss.data.formats.lines import kind_of, language_of, nearest
from isogloss.data.formats.records import Record, Tell, nobody, read_records
from isogloss.data.formats.turns import (
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
from isogloss.files import replacing
from isogloss.languages.registry import resolve

_ITEM: Final = ("id", "task")
_TURN: Final = ("instruction", "response")
_ROW: Final = (*_ITEM, "language", *_TURN)


def read(
    path: Path,
    *,
    split: str | None = None,
    tell: Tell = nobody,
    each: Callable[[LeftOut], object] = nobody,
    only: Only = iter,
) -> list[ParallelExample]:
    """Return all items of the file, in the order in which their IDs first occur.

    Args:
        path: The file, a folder of such files, or hub:OWNER/NAME.
        split: Split of a folder or data set to read; defaults to train if there are several.
        tell: Callback that receives lines about the split that was chosen and the number of skipped rows,
            with reasons.
        each: Callback that receives each skipped row.
        only: Filter for the rows.

    Raises:
        DataError: The file is missing, a row is malformed, or no row can be used.
    """
    return join(_rows(path, split, tell), path, tell, each, only)


def write(path: Path, examples: Iterable[ParallelExample]) -> None:
    """Write one item per line, replacing the file; compress if its name ends in .gz."""
    data = "".join(json.dumps(_item(example), ensure_ascii=False) + "\n" for example in examples).encode()
    with replacing(path) as draft:
        draft.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)


def write_parquet(path: Path, examples: Iterable[ParallelExample]) -> None:
    """Write the same items as a table with one column per language, replacing the file."""
    import pyarrow
    import pyarrow.parquet

    rows = [_item(example) for example in examples]
    codes = dict.fromkeys(key for row in rows for key in row if key not in _ITEM)
    text = pyarrow.string()
    said = pyarrow.struct([(name, text) for name in _TURN])
    schema = pyarrow.schema([*((name, text) for name in _ITEM), *((code, said) for code in codes)])
    with replacing(path) as draft:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, schema), draft)


def _rows(source: Path, split: str | None, tell: Tell) -> Iterator[ParsedTurn | LeftOut]:
    form: bool | None = None
    for at in read_records(source, split, tell=tell, kind="jsonl"):
        one_language = "language" in at.cells or "instruction" in at.cells
        if form is None:
            form = one_language
        if form != one_language:
            forms = ("one language", "all languages of an item")
            here, before = forms if one_language else forms[::-1]
            raise at.error(f"this row has {here} and the first row {before}; use one form per file")
        yield from [_row(at)] if one_language else _wide(at)


def _row(at: Record) -> ParsedTurn | LeftOut:
    row = at.cells
    _refuse_unknown(row, _ROW, at)
    if absent(row.get("language")):
        raise at.error('no language; add one such as "language": "sw"')
    code = language_or_none(row["language"], at)
    if isinstance(code, LeftOut):
        return code
    id, task = identifier(row.get("id"), at), task_of(row.get("task"), at)
    return parsed(at, id, task, code, row.get("instruction"), row.get("response"))


def _wide(at: Record) -> Iterator[ParsedTurn | LeftOut]:
    row = at.cells
    id, task = identifier(row.get("id"), at), task_of(row.get("task"), at)
    said = {key: value for key, value in row.items() if key not in _ITEM and not _empty(value)}
    if not said:
        raise at.error('no language; add one such as "sw": {"instruction": "…"}')
    for key, value in said.items():
        if not isinstance(value, dict):
            language_of(key, at.path, at.line)
            raise at.error(f"{key} is {kind_of(value)}; it must be an object with an instruction")
        _refuse_unknown(value, _TURN, at)
        code = language_or_none(key, at)
        if isinstance(code, LeftOut):
            yield code
            continue
        yield parsed(at, id, task, code, value.get("instruction"), value.get("response"))


def _empty(value: Any) -> bool:
    """Return whether a language is absent: tables then have null, or an object of nulls."""
    return absent(value) or (isinstance(value, dict) and value != {} and all(map(absent, value.values())))


def _refuse_unknown(keys: Iterable[str], known: Collection[str], at: Record) -> None:
    for key in keys:
        if key not in known:
            raise at.error(f"{key!r} is not a key; {nearest(key, known)}")


def _item(example: ParallelExample) -> dict[str, Any]:
    item: dict[str, Any] = {"id": example.id, "task": example.task}
    for code, turn in example.turns.items():
        response = {} if turn.response is None else {"response": turn.response}
        key = resolve(code).iso639_3 if code in _ITEM else code
        item[key] = {"instruction": turn.instruction, **response}
    return item
