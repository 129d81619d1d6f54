"""Lines: text input and output of all formats, and the error checks that they share.

Files are UTF-8, compressed or not, and split on line feeds only, as some texts contain other separators.
Texts are returned in the form that `isogloss.data.text` defines.
"""

import bz2
import contextlib
import difflib
import gzip
import json
import lzma
import re
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import IO, Any, Final, TypeGuard

from isogloss.data.text import canonical_values, is_unicode
from isogloss.errors import DataError
from isogloss.languages.registry import Language, UnknownLanguageError, resolve


def stream_lines(path: Path) -> Iterator[str]:
    """Yield each line without its ending, holding only one in memory.

    Raises:
        DataError: The file is missing, damaged, or not UTF-8.
    """
    with _opened(path) as file:
        for number, line in enumerate(file, start=1):
            try:
                text = line.decode()
            except UnicodeDecodeError:
                raise DataError("the text is not UTF-8; convert the file to UTF-8", path, number) from None
            yield canonical_values(text.removesuffix("\n").removesuffix("\r"))


def read_lines(path: Path) -> list[str]:
    """Return all lines of `stream_lines`; a final line feed does not start another line."""
    return list(stream_lines(path))


def read_objects(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield each JSON object with its line number; skip blank lines.

    Raises:
        DataError: A line is not a JSON object, or an object has a key twice.
    """
    for number, line in enumerate(stream_lines(path), start=1):
        if line.strip():
            value = parse_json(line, "each line must be one JSON object", path, number)
            if not isinstance(value, dict):
                said = f"the line is {kind_of(value)}; each line must be one JSON object"
                raise DataError(said, path, number)
            # Without escapes, all text comes from the line, which is already canonical.
            yield number, canonical_values(value) if "\\" in line else value


def parse_json(text: str, must: str, path: Path, number: int | None = None) -> Any:
    """Parse JSON.

    Args:
        must: What the text must be, for the error message.
        number: The line of the text; if not given, an error names the line within the text.

    Raises:
        DataError: It is not JSON, or an object has a key twice.
    """
    try:
        return _DECODER.decode(text)
    except json.JSONDecodeError as error:
        message = f"not JSON at column {error.colno} ({error.msg}); {must}"
        raise DataError(message, path, number or error.lineno) from None
    except RecursionError:
        raise DataError(f"the JSON is nested too deeply; {must}", path, number) from None
    except DataError as error:
        raise DataError(str(error), path, number) from None
    except ValueError:
        raise DataError(f"not JSON (a number with too many digits); {must}", path, number) from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        hint = "write Indonesian as 'ind'" if twice == "id" else "keep one of them"
        raise DataError(f"the key {twice!r} occurs twice; {hint}")
    return found


_DECODER: Final = json.JSONDecoder(object_pairs_hook=_unique)


def kind_of(value: object) -> str:
    """Return the kind of a JSON value with its article, for messages."""
    return _KINDS.get(type(value)) or f"a {type(value).__name__}"


def is_text(value: object) -> TypeGuard[str]:
    """Return whether the value is a string that can be written as UTF-8."""
    return isinstance(value, str) and is_unicode(value)


def plain_or_gz(path: Path) -> Path | None:
    """Return the file, or the one with .gz appended to its name, or None if neither exists."""
    return next((p for p in (path, path.with_name(path.name + ".gz")) if p.is_file()), None)


def language_of(code: object, path: Path, line: int | None = None) -> Language:
    """Return the language of a code in a file.

    Raises:
        DataError: The language is unknown; the message suggests the nearest.
    """
    if not isinstance(code, str):
        raise DataError(f"the language is {code!r}; it must be a code such as sw", path, line)
    try:
        return resolve(code)
    except UnknownLanguageError as error:
        raise DataError(str(error), path, line) from None


def languages_of(codes: Iterable[str], path: Path) -> list[Language]:
    """Return the languages of the codes, each once.

    Raises:
        DataError: A language is unknown.
    """
    return list({language.code: language for language in (language_of(c, path) for c in codes)}.values())


def nearest(name: str, names: Collection[str]) -> str:
    """Return a hint for an unknown name: the nearest known one, or all known ones."""
    near = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {near[0]}?" if near else f"available: {', '.join(names)}"


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """Open a file for reading its uncompressed bytes.

    Raises:
        DataError: The file is missing, or proves to be damaged while it is read.
    """
    try:
        with path.open("rb") as file:
            begins = file.read(6)
    except IsADirectoryError:
        raise DataError("this is a folder; give one file", path) from None
    except FileNotFoundError:
        siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        near = difflib.get_close_matches(path.name, siblings, n=1)
        hint = f"; did you mean {near[0]}?" if near else "; give the path of an existing file"
        raise DataError(f"there is no such file{hint}", path) from None
    found = next((how for start, how in _COMPRESSED.items() if begins.startswith(start)), None)
    if found is None:
        with path.open("rb") as file:
            yield file
        return
    name, open_compressed = found
    try:
        with open_compressed(path) as file:
            yield file
    except DataError:
        raise
    except LookupError as error:
        message = f"the archive contains {error}; it must contain one file, so unpack it"
        raise DataError(message, path) from None
    except (OSError, EOFError, ValueError, RuntimeError, *_DAMAGES):
        raise DataError(f"the {name} data is damaged; download or compress the file again", path) from None


def name_within(path: Path, begins: bytes) -> str:
    """Return a file's name without the compression suffix, or the name of the one file in a zip archive."""
    if begins.startswith(_ZIP):
        with contextlib.suppress(zipfile.BadZipFile, LookupError), zipfile.ZipFile(path) as archive:
            return _member(archive)
    return re.sub(r"\.(gz|bz2|xz|zip)$", "", path.name)


def _member(archive: zipfile.ZipFile) -> str:
    names = [name for name in archive.namelist() if not name.startswith("__MACOSX/")]
    names = [name for name in names if not name.endswith("/")]
    if len(names) != 1:
        raise LookupError(f"{len(names)} files")
    return names[0]


@contextlib.contextmanager
def _unzipped(path: Path) -> Iterator[IO[bytes]]:
    with zipfile.ZipFile(path) as archive, archive.open(_member(archive)) as file:
        yield file


_KINDS: Final = {
    **dict.fromkeys((int, float), "a number"),
    str: "a text",
    bool: "true or false",
    list: "a list",
    dict: "an object",
    type(None): "null",
}
_DAMAGES: Final = (zlib.error, lzma.LZMAError, zipfile.BadZipFile)
_ZIP: Final = b"PK\x03\x04"
_COMPRESSED: Final[dict[bytes, tuple[str, Callable[[Path], Any]]]] = {
    b"\x1f\x8b": ("gzip", gzip.open),
    b"BZh": ("bzip2", bz2.open),
    b"\xfd7zXZ": ("xz", lzma.open),
    _ZIP: ("zip", _unzipped),
}
"""Compression formats by the file's first bytes, regardless of its name."""
