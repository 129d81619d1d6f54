"""Files of a run: atomic writes, one writing process at a time, and errors that name the file."""

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
"""Lock file in the run folder, held by the process that writes; it is never deleted."""


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Add the path to write errors raised inside: the error of a full disk, for example, has none.

    Raises:
        OSError: With the path as its `filename`.
        RunError: safetensors could not write.
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
    """Yield a temporary path that replaces the file on exit, so that a kill leaves the old file or the new.

    Raises:
        OSError, RunError: As in `naming`; the old file is untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(path.name + ".part")
    try:
        with naming(path):
            yield draft
            # Without fsync, a power failure may leave an empty file under the final name.
            with draft.open("rb") as written:
                os.fsync(written.fileno())
            draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Replace a file atomically."""
    with replacing(path) as draft:
        draft.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: Path, value: Any) -> None:
    """Replace a JSON file atomically."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=1) + "\n")


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Replace a JSON Lines file atomically."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_json(path: Path, key: str, remedy: str) -> dict[str, Any]:
    """Read a JSON object that must have the key `key`.

    Raises:
        RunError: The file is empty or invalid, or the key is missing; `remedy` tells the user what to do.
    """
    try:
        value = json.loads(path.read_text("utf-8"))
    except ValueError as error:  # invalid JSON or UTF-8
        problem = f"is not JSON ({error})" if path.stat().st_size else "is empty"
        raise RunError(f"{path} {problem}; {remedy}") from error
    if not isinstance(value, dict) or key not in value:
        raise RunError(f"{path} has no {key}; {remedy}")
    return value


def read_lines(path: Path, remedy: str) -> list[dict[str, Any]]:
    """Read the objects of a JSON Lines file.

    Raises:
        RunError: The file is not UTF-8 or a line is not a JSON object; `remedy` tells the user what to do.
    """
    found = []
    try:
        lines = path.read_text("utf-8").split("\n")  # not splitlines(): a string may contain U+2028
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


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal digits."""
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def content_hash(files: Iterable[Path]) -> str:
    """Hash the names and contents of files, sorted by path, into 12 hexadecimal digits."""
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(file.name.encode() + bytes.fromhex(file_hash(file)))
    return digest.hexdigest()[:12]


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock a run folder against writes by other processes; reentrant for the holder.

    The operating system releases the lock when the process ends, even if it is killed.

    Raises:
        RunError: Another process or thread holds the lock.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / LOCK
    lock = FileLock(file, is_singleton=True)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        holder = file.read_text("utf-8").strip() or "another process"
        raise RunError(
            f"{folder} is being written to by {holder}; wait for it to finish, or use another run folder"
        ) from None
    try:
        if lock.lock_counter == 1:
            file.write_text(f"process {os.getpid()} on {socket.gethostname()}\n", encoding="utf-8")
        yield
    finally:
        lock.release()


class Journal(Generic[T]):
    """Append-only key-value store in a JSON Lines file, so that finished work is never repeated.

    Each value is one JSON line, appended by a single write and fsynced: a kill leaves complete lines and at
    most one truncated line, which is ignored. Several processes may append to the same file.

    Args:
        path: The file; created with the first value.
        encode: Converts a value to the JSON fields stored beside its `key`.
        decode: Converts the fields back to a value; raises ValueError, KeyError or TypeError for an unusable
            line, which is then ignored.
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
        """Return the value, or None if there is none."""
        return self._rows.get(key)

    def __len__(self) -> int:
        return len(self._rows)

    def put(self, key: str, value: T) -> None:
        """Append a value and fsync the file.

        Raises:
            RunError: The disk is full.
        """
        line = json.dumps({"key": key, **self._encode(value)}, ensure_ascii=False).encode() + b"\n"
        with self._lock:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                # End a truncated line first, so that it does not corrupt this one.
                written = b"\n" + line if self._torn else line
                if os.write(file, written) != len(written):
                    self._torn = True
                    raise RunError(f"{self.path}: the disk is full; free some space and run again")
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
