"""MASSIVE: utterances to a voice assistant, with intent and slots, in 51 languages.

The locales share their IDs. Files are looked up as massive/<locale>.jsonl, in the layout of the releases
(1.0/data/<locale>.jsonl, 1.1/data/…), and for dev also as massive/dev_only/<locale>.jsonl.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final, NamedTuple

from isogloss.data.formats.lines import is_text, languages_of, nearest, plain_or_gz, read_objects
from isogloss.errors import DataError
from isogloss.languages import SOURCE
from isogloss.languages.registry import Language
from isogloss.languages.registry import languages as all_languages

PARTITIONS: Final = ("train", "dev", "test")
_FOLDERS: Final = ("massive", "1.0/data", "1.1/data")
_DEV_FOLDER: Final = "massive/dev_only"
_SLOT: Final = re.compile(r"\[(\w+) : ([^\[\]]*)\]")


class _Line(NamedTuple):
    """The fields read from a line, and its number."""

    id: str
    partition: str
    scenario: str
    intent: str
    utt: str
    annot_utt: str
    number: int


@dataclass(frozen=True)
class MassiveRow:
    """One utterance; `utt` and `slots` (name, value) by our language code, slots in the order of the text."""

    id: str
    scenario: str
    intent: str
    utt: dict[str, str]
    slots: dict[str, tuple[tuple[str, str], ...]]


def read(root: Path, partition: str, languages: Iterable[str]) -> list[MassiveRow]:
    """Return the rows of a partition, in the order of the first language.

    Args:
        root: The folder that contains massive, or a release's 1.0.
        partition: train, dev or test.
        languages: Language codes of any data set.

    Raises:
        DataError: A language or partition is missing, a row is malformed, or the languages do not match.
    """
    if partition not in PARTITIONS:
        raise DataError(f"{partition!r} is not a partition; {nearest(partition, PARTITIONS)}", root)
    files = {lang.code: _file(root, partition, lang) for lang in languages_of(languages, root)}
    utterances = {code: dict(_read(path, partition)) for code, path in files.items()}
    first = next(iter(utterances))
    for code, rows in utterances.items():
        if not rows:
            raise DataError(f"no rows of partition {partition}; use a file that has them", files[code])
        _refuse_mismatch(code, rows, first, utterances[first], files[code])
    return [
        MassiveRow(
            id,
            row.scenario,
            row.intent,
            {code: rows[id].utt for code, rows in utterances.items()},
            {code: _slots(rows[id]) for code, rows in utterances.items()},
        )
        for id, row in utterances[first].items()
    ]


def release(root: Path, partition: str, languages: Iterable[str]) -> str:
    """Return the releases that `read` takes; a folder massive counts as 1.0."""
    paths = [_file(root, partition, language) for language in languages_of(languages, root)]
    folders = {path.relative_to(root).parts[0] for path in paths}
    return "+".join(sorted({"1.0" if folder == "massive" else folder for folder in folders}))


def labelled(root: Path, partition: str) -> tuple[_Line, ...]:
    """Return all rows of the English file with a partition; only all partitions together have every label."""
    path = _file(root, partition, all_languages()[SOURCE])
    return _lines(path, path.stat().st_mtime_ns)


def available(root: Path, partition: str = "train") -> set[str]:
    """Return our codes of the languages with a file; those only in dev_only count for dev alone."""
    return {
        code
        for code, lang in all_languages().items()
        if lang.massive and _found(root, partition, lang.massive)
    }


def _file(root: Path, partition: str, language: Language) -> Path:
    if language.massive is None:
        raise DataError(f"MASSIVE has no {language.name} ({language.code}); leave it out", root)
    path = _found(root, partition, language.massive)
    if path is None:
        looked = ", ".join(f"{folder}/{language.massive}.jsonl" for folder in _folders(partition))
        raise DataError(f"no MASSIVE {partition} in {language.code}; looked for {looked}, plain or .gz", root)
    return path


def _found(root: Path, partition: str, locale: str) -> Path | None:
    paths = (plain_or_gz(root / folder / f"{locale}.jsonl") for folder in _folders(partition))
    return next((path for path in paths if path), None)


def _folders(partition: str) -> tuple[str, ...]:
    return (*_FOLDERS, _DEV_FOLDER) if partition == "dev" else _FOLDERS


def _read(path: Path, partition: str) -> Iterator[tuple[str, _Line]]:
    seen: set[str] = set()
    for row in _lines(path, path.stat().st_mtime_ns):
        if row.partition != partition:
            continue
        if row.id in seen:
            raise DataError(f"id {row.id!r} occurs twice in {partition}; ids are unique", path, row.number)
        seen.add(row.id)
        rest = _SLOT.sub("", row.annot_utt)
        if "[" in rest or "]" in rest:
            raise DataError("a slot in annot_utt is malformed; it must read [name : value]", path, row.number)
        yield row.id, row


@lru_cache(maxsize=16)
def _lines(path: Path, changed: int) -> tuple[_Line, ...]:
    """Return all lines of a file; cached, as training and evaluation read different parts of it."""
    keys, found = _Line._fields[:-1], []
    for number, row in read_objects(path):
        values = list(map(row.get, keys))
        if not all(map(is_text, values)):
            key = next(key for key in keys if not is_text(row.get(key)))
            hint = "it must be text" if key in row else nearest(key, list(row))
            raise DataError(f"no text under the key {key!r}; {hint}", path, number)
        found.append(_Line._make([*values, number]))
    return tuple(found)


def _slots(row: _Line) -> tuple[tuple[str, str], ...]:
    return tuple((name, value.strip()) for name, value in _SLOT.findall(row.annot_utt))


def _refuse_mismatch(
    code: str, rows: Mapping[str, _Line], first: str, firsts: Mapping[str, _Line], path: Path
) -> None:
    for id in [*firsts, *rows]:
        if id not in rows or id not in firsts:
            has, lacks = (first, code) if id in firsts else (code, first)
            raise DataError(f"id {id} is in {has} but not in {lacks}; both must have it", path)
        if rows[id].intent != firsts[id].intent:
            message = f"id {id} is {rows[id].intent!r} in {code} but {firsts[id].intent!r} in {first}"
            raise DataError(message + "; translations share their intent", path)
