"""Checkpoints: select the one from which training may resume."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from zipfile import BadZipFile, ZipFile

from safetensors import SafetensorError, safe_open

from isogloss import processes
from isogloss.files import file_hash, read_json, write_json
from isogloss.train.batch import Ordered

DIGESTS = "digests.json"


def forget_other_rows(folder: Path, rows: Ordered, how: object, say: Callable[[str], None]) -> None:
    """Remove checkpoints from training on other rows, in another order, or with other settings.

    Args:
        folder: Contains the checkpoints and a hash of the rows, which is updated.
        how: Everything else that a step depends on; compared by its `repr`.
        say: Callback that receives a warning if checkpoints are removed.

    Raises:
        RunError: The stored hash is damaged.
    """
    digest = hashlib.sha256(repr((rows.order, how)).encode())
    for sample in rows.samples:
        about = sample.encoded, sample.language, sample.meaning, sample.options
        digest.update(repr((*about, sample.teacher_prompt, sample.twin_prompt)).encode())
    file, ours = folder / "rows.json", digest.hexdigest()
    remedy = f"remove {folder} to restart training from the beginning"
    before = read_json(file, "rows", remedy)["rows"] if file.exists() else ours
    processes.wait()  # until all have read it
    if processes.is_main():
        found = [path for path in folder.glob("checkpoint-*") if before != ours]
        for path in found:
            shutil.rmtree(path)
        if found:
            say("Warning: the checkpoints are from other rows or settings; training restarts")
        write_json(file, {"rows": ours})
    processes.wait()


NEEDED = ("counts.json", "trainer_state.json", "optimizer.pt", "scheduler.pt", "rng_state*.pth", "*model*")
"""Files of a complete checkpoint; transformers silently ignores that some of them are missing."""


def last_whole(folder: Path, say: Callable[[str], None]) -> Path | None:
    """Return the last intact checkpoint; None if training must start from the beginning.

    Files are checked before loading: a library that loads a damaged file may raise anything, even an
    EOFError, which command-line libraries interpret as Ctrl-D.

    Args:
        say: Callback that receives a warning for each damaged checkpoint.
    """
    found = sorted(folder.glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1]))
    for one in reversed(found):
        fault = _fault(one)
        if fault is None:
            return one
        if fault:
            say(f"Warning: {fault}; training resumes from an earlier checkpoint or restarts")
    return None


def _fault(checkpoint: Path) -> str | None:
    """Describe a checkpoint's damage; None if it is intact, empty if a kill left it unfinished."""
    if not (checkpoint / "trainer_state.json").exists():  # written last
        return ""
    for pattern in NEEDED:
        if not any(checkpoint.glob(pattern)):
            return f"{checkpoint} has no {pattern}"
    digests = checkpoint / DIGESTS
    for file in sorted(path for path in checkpoint.iterdir() if path.is_file()):
        try:
            if file == digests and json.loads(file.read_text("utf-8")) != digests_of(checkpoint):
                return f"{checkpoint} has weights that do not match their digests"
            if file.suffix == ".json":
                json.loads(file.read_text("utf-8"))
            elif file.suffix == ".safetensors":
                with safe_open(file, "pt") as tensors:
                    tensors.keys()
            elif file.suffix in (".pt", ".pth"):  # zip archives with checksums
                with ZipFile(file) as archive:
                    if (name := archive.testzip()) is not None:
                        return f"{file} is damaged at {name}"
        except (ValueError, BadZipFile, SafetensorError, OSError) as error:
            return f"{file} is damaged ({error})"
    return None


def digests_of(checkpoint: Path) -> dict[str, str]:
    """Return the SHA-256 of each weights file, since safetensors has no checksum."""
    return {path.name: file_hash(path) for path in sorted(checkpoint.glob("*.safetensors"))}
