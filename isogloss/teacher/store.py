"""Rows that a served teacher has scored, in a file that only grows: what is there is never asked again.

One JSON line a row, appended by a single write and flushed to the disk, so that a kill leaves whole lines and
at most one torn one, which counts as not there; so does a row that is no distribution. Several processes may
append to one file.
"""

import base64
import binascii
import json
import os
import threading
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from isogloss.distill.topk import TopK
from isogloss.errors import RunError
from isogloss.teacher.scored import Scored, whole

LARGEST = 2**31
"""Ids are kept in four bytes; which of them the student has is for the reader to know."""


def usable(ids: Int[Tensor, "tokens k"], logprobs: Float[Tensor, "tokens k"]) -> Scored:
    """Every token of the response is covered, by a distribution.

    Raises:
        ValueError: Some token's is none.
    """
    TopK(ids, logprobs).check(LARGEST)
    return whole(ids, logprobs)


class Store:
    """Scored rows by key.

    Args:
        path: The file; made with the first row.
    """

    def __init__(self, path: Path):
        self.path = path
        self._lock = threading.Lock()
        self._rows: dict[str, Scored] = {}
        self._torn = False
        if path.exists():
            content = path.read_bytes()
            self._torn = bool(content) and not content.endswith(b"\n")
            for line in content.split(b"\n"):
                if (row := _read(line)) is not None:
                    self._rows[row[0]] = row[1]

    def __contains__(self, key: str) -> bool:
        return key in self._rows

    def __getitem__(self, key: str) -> Scored:
        return self._rows[key]

    def __len__(self) -> int:
        return len(self._rows)

    def put(self, key: str, scored: Scored) -> None:
        """Append a row; it is on the disk when this returns."""
        line = _line(key, scored)
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
            self._rows[key] = scored


def _line(key: str, scored: Scored) -> bytes:
    ids = scored.ids.numpy().astype("<i4").tobytes()
    logprobs = scored.logprobs.numpy().astype("<f4").tobytes()
    entry = {
        "key": key, "k": scored.ids.shape[1], "ids": base64.b64encode(ids).decode(),
        "logprobs": base64.b64encode(logprobs).decode(), "crc": zlib.crc32(ids + logprobs),
    }  # fmt: skip
    return json.dumps(entry).encode() + b"\n"


def _read(line: bytes) -> tuple[str, Scored] | None:
    """The row of a line; None where it is torn, damaged or of no use."""
    try:
        entry: dict[str, Any] = json.loads(line)
        ids, logprobs = base64.b64decode(entry["ids"]), base64.b64decode(entry["logprobs"])
        if zlib.crc32(ids + logprobs) != entry["crc"]:
            return None
        shape = (-1, entry["k"])
        return entry["key"], usable(
            torch.from_numpy(np.frombuffer(ids, "<i4").astype(np.int64).reshape(shape)),
            torch.from_numpy(np.frombuffer(logprobs, "<f4").astype(np.float32).reshape(shape)),
        )
    except (ValueError, KeyError, TypeError, binascii.Error):
        return None
