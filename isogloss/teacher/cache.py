"""Disk cache of teacher signals, addressed by content: weights, prompt and response, not name or path.

A cache is a folder of parts. A part contains one kind of signal of one teacher and is named after the hash of
everything its tensors depend on besides the input token IDs (`about`, readable in `manifest.json`). The key
of a row is the hash of its token IDs. Rows are stored in shards: safetensors files named after the hash of
their content and renamed into place once complete. Processes therefore need no lock: they only add files, and
a row written by two processes is stored twice. A shard that does not match its name, or belongs to another
part, is deleted and its rows are computed again.

    FOLDER/<part>/manifest.json
    FOLDER/<part>/<sha256>.safetensors     keys [rows, 32], lengths [rows], values [tokens, …]
"""

import contextlib
import hashlib
import json
import os
import secrets
import struct
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
"""Increase when a signal is computed differently."""
ABANDONED = 3600.0
"""Seconds after which a partial file is taken for that of a killed process and deleted."""


def row_key(*texts: Sequence[int]) -> bytes:
    """Return the cache key of some token ID sequences: their SHA-256 digest, 32 bytes."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(struct.pack("<q", len(text)))
        digest.update(array("q", text).tobytes())
    return digest.digest()


class Cache:
    """A folder of parts; `about` identifies the teacher (see `teacher_of`)."""

    def __init__(self, folder: Path, about: Mapping[str, Any]):
        self.folder, self.about = folder, dict(about)

    def part(self, **more: Any) -> "Part":
        """Return the part for one kind of signal, identified by `more`."""
        return Part(self.folder, self.about | more)


class Part:
    """Tensors by key, all with the same dtype and the same shape except for the first axis."""

    def __init__(self, folder: Path, about: Mapping[str, Any]):
        text = json.dumps(about, sort_keys=True)
        self.name = hashlib.sha256(text.encode()).hexdigest()
        self.folder, self.manifest = (
            folder / self.name[:16],
            json.dumps(about, sort_keys=True, indent=1) + "\n",
        )

    def read(self, keys: Collection[bytes]) -> dict[bytes, Tensor]:
        """Return the tensors of those keys that are cached; delete damaged or foreign shards on the way."""
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
        """Write tensors as a new shard and return its size in bytes."""
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
        """Return the rows of a shard.

        Raises:
            ValueError: It is damaged, or belongs to another part.
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
            raise ValueError(f"{shard} is not a shard") from error
        if about.get("part") != self.name:
            raise ValueError(f"{shard} belongs to another part")
        return dict(zip((keys[i : i + 32] for i in range(0, len(keys), 32)), rows, strict=True))

    def _put(self, name: str, content: bytes) -> None:
        """Write a file atomically, even if other processes write it too."""
        self.folder.mkdir(parents=True, exist_ok=True)
        # Not by `tempfile`, whose files only their owner can read: users may share a cache.
        part = self.folder / f".{os.getpid()}.{secrets.token_hex(8)}.part"
        part.write_bytes(content)
        part.replace(self.folder / name)

    def _tidy(self) -> None:
        for part in self.folder.glob(".*.part"):
            with contextlib.suppress(FileNotFoundError):  # another process was faster
                if time.time() - part.stat().st_mtime > ABANDONED:
                    part.unlink()


def teacher_of(model: nn.Module, tokenizer: PreTrainedTokenizerBase, weights: str) -> dict[str, Any]:
    """Return everything that a signal depends on besides its kind and its token IDs.

    Args:
        weights: Hash of all weights of the model.
    """
    causal = causal_of(model)
    # The model's path and the transformers version that saved it do not affect its outputs.
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
    """Hash everything that determines the token IDs of a text."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return _hash(
        backend.to_str() if backend is not None else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    )


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
