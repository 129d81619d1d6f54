"""A base and its tokenizer, loaded and checked."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils.import_utils import is_bitsandbytes_available

from isogloss import bases, processes
from isogloss.bases import EMBEDDED
from isogloss.data.chat import encode_prompt, encode_response, end_of_turn
from isogloss.data.templates import give_template
from isogloss.data.tokens import special_ids
from isogloss.errors import ConfigError
from isogloss.model.base_files import (
    check_adapter,
    check_weights,
    keep_ends,
    named,
    read_config,
    take_plainly,
)
from isogloss.model.decoder import causal_of, decoder_of, head, last_hidden, layers_of, readout
from isogloss.notices import NOTICES

PROBED = 8
"""Tokens on which a model's own logits are compared with ours."""


def model_folder(name: str) -> str:
    """A model's folder or hub name; `demo` is the embedded base, and `bases` knows of packaged ones.

    Raises:
        ConfigError: A packaged model or GGUF file is not there.
    """
    if name == EMBEDDED:
        return str(resources.files("isogloss.data.demo") / "base")
    return bases.local(name)


def notices_folder(name: str) -> Path:
    """Where a base's card, licence and notices lie; of a hub name they are fetched into the hub's cache.

    What cannot be fetched is not there: then the folder does not exist.
    """
    folder = model_folder(name)
    if Path(folder).is_dir():
        return Path(folder)
    cases = (str.lower, str.upper, str.title)
    patterns = ["README.md", *(f"*{case(word)}*" for word in NOTICES for case in cases)]
    try:
        return Path(snapshot_download(folder, allow_patterns=patterns))
    except (OSError, ValueError):  # no network, or no such repository
        return Path(folder)


def pick_dtype(dtype: str) -> torch.dtype:
    """`auto`: bfloat16 where the device multiplies it, float32 elsewhere."""
    if dtype != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[dtype]
    if torch.cuda.is_available():
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    return torch.bfloat16 if torch.cpu._is_avx512_bf16_supported() else torch.float32


def check_machine(*, four_bit: bool, shard: bool) -> None:
    """This machine can hold a model as it is asked for; see `load_model`.

    Raises:
        ConfigError: A GPU or bitsandbytes is missing, or other processes are.
    """
    if four_bit:
        if not torch.cuda.is_available():  # bitsandbytes has no backward for its products on a processor
            raise ConfigError("four_bit: needs a GPU; leave it out")
        if not is_bitsandbytes_available():
            raise ConfigError("four_bit: needs bitsandbytes; pip install 'isogloss[four-bit]'")
    if shard and processes.count() == 1:
        raise ConfigError("shard: needs several processes; start with `accelerate launch`, or leave it out")


def load_model(
    name: str, dtype: torch.dtype, *, four_bit: bool = False, shard: bool = False
) -> PreTrainedModel:
    """Weights in the given type, in evaluation mode.

    Args:
        four_bit: The linear layers below the head lie in 4 bits a weight (NF4; Dettmers et al. 2023,
            arXiv:2305.14314) and are multiplied in `dtype`.
        shard: The layers, frozen, lie in parts with the processes that run together.

    Raises:
        ConfigError: No model lies there; a GPU or bitsandbytes is missing, or other processes are.
    """
    check_machine(four_bit=four_bit, shard=shard)
    folder = model_folder(name)
    _check_folder(folder)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    # On a processor the backward of fused attention costs more than plain products at instruction lengths.
    attention = "eager" if device == "cpu" else None
    more: dict[str, Any] = {}
    if four_bit:
        quantized = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=dtype,
            bnb_4bit_use_double_quant=True,
        )
        more = {"quantization_config": quantized, "device_map": {"": device}}
    model = _weights(name, folder, dtype, attn_implementation=attention, **more)
    if (last := model.get_output_embeddings()) is not None:
        last.register_forward_pre_hook(_gap_free)
    if shard:
        in_parts(model.requires_grad_(False))
    model = model.eval() if four_bit else model.to(device).eval()
    check_logits(model, name)
    return model


