"""Files of a run: written whole or not at all, by one process at a time, and named in every error."""

import hashlib
import json
import os
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Generic, TypeVar

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from isogloss.errors import RunError

T = TypeVar("T")

LOCK = "lock"
"""The file in a run's folder that its writer holds; it stays there."""


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Errors of writing inside say which path it was: a full disk is reported without one.

    Raises:
        OSError: With the path as its `filename`.
        RunError: The library that writes raised no OSError.
    """
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
    except SafetensorError as error:
        raise RunError(f"{path} could not be written: {error}") from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A draft beside the file that takes its place at the end: a kill leaves the old file or the new one.

    Raises:
        OSError, RunError: As `naming`; the old file is untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(path.name + ".part")
    try:
        with naming(path):
            yield draft
            # Without this a power cut may leave the new name with no content.
            with draft.open("rb") as written:
                os.fsync(written.fileno())
            draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Replace a file in one step."""
    with replacing(path) as draft:
        draft.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: Path, value: Any) -> None:
    """Replace a JSON file."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=1) + "\n")


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Replace a JSON-lines file."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_json(path: Path, key: str, remedy: str) -> dict[str, Any]:
    """A JSON object that must have a key.

    Raises:
        RunError: It is empty, damaged or something else; `remedy` says what to do about that.
    """
    try:
        value = json.loads(path.read_text("utf-8"))
    except ValueError as error:  # of JSON or of UTF-8
        problem = f"is not JSON ({error})" if path.stat().st_size else "is empty"
        raise RunError(f"{path} {problem}; {remedy}") from error
    if not isinstance(value, dict) or key not in value:
        raise RunError(f"{path} has no {key}; {remedy}")
    return value


def read_lines(path: Path, remedy: str) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file.

    Raises:
        RunError: A line is damaged; `remedy` says what to do about that.
    """
    found = []
    try:
        lines = path.read_text("utf-8").split("\n")  # not splitlines(): U+2028 may stand inside a string
    except UnicodeDecodeError as error:
        raise RunError(f"{path} is not UTF-8; {remedy}") from error
    for number, line in enumerate(lines, start=1):
        if line:
            try:
                row = json.loads(line)
            except ValueError:
                row = None
            if not isinstance(row, dict):
                raise RunError(f"{path}:{number} is not a JSON object; {remedy}")
            found.append(row)
    return found


def content_hash(files: Iterable[Path]) -> str:
    """Of the files' names and contents, in the order of their names: 12 hexadecimal digits."""
    digest = hashlib.sha256()
    for file in sorted(files):
        with file.open("rb") as opened:
            digest.update(file.name.encode() + hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()[:12]


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps other processes from writing to a run's folder; may be taken again by who has it.

    The system frees the lock of a process that ends, however it ends.

    Raises:
        RunError: Another process or thread has it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / LOCK
    lock = FileLock(file, is_singleton=True)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        holder = file.read_text("utf-8").strip() or "another process"
        raise RunError(
            f"{folder} is being written to by {holder}; wait for it to end, or name another run folder"
        ) from None
    try:
        if lock.lock_counter == 1:
            file.write_text(f"process {os.getpid()} on {socket.gethostname()}\n", encoding="utf-8")
        yield
    finally:
        lock.release()


class Journal(Generic[T]):
    """Values by key in a file that only grows: what is there is never worked out again.

    One JSON line a value, appended by a single write and flushed to the disk, so that a kill leaves whole
    lines and at most one torn one, which counts as not there. Several processes may append to one file.

    Args:
        path: The file; made with the first value.
        encode: What is written of a value, beside its `key`.
        decode: The value of a line; it raises ValueError, KeyError or TypeError where a line is of no use,
            which then counts as not there.
    """

    def __init__(
        self, path: Path, encode: Callable[[T], dict[str, Any]], decode: Callable[[dict[str, Any]], T]
    ):
        self.path = path
        self._encode, self._decode = encode, decode
        self._lock = threading.Lock()
        self._rows: dict[str, T] = {}
        self._torn = False
        if path.exists():
            content = path.read_bytes()
            self._torn = bool(content) and not content.endswith(b"\n")
            for line in content.split(b"\n"):
                if (row := self._read(line)) is not None:
                    self._rows[row[0]] = row[1]

    def __contains__(self, key: str) -> bool:
        return key in self._rows

    def __getitem__(self, key: str) -> T:
        return self._rows[key]

    def get(self, key: str) -> T | None:
        """The value, or None where there is none."""
        return self._rows.get(key)

    def __len__(self) -> int:
        return len(self._rows)

    def put(self, key: str, value: T) -> None:
        """Append a value; it is on the disk when this returns."""
        line = json.dumps({"key": key, **self._encode(value)}, ensure_ascii=False).encode() + b"\n"
        with self._lock:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                # A line that a kill tore is ended, so that it takes no other with it.
                written = b"\n" + line if self._torn else line
                if os.write(file, written) != len(written):
                    self._torn = True
                    raise RunError(f"{self.path}: no room for another row; make some and run again")
                os.fsync(file)
            finally:
                os.close(file)
            self._torn = False
            self._rows[key] = value

    def _read(self, line: bytes) -> tuple[str, T] | None:
        try:
            entry = json.loads(line)
            return entry["key"], self._decode(entry)
        except (ValueError, KeyError, TypeError):
            return None
