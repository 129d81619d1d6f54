"""Checkpoints: which of them training may go on from."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from zipfile import BadZipFile, ZipFile

from safetensors import SafetensorError, safe_open

from isogloss import processes
from isogloss.files import read_json, write_json
from isogloss.train.batch import Ordered

DIGESTS = "digests.json"


def forget_other_rows(folder: Path, rows: Ordered, how: object, say: Callable[[str], None]) -> None:
    """Remove the checkpoints of training on other rows, in another order or way: all may have changed since.

    Args:
        folder: Holds them, and from now on a hash of the rows.
        how: What else a step depends on; its `repr` counts.
        say: Hears of it.

    Raises:
        RunError: That hash is damaged.
    """
    digest = hashlib.sha256(repr((rows.order, how)).encode())
    for sample in rows.samples:
        about = sample.encoded, sample.language, sample.meaning, sample.options, sample.teacher_prompt
        digest.update(repr(about).encode())
    file, ours = folder / "rows.json", digest.hexdigest()
    remedy = f"remove {folder}, and training begins anew"
    before = read_json(file, "rows", remedy)["rows"] if file.exists() else ours
    processes.wait()  # until all have read it
    if processes.is_main():
        found = [path for path in folder.glob("checkpoint-*") if before != ours]
        for path in found:
            shutil.rmtree(path)
        if found:
            say("Warning: what is learned from has changed since training was stopped; it begins anew")
        write_json(file, {"rows": ours})
    processes.wait()


NEEDED = ("counts.json", "trainer_state.json", "optimizer.pt", "scheduler.pt", "rng_state*.pth", "*model*")
"""What a checkpoint consists of; transformers silently does without some of it."""


def last_whole(folder: Path, say: Callable[[str], None]) -> Path | None:
    """The last checkpoint that can be read; None: training begins anew.

    Every file is read to its end beforehand: a library that meets a damaged one while it loads may raise
    anything, and an EOFError, which command-line libraries take for Ctrl-D.
    """
    found = sorted(folder.glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1]))
    for one in reversed(found):
        fault = _fault(one)
        if fault is None:
            return one
        if fault:
            say(f"Warning: {fault}; training goes back to an earlier checkpoint, or to its beginning")
    return None


def _fault(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint: empty where a kill has left it unfinished; None: it is whole."""
    if not (checkpoint / "trainer_state.json").exists():  # which is written last
        return ""
    for pattern in NEEDED:
        if not any(checkpoint.glob(pattern)):
            return f"{checkpoint} has no {pattern}"
    digests = checkpoint / DIGESTS
    for file in sorted(path for path in checkpoint.iterdir() if path.is_file()):
        try:
            if file == digests and json.loads(file.read_text("utf-8")) != digests_of(checkpoint):
                return f"{checkpoint} has weights that are not as they were written"
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
    """SHA-256 of the files of weights, whose format has no checksum."""
    found = {}
    for path in sorted(checkpoint.glob("*.safetensors")):
        with path.open("rb") as file:
            found[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found