def load_weights(name: str, dtype: torch.dtype) -> PreTrainedModel:
    """A model in one process, on the host, to be written again.

    Raises:
        ConfigError: As `load_model`.
    """
    folder = model_folder(name)
    _check_folder(folder)
    return _weights(name, folder, dtype)


def _weights(name: str, folder: str, dtype: torch.dtype, **more: Any) -> Any:
    check_weights(name, folder, {})
    with _named(name):
        config = read_config(name, folder)
        try:
            both: Any = AutoModelForCausalLM.from_pretrained(
                folder, config=config, dtype=dtype, trust_remote_code=False, output_loading_info=True, **more
            )
        except RuntimeError:
            check_weights(name, folder, _shapes(skeleton(name)))  # names the one that is of another shape
            raise
    model, told = both
    if getattr(model, "_hf_peft_config_loaded", False):
        check_adapter(name, folder)
        raise ConfigError(f"model: {name} holds an adapter; name a model without one")
    if missing := sorted(told["missing_keys"]):
        raise ConfigError(f"model: {name} lacks the weights {', '.join(missing[:3])}; fetch it again")
    keep_ends(model)
    return model


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {key: tuple(p.shape) for key, p in model.named_parameters()}


def _gap_free(module: nn.Module, read: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The last token's states lie apart in memory; torch would copy a frozen head for each row of them."""
    return read[0].flatten().view_as(read[0]), *read[1:]


def skeleton(name: str) -> PreTrainedModel:
    """The model without its weights: modules and shapes, on no device.

    Raises:
        ConfigError: No model lies there.
    """
    folder = model_folder(name)
    _check_folder(folder)
    with _named(name):
        config = read_config(name, folder)
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config)


def check_base(name: str, tokenizer: PreTrainedTokenizerBase, *, weights: bool = True) -> None:
    """What would stop a run later, read off the folder's files: nothing of the weights is loaded.

    Args:
        weights: Refuse a folder without any.

    Raises:
        ConfigError: The weights are missing, broken or of another shape, the logits are made in an unknown
            way, or a text has ids that the model has no embedding for.
    """
    folder, model = model_folder(name), skeleton(name)
    if weights or list(Path(folder).glob("*.safetensors")):
        check_weights(name, folder, _shapes(model))
    readout(model)
    rows = len(model.get_input_embeddings().weight)  # type: ignore[arg-type]
    # Special tokens that no template writes (Gemma's of images) may lie beyond: texts never become them.
    never = special_ids(tokenizer, len(tokenizer))
    written = {*encode_prompt(tokenizer, "?"), *encode_response(tokenizer, "?"), pad_id(tokenizer)}
    ids = (set(tokenizer.get_vocab().values()) - never) | written
    if max(ids) >= rows:
        token = tokenizer.convert_ids_to_tokens(max(ids))
        raise ConfigError(
            f"model: {name} has embeddings for {rows} tokens and its tokenizer gives {token!r} the id "
            f"{max(ids)}; name a tokenizer of the same model, or resize the embeddings"
        )


def check_length(model: nn.Module | PreTrainedModel, name: str, longest: int, what: str) -> None:
    """No text is longer than the model's positions, beyond which learned ones end and others are untrained.

    Raises:
        ConfigError: One is.
    """
    most = _positions(causal_of(model).config.get_text_config())
    if most is not None and longest > most:
        raise ConfigError(f"{what} has {longest} tokens and {name} has {most} positions; leave it out")


def positions(name: str) -> int | None:
    """How many tokens a model can read; None where its configuration sets no limit.

    Raises:
        ConfigError: No model lies there.
    """
    folder = model_folder(name)
    _check_folder(folder)
    with _named(name):
        return _positions(read_config(name, folder).get_text_config(decoder=True))


def _positions(config: Any) -> int | None:
    return getattr(config, "max_position_embeddings", None) or getattr(config, "max_seq_len", None)


