"""What a base's folder brings along: what of it is refused, what is not taken, and what is kept.

A folder from the hub is weights and a tokenizer, and besides that settings that other programs act on
unasked: dropout, penalties on repeated tokens, beams, an adapter beside the weights, code of its own. Here
nothing acts that is not asked for.
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

from isogloss.errors import ConfigError, IsoglossError

POINTER = b"version https://git-lfs"
NOISE = ("drop", "jitter")
"""In the names of settings for what is drawn at random while a model learns."""
INDEXED = {
    "model.safetensors.index.json": "model.safetensors",
    "pytorch_model.bin.index.json": "pytorch_model.bin",
}
"""Files that transformers reads weights from, the first that is there: one file, else an index of several."""


@contextmanager
def named(name: str) -> Iterator[None]:
    """Says in a line which model a library cannot load; its own text is a paragraph or a traceback.

    Raises:
        ConfigError: Whatever else is raised inside.
    """
    try:
        yield
    except (IsoglossError, OSError):
        raise
    except Exception as error:  # each library below has its own kinds
        said = str(error).strip().partition("\n")[0][:200]
        raise ConfigError(f"model: {name} cannot be loaded: {type(error).__name__}: {said}") from error


def read_config(name: str, folder: str) -> PreTrainedConfig:
    """A model's configuration, without dropout and other noise, as a causal model runs it.

    Raises:
        ConfigError: It is of a kind that cannot be tuned here.
    """
    try:
        with named(name):
            config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except ConfigError:
        if "auto_map" in _json(Path(folder) / "config.json"):
            raise ConfigError(
                f"model: {name} comes with code of its own, which is never run; take a model that "
                "transformers has a class for"
            ) from None
        raise
    if getattr(config, "is_encoder_decoder", False):
        raise ConfigError(f"model: {name} has an encoder and a decoder; take a decoder-only model")
    if said := getattr(config, "quantization_config", None):
        said = said if isinstance(said, dict) else said.to_dict()
        raise ConfigError(
            f"model: {name} is quantised already ({said.get('quant_method', 'unknown method')}); name the "
            "folder of its original weights, and set four_bit to have them in 4 bits"
        )
    for part in (config, *(getattr(config, key, None) for key in getattr(config, "sub_configs", ()))):
        if part is not None:
            _still(part)
    return config


def _still(config: Any) -> None:
    """Nothing is drawn at random, and a forward returns what it is asked for."""
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
    """Of how a folder wants its model to generate only the tokens that begin, end and fill are kept."""
    own = model.generation_config
    kept = ("bos_token_id", "eos_token_id", "pad_token_id")
    model.generation_config = GenerationConfig(**{key: getattr(own, key, None) for key in kept})


def take_plainly(tokenizer: PreTrainedTokenizerBase) -> None:
    """A tokenizer neither cuts nor fills texts up unasked, and gives back what was written."""
    if isinstance(backend := getattr(tokenizer, "backend_tokenizer", None), Tokenizer):
        backend.no_truncation()
        backend.no_padding()
    tokenizer.split_special_tokens = False
    # It would take blanks before punctuation away, of which not all languages have none.
    tokenizer.clean_up_tokenization_spaces = False


def check_adapter(name: str, folder: str) -> None:
    """No adapter lies beside the weights; transformers would put it on them.

    Raises:
        ConfigError: One does.
    """
    if (Path(folder) / "adapter_config.json").exists():
        raise ConfigError(
            f"model: {name} holds an adapter (adapter_config.json); name a folder without one, or merge it "
            "into its base first"
        )


def check_weights(name: str, folder: str, shapes: dict[str, tuple[int, ...]]) -> None:
    """A local folder's weights are there, whole, and of the shapes that its configuration says.

    Only what the files say of themselves is read.

    Args:
        shapes: Of the model's parameters.

    Raises:
        ConfigError: A file is missing, cut short, a git-lfs pointer, or of another model.
    """
    place = Path(folder)
    if not place.is_dir():
        return  # on the hub, where they are whole
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
        raise ConfigError(f"model: {name} lacks {path.name}, which its index names; fetch it again")
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
            f"model: {path} is cut short or no safetensors file ({error}); fetch it again"
        ) from None
    for key, shape in there.items():
        if (expected := shapes.get(key, shape)) != shape:
            raise ConfigError(
                f"model: {name}'s config.json wants {key} to be {list(expected)} and its weights have "
                f"{list(shape)}; they are of two models"
            )


def _json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
