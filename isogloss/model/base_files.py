"""Check a base model's folder, and neutralise settings in it that would act implicitly.

Besides weights and a tokenizer, a folder from the Hub may contain settings that other programs apply by
default: dropout, repetition penalties, beam search, an adapter next to the weights, custom code. Here only
what the user configures takes effect.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer
from transformers import (
    AutoConfig,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from isogloss import bases
from isogloss.errors import ConfigError, IsoglossError

POINTER = b"version https://git-lfs"
NOISE = ("drop", "jitter")
"""Parts of the names of settings for randomness during training."""
INDEXED = {
    "model.safetensors.index.json": "model.safetensors",
    "pytorch_model.bin.index.json": "pytorch_model.bin",
}
"""Weight files in transformers' order of preference; in each pair, the single file precedes its index."""


@contextmanager
def named(name: str) -> Iterator[None]:
    """Turn loading errors into one line that names the model; libraries raise paragraphs or tracebacks.

    Raises:
        ConfigError: Replaces any exception raised inside, except `IsoglossError`.
    """
    try:
        yield
    except IsoglossError:
        raise
    except OSError as error:
        if Path(name).is_dir():
            said = str(error).partition("\n")[0]
            raise ConfigError(f"model: {name} cannot be loaded: {said}") from error
        raise ConfigError(
            f"model: {name} is not a local folder or a packaged model ({', '.join(bases.PACKAGED)}), and "
            "could not be loaded from the Hub"
        ) from error
    except Exception as error:  # each library raises its own types
        said = str(error).strip().partition("\n")[0][:200]
        raise ConfigError(f"model: {name} cannot be loaded: {type(error).__name__}: {said}") from error


def read_config(name: str, folder: str) -> PreTrainedConfig:
    """Load a model's configuration, with dropout and other noise disabled.

    Raises:
        ConfigError: The model needs custom code, is an encoder-decoder or already quantised, or cannot be
            loaded.
    """
    try:
        with named(name):
            config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except ConfigError:
        if "auto_map" in _json(Path(folder) / "config.json"):
            raise ConfigError(
                f"model: {name} needs custom code, which is never run; use a model that transformers has a "
                "class for"
            ) from None
        raise
    if getattr(config, "is_encoder_decoder", False):
        raise ConfigError(f"model: {name} is an encoder-decoder model; use a decoder-only model")
    if said := getattr(config, "quantization_config", None):
        said = said if isinstance(said, dict) else said.to_dict()
        raise ConfigError(
            f"model: {name} is already quantised ({said.get('quant_method', 'unknown method')}); name the "
            "folder of its original weights, and set four_bit to load them in 4 bits"
        )
    for part in (config, *(getattr(config, key, None) for key in getattr(config, "sub_configs", ()))):
        if part is not None:
            _still(part)
    return config


def _still(config: Any) -> None:
    """Reset a configuration in place: no randomness, and transformers' default outputs and attention."""
    for key, value in list(vars(config).items()):
        if isinstance(value, float) and value and any(noise in key for noise in NOISE):
            setattr(config, key, 0.0)
    for key, value in (
        ("use_cache", True),
        ("return_dict", True),
        ("output_hidden_states", False),
        ("output_attentions", False),
        ("output_router_logits", False),
    ):
        if hasattr(config, key):
            setattr(config, key, value)
    config._attn_implementation = None


def keep_ends(model: PreTrainedModel) -> None:
    """Reset the model's generation config to its BOS, EOS and padding tokens."""
    own = model.generation_config
    kept = ("bos_token_id", "eos_token_id", "pad_token_id")
    model.generation_config = GenerationConfig(**{key: getattr(own, key, None) for key in kept})


def take_plainly(tokenizer: PreTrainedTokenizerBase) -> None:
    """Disable a tokenizer's implicit truncation and padding, and its clean-up in decoding."""
    if isinstance(backend := getattr(tokenizer, "backend_tokenizer", None), Tokenizer):
        backend.no_truncation()
        backend.no_padding()
    tokenizer.split_special_tokens = False
    # It would remove spaces before punctuation, which some languages write.
    tokenizer.clean_up_tokenization_spaces = False


def check_weights(name: str, folder: str, shapes: dict[str, tuple[int, ...]]) -> None:
    """Check that a local folder's weights exist, are complete and match the shapes of its configuration.

    Reads only the files' headers.

    Args:
        shapes: Expected shapes of the model's parameters; parameters that are not listed are not checked.

    Raises:
        ConfigError: A file is missing, truncated, a git-lfs pointer, or from another model.
    """
    place = Path(folder)
    if not place.is_dir():
        return  # on the Hub, which serves complete files
    for index, single in INDEXED.items():
        if (place / single).exists():
            files = [single]
            break
        if (place / index).exists():
            files = sorted(set(_json(place / index).get("weight_map", {}).values()))
            break
    else:
        raise ConfigError(f"model: {name} has no weights; its folder must hold a model.safetensors")
    for file in files:
        _check_file(name, place / file, shapes)


def _check_file(name: str, path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    if not path.exists():
        raise ConfigError(f"model: {name} lacks {path.name}, which its index lists; download it again")
    with path.open("rb") as file:
        if file.read(len(POINTER)) == POINTER:
            raise ConfigError(f"model: {path} is a git-lfs pointer; run `git lfs pull` in its folder")
    if path.suffix != ".safetensors":
        return
    try:
        with safe_open(path, "pt") as weights:
            there = {key: tuple(weights.get_slice(key).get_shape()) for key in weights.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ConfigError(
            f"model: {path} is truncated or not a safetensors file ({error}); download it again"
        ) from None
    for key, shape in there.items():
        if (expected := shapes.get(key, shape)) != shape:
            raise ConfigError(
                f"model: {name}'s config.json expects {key} to be {list(expected)}, but its weights have "
                f"{list(shape)}; they are from different models"
            )


def _json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