def load_tokenizer(name: str, chat_template: str | None = None) -> PreTrainedTokenizerBase:
    """A tokenizer that pads and has a chat template: its own, or one that its control tokens suggest.

    Args:
        chat_template: Another template, by name or as a file; see `data.templates`.

    Raises:
        ConfigError: No model lies there, or the template is not to be had.
    """
    folder = model_folder(name)
    _check_folder(folder)
    with _named(name):
        # Beside a tekken.json mistral-common's would be taken, which has no template as text.
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, mistral_format=False)
    take_plainly(tokenizer)
    give_template(tokenizer, chat_template)
    if tokenizer.pad_token is None:
        try:
            # A template may end its turns with a token of its own.
            tokenizer.pad_token = tokenizer.eos_token or end_of_turn(tokenizer)
        except ConfigError:
            raise ConfigError(
                f"model: the tokenizer of {name} has neither a pad_token nor an eos_token; name one of them "
                "in its tokenizer_config.json"
            ) from None
    return tokenizer


def pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The id that fills rows up."""
    assert isinstance(tokenizer.pad_token_id, int)  # load_tokenizer sees to it
    return tokenizer.pad_token_id


def in_parts(model: nn.Module) -> None:
    """Split the decoder's layers over all processes, each of which takes part in every forward from now on.

    torch's `fully_shard` (Zhao et al. 2023, arXiv:2304.11277) puts a layer together while it is read, in
    forward and again in backward. Embeddings and head, which losses and signals use by themselves, and what
    is added to the layers afterwards are whole with every process.
    """
    mesh = init_device_mesh("cuda" if torch.cuda.is_available() else "cpu", (processes.count(),))
    for layer in layers_of(model):
        fully_shard(layer, mesh=mesh)
    # One root for all layers, so that the next is gathered while one is read.
    rest = {p for p in decoder_of(model).parameters() if not isinstance(p, DTensor)}
    fully_shard(decoder_of(model), mesh=mesh, ignored_params=rest)


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Says which model is not to be had; transformers' own text is a paragraph."""
    try:
        with named(name):
            yield
    except OSError as error:
        if Path(name).is_dir():
            raise ConfigError(
                f"model: {name} cannot be loaded: {str(error).partition(chr(10))[0]}"
            ) from error
        raise ConfigError(
            f"model: {name} is neither a local folder, a packaged model ({', '.join(bases.PACKAGED)}) nor to "
            "be had from the hub"
        ) from error


def _check_folder(folder: str) -> None:
    looks_local = folder.startswith((".", "/", "~")) or Path(folder).exists()
    if looks_local and not (Path(folder) / "config.json").exists():
        check_adapter(folder, folder)
        raise ConfigError(f"model: {folder} holds no config.json; name a folder that save_pretrained wrote")
    check_adapter(folder, folder)


@torch.no_grad()
def check_logits(model: nn.Module, name: str) -> None:
    """What is read off the model here is what it says itself, on a few tokens.

    Its own logits are the reference: for `head` on `last_hidden`, and for a text that goes on behind a token,
    which must not matter there.

    Raises:
        ConfigError: The two differ, or the model reads ahead.
    """
    causal = causal_of(model)
    vocabulary = causal.get_input_embeddings().weight.shape[0]
    ids = torch.linspace(vocabulary // 4, vocabulary // 2, PROBED, device=causal.device).long()[None]
    mask = torch.ones_like(ids)
    own = causal(input_ids=ids, attention_mask=mask, use_cache=False).logits.float()
    ours = head(model, last_hidden(model, ids, mask)).float()
    short = head(model, last_hidden(model, ids[:, :2], mask[:, :2])).float()
    what = f"model: {name} ({type(causal).__name__})"
    if own.shape != ours.shape or _apart(own, ours):
        raise ConfigError(
            f"{what} makes its logits of its last states in a way that is not known here; take another base"
        )
    if _apart(own[:, :2], short):
        raise ConfigError(f"{what} reads the tokens behind a position; take a causal language model")


def _apart(one: Tensor, other: Tensor) -> bool:
    """Whether logits differ by more than the types of their factors round, as far as half precision goes."""
    finite = one.isfinite() & other.isfinite()
    far = ((one - other).abs() > 0.05 * one[finite].abs().max().clamp(min=1e-6)) & finite
    return bool(far.any() or (one.isfinite() != other.isfinite()).any())
