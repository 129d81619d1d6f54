"""The teacher's work on disk, found again by content: weights, prompt and response, never by name or place.

A cache is a folder of parts; a part holds one kind of signal of one teacher and is named after the hash of
all that its tensors depend on besides the ids they were read from (`about`, in `manifest.json` for people).
A row's key is the hash of its ids. Rows are kept in shards, safetensors files named after the hash of their
own bytes, which arrive whole by renaming. So processes need no lock: they only ever add files, and a row that
two of them wrote is there twice. A shard that is not what its name says, or belongs to another part, is
removed and its rows are read anew.

    FOLDER/<part>/manifest.json
    FOLDER/<part>/<sha256>.safetensors     keys [rows, 32], lengths [rows], values [tokens, …]
"""

import contextlib
import hashlib
import json
import os
import struct
import tempfile
import time
from array import array
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from isogloss.model.decoder import causal_of

VERSION = 1
"""To be raised when a signal is computed otherwise."""
ABANDONED = 3600.0
"""Seconds after which a half-written file is some killed process's."""


def row_key(*texts: Sequence[int]) -> bytes:
    """The key of what was read from some token ids: 32 bytes that no other ids have."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(struct.pack("<q", len(text)))
        digest.update(array("q", text).tobytes())
    return digest.digest()


class Cache:
    """A folder of parts; `about` is who the teacher is (`teacher_of`)."""

    def __init__(self, folder: Path, about: Mapping[str, Any]):
        self.folder, self.about = folder, dict(about)

    def part(self, **more: Any) -> "Part":
        """What is kept of one kind of signal, on which the tensors depend too."""
        return Part(self.folder, self.about | more)


class Part:
    """Tensors by key; all of one type, and of one shape but for the first axis."""

    def __init__(self, folder: Path, about: Mapping[str, Any]):
        text = json.dumps(about, sort_keys=True)
        self.name = hashlib.sha256(text.encode()).hexdigest()
        self.folder, self.manifest = (
            folder / self.name[:16],
            json.dumps(about, sort_keys=True, indent=1) + "\n",
        )

    def read(self, keys: Collection[bytes]) -> dict[bytes, Tensor]:
        """The tensors of those keys that are there; what is damaged or stale is removed on the way."""
        found: dict[bytes, Tensor] = {}
        missing = set(keys)
        for shard in sorted(self.folder.glob("*.safetensors")):
            if not missing:
                break
            try:
                rows = self._open(shard)
            except FileNotFoundError:  # another process has removed it
                continue
            except ValueError:
                shard.unlink(missing_ok=True)
                continue
            for key in missing & rows.keys():
                found[key] = rows[key].clone()  # a view would keep the whole shard in memory
            missing -= found.keys()
        return found

    def write(self, rows: Mapping[bytes, Tensor]) -> int:
        """Keep some tensors as one more shard; how many bytes it takes."""
        if not rows:
            return 0
        content = save(
            {
                "keys": torch.frombuffer(bytearray(b"".join(rows)), dtype=torch.uint8).view(-1, 32),
                "lengths": torch.tensor([len(row) for row in rows.values()], dtype=torch.int32),
                "values": torch.cat([row.cpu() for row in rows.values()]),
            },
            {"part": self.name},
        )
        self._tidy()
        manifest = self.folder / "manifest.json"
        if not manifest.exists() or manifest.read_text("utf-8") != self.manifest:
            self._put("manifest.json", self.manifest.encode())
        self._put(f"{hashlib.sha256(content).hexdigest()}.safetensors", content)
        return len(content)

    def _open(self, shard: Path) -> dict[bytes, Tensor]:
        """A shard's rows.

        Raises:
            ValueError: It is damaged, or another part's.
        """
        content = shard.read_bytes()
        if hashlib.sha256(content).hexdigest() != shard.stem:
            raise ValueError(f"{shard} is damaged")
        try:
            (size,) = struct.unpack("<q", content[:8])
            about = json.loads(content[8 : 8 + size]).get("__metadata__", {})
            tensors = load(content)
            keys = bytes(tensors["keys"].numpy().tobytes())
            rows = tensors["values"].split(tensors["lengths"].tolist())
        except (SafetensorError, KeyError, RuntimeError, struct.error) as error:
            raise ValueError(f"{shard} is no shard") from error
        if about.get("part") != self.name:
            raise ValueError(f"{shard} belongs to another part")
        return dict(zip((keys[i : i + 32] for i in range(0, len(keys), 32)), rows, strict=True))

    def _put(self, name: str, content: bytes) -> None:
        """A file that is there whole or not at all, whoever else writes it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        handle, part = tempfile.mkstemp(dir=self.folder, prefix=f".{os.getpid()}.", suffix=".part")
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        Path(part).replace(self.folder / name)

    def _tidy(self) -> None:
        for part in self.folder.glob(".*.part"):
            with contextlib.suppress(FileNotFoundError):  # another process was faster
                if time.time() - part.stat().st_mtime > ABANDONED:
                    part.unlink()


def teacher_of(model: nn.Module, tokenizer: PreTrainedTokenizerBase, weights: str) -> dict[str, Any]:
    """What any signal depends on besides its kind and its ids.

    Args:
        weights: Hash of all weights of the reference model.
    """
    causal = causal_of(model)
    # Where a model lies, and what wrote it, change nothing that it says.
    config = {k: v for k, v in causal.config.to_dict().items() if not k.startswith(("_", "transformers_"))}
    return {
        "version": VERSION,
        "weights": weights,
        "config": _hash(json.dumps(config, sort_keys=True, default=str)),
        "tokenizer": tokenizer_hash(tokenizer),
        "template": _hash(str(tokenizer.chat_template)),
        "dtype": str(next(causal.parameters()).dtype).removeprefix("torch."),
    }


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """Of all that decides which ids a text gets."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return _hash(
        backend.to_str() if backend is not None else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    )


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
