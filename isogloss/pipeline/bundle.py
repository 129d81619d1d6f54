"""Bundles: a run without the base's weights (base name + stage 1's adapter + tree), small enough to share.

A bundle is a run folder without `tuned/`, which is rebuilt when the bundle is opened: the base is loaded, the
adapter is merged into it as in stage 1, and every file and both sets of weights are checked against the
manifest. Commands on the opened run may replace files, such as the tree when a language is added; if `tuned/`
has to be rebuilt later, only the files needed for it are checked.
Flow: run → `write` → a folder of some megabytes → `restore` → an ordinary run folder.
"""

import json
import shutil
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isogloss.errors import RunError
from isogloss.files import file_hash, write_json, write_text
from isogloss.pipeline.provenance import learned_from

if TYPE_CHECKING:
    from isogloss.pipeline.folder import Run

MANIFEST = "bundle.json"
FORMAT = 1
TREE = "adapters/tree.safetensors"
TEMPLATE = "chat_template.jinja"
OPENED = "tuned.opened"
"""Marker of a bundle that has been opened: its files may have been replaced since."""
DESCRIBING = ("README.md", ".gitignore")
"""Files that only describe the bundle; they are not checked."""


def write(run: "Run", folder: Path) -> int:
    """Write the bundle of a finished run atomically and return its size in bytes.

    Raises:
        RunError: The folder exists, stage 1 left no adapter, or the bundle would not reproduce the reference
            model bit for bit.
    """
    from isogloss.config import dump_config
    from isogloss.model.fingerprint import fingerprint
    from isogloss.model.load import load_model, notices_folder
    from isogloss.notices import write_derived_card
    from isogloss.train.stage1 import ADAPTER, merged

    config, adapter = run.config, run.tuned / ADAPTER
    if folder.exists():
        raise RunError(f"{folder} already exists; choose another --out or remove it")
    if not adapter.exists():
        raise RunError(
            f"--format bundle: {run.tuned} has no {ADAPTER}; a bundle needs a run with tune.method lora"
        )
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    shutil.copytree(adapter, part / ADAPTER)
    pinned = {
        "dtype": str(run.dtype).removeprefix("torch."),
        "run": Path(run.folder.name),  # paths of this machine mean nothing elsewhere
        "data_root": None,
    }
    write_text(part / "config.yaml", dump_config(config.model_copy(update=pinned)))
    write_text(part / TEMPLATE, str(run.tokenizer.chat_template))
    write_text(part / ".gitignore", "tuned\ntuned.*\n")  # created when the bundle is opened
    if (file := run.folder / "tree.json").exists():
        shutil.copyfile(file, part / file.name)
    base = load_model(config.model, run.dtype)
    hashes = {"base": fingerprint(base), "tuned": fingerprint(merged(base, part / ADAPTER))}
    del base
    model = load_model(str(run.tuned), run.dtype)  # not in 4 bits, even if the run trains with four_bit
    if fingerprint(model) != hashes["tuned"]:
        raise RunError(
            f"{config.model} and {adapter} do not give {run.tuned}; the base, transformers or peft has "
            "changed since stage 1"
        )
    (part / TREE).parent.mkdir()
    shutil.copyfile(run.trained, part / TREE)
    write_derived_card(
        part,
        config.model,
        notices_folder(config.model),
        f"# {run.folder.name}: a run of isogloss, in {', '.join(run.taught)}\n\n"
        f"Stage 1's adapter over {config.model}, and the tree of adapters that was distilled on top of both. "
        "`isogloss.load(folder)`, `isogloss ask` and `isogloss serve` take it where the base is.\n\n"
        f"Data: {learned_from(run)}",
    )
    files = {str(f.relative_to(part)): file_hash(f) for f in sorted(part.rglob("*")) if f.is_file()}
    write_json(
        part / MANIFEST,
        {"format": FORMAT, "isogloss": version("isogloss"), "model": config.model, **hashes, "files": files},
    )
    size = sum(f.stat().st_size for f in part.rglob("*") if f.is_file())
    part.rename(folder)
    return size


def needs_restoring(folder: Path) -> bool:
    """Return whether a folder is a bundle whose reference model has not been rebuilt yet."""
    return (folder / MANIFEST).exists() and not (folder / "tuned").exists()


def restore(folder: Path, say: Callable[[str], None] = lambda text: None) -> None:
    """Rebuild a bundle's reference model; do nothing if the folder is not a bundle or already has it.

    Raises:
        RunError: A file has changed, or the base has other weights.
        ConfigError: The base is not available.
    """
    if not needs_restoring(folder):
        return
    from isogloss.bases import made_once
    from isogloss.config import load_config
    from isogloss.model.fingerprint import fingerprint
    from isogloss.model.load import load_model, load_tokenizer, pick_dtype
    from isogloss.train.stage1 import ADAPTER, merged, write_reference

    manifest = _checked(folder)
    name: str = manifest["model"]

    def make(part: Path) -> None:
        say(f"{folder}: rebuilding its reference model from {name}, once")
        base: Any = load_model(name, pick_dtype(load_config(folder).dtype))
        if fingerprint(base) != manifest["base"]:
            raise RunError(f"{folder} was made with other weights of {name} than the local ones")
        tuned = merged(base, folder / ADAPTER)
        if fingerprint(tuned) != manifest["tuned"]:
            say(f"Warning: {folder}: this machine rounds differently from the one that it was made on")
        write_reference(tuned, load_tokenizer(name, str(folder / TEMPLATE)), part, name)
        shutil.copytree(folder / ADAPTER, part / ADAPTER)

    made_once(folder / "tuned", make)
    (folder / OPENED).touch()


def _checked(folder: Path) -> dict[str, Any]:
    """Check a bundle's files against its manifest and return the manifest.

    Raises:
        RunError: The manifest is damaged or of a later version, or a file is missing or has changed.
    """
    from isogloss.train.stage1 import ADAPTER

    try:
        manifest = json.loads((folder / MANIFEST).read_text("utf-8"))
        written, known = manifest["files"].items(), manifest["format"] == FORMAT
    except (ValueError, LookupError, AttributeError, TypeError):
        raise RunError(f"{folder / MANIFEST} is damaged; get the bundle again") from None
    if not known:
        raise RunError(f"{folder / MANIFEST} is from a later version of isogloss; upgrade")
    if not all(isinstance(manifest.get(name), str) for name in ("model", "base", "tuned")):
        raise RunError(f"{folder / MANIFEST} is damaged; get the bundle again")
    again = (folder / OPENED).exists()
    for file, digest in written:
        if file in DESCRIBING or (again and file != TEMPLATE and not file.startswith(f"{ADAPTER}/")):
            continue
        if not (folder / file).is_file():
            raise RunError(f"{folder} lacks {file}; get the bundle again")
        if file_hash(folder / file) != digest:
            raise RunError(f"{folder / file} has changed since the bundle was written; get it again")
    return manifest
