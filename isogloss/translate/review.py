"""Review: a page or table in which a speaker marks translations, and the reader of those marks.

A mark belongs to the reviewed texts and is valid only while the translation is unchanged.
Flow: translations that passed the filter → page or CSV → speaker → marks → kept, replaced, or dropped.
"""

import csv
import hashlib
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Final

from isogloss.data.formats.lines import kind_of, nearest
from isogloss.data.formats.records import Record, read_file
from isogloss.data.formats.turns import absent
from isogloss.errors import ConfigError, DataError
from isogloss.files import write_text
from isogloss.languages import languages

PARTS: Final = ("instruction", "response")
VERDICTS: Final = ("right", "corrected", "wrong")
ROWS: Final = 200
"""Default number of rows to review per language."""
_COLUMNS: Final[tuple[str, ...]] = (
    "id",
    "language",
    "english_instruction",
    "instruction",
    "english_response",
    "response",
    "verdict",
    "reason",
    "key",
)
_NOT_TEXT: Final = tuple("=+-@\t\r'0123456789")
"""First characters of a cell that a spreadsheet may take for a formula, a number or a date."""
_NUMBER: Final = re.compile(r"0|[1-9]\d{0,10}", re.ASCII)
"""A number that a spreadsheet writes as it was."""


@dataclass(frozen=True)
class Reading:
    """A translation to review: an item's parts in English and in the language."""

    id: str
    language: str
    english: Mapping[str, str]
    own: Mapping[str, str]

    @property
    def key(self) -> str:
        """A hash of the texts, so that a mark is never applied to other texts."""
        content = json.dumps([[side.get(part) for part in PARTS] for side in (self.english, self.own)])
        return hashlib.sha256(content.encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Mark:
    """A speaker's verdict on a `Reading`.

    Attributes:
        key: Key of the reviewed texts.
        verdict: One of `VERDICTS`.
        texts: The parts as returned; the corrected ones if the verdict is `corrected`.
        reason: Reason given, if any.
    """

    key: str
    verdict: str
    texts: Mapping[str, str]
    reason: str = ""


Marks = dict[tuple[str, str], Mark]
"""Marks by ID and language."""


def check(path: Path, codes: Sequence[str]) -> None:
    """Check where the languages' review files will be written, before any translation starts.

    Raises:
        ConfigError: The suffix is neither .html nor .csv, or a table there already has a speaker's marks.
        DataError: A table there is no review, or its marks are invalid; it would be lost too.
    """
    if path.suffix not in (".html", ".csv"):
        raise ConfigError(f"--review {path}: unknown file type; name a file in .html or .csv")
    for file in (place(path, code, codes) for code in codes):
        if path.suffix == ".csv" and file.exists() and next(_marks(file), None):
            raise ConfigError(
                f"--review {path}: {file} has marks, which would be lost; name another file, and read this "
                "one with --reviewed"
            )


def place(path: Path, code: str, codes: Iterable[str]) -> Path:
    """Return the review file of one language; each speaker gets only their own language."""
    return path if len(list(codes)) == 1 else path.with_suffix(f".{code}{path.suffix}")


def write(path: Path, code: str, rows: Iterable[Reading]) -> None:
    """Write one language's rows as a self-contained page (.html) or a table (.csv)."""
    cells = [_cells(row) for row in rows]
    write_text(path, _table(cells) if path.suffix == ".csv" else _page(code, cells))


def read(paths: Iterable[Path]) -> Marks:
    """Read the marks from files saved by a page (.jsonl) or filled in by a speaker (.csv).

    Raises:
        DataError: A file cannot be read, contains no marks, or has an unknown verdict, an empty correction,
            or conflicting marks for an item of a language.
    """
    found: Marks = {}
    for path in paths:
        marked = False
        for record, place_of, mark in _marks(path):
            marked = True
            if found.setdefault(place_of, mark) != mark:
                message = f"id {place_of[0]!r} is marked twice in {place_of[1]}; keep one"
                raise DataError(message, record.path, record.line)
        if not marked:
            raise DataError("the file contains no marks; mark some rows and save them", path)
    return found


def _marks(path: Path) -> Iterator[tuple[Record, tuple[str, str], Mark]]:
    """Yield the marks of a file, each with its record and its place (ID and language)."""
    for record in read_file(path, "jsonl"):
        for place_of, mark in _mark(record):
            yield record, place_of, mark


def _cells(row: Reading) -> dict[str, str]:
    values = {"id": row.id, "language": row.language, "verdict": "", "reason": "", "key": row.key}
    for part in PARTS:
        values |= {f"english_{part}": row.english.get(part, ""), part: row.own.get(part, "")}
    return {name: values[name] for name in _COLUMNS}


def _table(rows: Iterable[Mapping[str, str]]) -> str:
    file = io.StringIO()
    writer: csv.DictWriter[str] = csv.DictWriter(file, _COLUMNS, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        # Quoted, so that a spreadsheet keeps it as text; the quote is removed when read back.
        writer.writerow(
            {
                name: f"'{text}" if text.startswith(_NOT_TEXT) and not _NUMBER.fullmatch(text) else text
                for name, text in row.items()
            }
        )
    return "\ufeff" + file.getvalue()  # a BOM, by which spreadsheets recognise UTF-8


def _page(code: str, rows: list[dict[str, str]]) -> str:
    own = languages()[code]
    style = resources.files("isogloss.report").joinpath("page.css.jinja").read_text("utf-8")
    page = resources.files("isogloss.translate").joinpath("review.html").read_text("utf-8")
    about = {"code": code, "name": own.name, "bcp47": own.bcp47, "direction": own.direction, "rows": rows}
    # Inside a script element, only "<" could end it.
    data = json.dumps(about, ensure_ascii=False).replace("<", "\\u003c")
    return page.replace("/*style*/", style).replace("/*data*/", data)


def _mark(record: Record) -> Iterator[tuple[tuple[str, str], Mark]]:
    path, line, _, cells = record
    for name in ("id", "language", "key", "verdict"):
        if name not in cells:
            raise DataError(f"there is no {name!r}; use a file that --review made", path, line)
    given = {name: _text(cells.get(name), name, record) for name in _COLUMNS}
    verdict = given["verdict"].strip().casefold()
    sides = [{part: text for part in PARTS if (text := given[prefix + part])} for prefix in ("english_", "")]
    changed = Reading(given["id"], given["language"], *sides).key != given["key"]
    if verdict and verdict not in VERDICTS:
        raise DataError(f"the verdict is {verdict!r}; {nearest(verdict, VERDICTS)}", path, line)
    if not verdict and not changed:
        return  # not reviewed
    if verdict != "wrong" and changed:
        verdict = "corrected"  # a changed text is a correction, whatever the verdict column says
        for part in sides[0]:
            if not sides[1].get(part, "").strip():
                raise DataError(f"the corrected {part} is empty; write it, or mark the row wrong", path, line)
    elif verdict == "corrected":
        verdict = "right"
    yield (given["id"], given["language"]), Mark(given["key"], verdict, sides[1], given["reason"].strip())


def _text(value: Any, name: str, record: Record) -> str:
    if absent(value):
        return ""
    if not isinstance(value, str):
        raise DataError(f"the {name} is {kind_of(value)}; it must be a text", record.path, record.line)
    csv = record.path.name.lower().removesuffix(".gz").endswith(".csv")
    quoted = csv and value[:1] == "'" and value[1:].startswith(_NOT_TEXT)
    return value[1:] if quoted else value


def counts(marks: Iterable[Mark]) -> dict[str, int]:
    """Count the marks by verdict."""
    verdicts = [mark.verdict for mark in marks]
    return {verdict: verdicts.count(verdict) for verdict in VERDICTS}
