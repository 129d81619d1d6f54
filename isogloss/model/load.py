"""Load and check a base model and its tokenizer."""

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
    check_weights,
    keep_ends,
    named,
    read_config,
    take_plainly,
)
from isogloss.model.decoder import causal_of, decoder_of, head, last_hidden, layers_of, readout, text_config
from isogloss.notices import NOTICES

PROBED = 8
"""Number of tokens on which the model's own logits are compared with ours."""


def model_folder(name: str) -> str:
    """Return a model's folder or Hub name; `demo` is the embedded base, `bases` lists packaged models.

    Raises:
        ConfigError: A packaged model or GGUF file is missing.
    """
    if name == EMBEDDED:
        return str(resources.files("isogloss.data.demo") / "base")
    return bases.local(name)


def notices_folder(name: str) -> Path:
    """Return the folder of a base's card, licence and notices; for a Hub name, download them to its cache.

    If the download fails, the returned folder does not exist.
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


def pick_dtype(dtype: str, *, gpu: bool = True) -> torch.dtype:
    """Return the dtype; `auto` is bfloat16 if the device supports it, else float32.

    Args:
        gpu: Use the GPU, if there is one.
    """
    if dtype != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[dtype]
    if gpu and torch.cuda.is_available():
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    return torch.bfloat16 if torch.cpu._is_avx512_bf16_supported() else torch.float32


def check_machine(*, four_bit: bool, shard: bool) -> None:
    """Check that this machine supports the options of `load_model`.

    Raises:
        ConfigError: `four_bit` without a GPU or bitsandbytes, or `shard` in a single process.
    """
    if four_bit:
        if not torch.cuda.is_available():  # bitsandbytes has no backward pass on a CPU
            raise ConfigError("four_bit: needs a GPU; leave it out")
        if not is_bitsandbytes_available():
            raise ConfigError("four_bit: needs bitsandbytes; pip install 'isogloss[four-bit]'")
    if shard and processes.count() == 1:
        raise ConfigError("shard: needs several processes; start with `accelerate launch`, or leave it out")


def load_model(
    name: str, dtype: torch.dtype, *, four_bit: bool = False, shard: bool = False
) -> PreTrainedModel:
    """Load a model in evaluation mode and check its logits.

    Args:
        four_bit: Quantise the linear layers below the head to 4 bits per weight (NF4; Dettmers et al. 2023,
            arXiv:2305.14314); they compute in `dtype`.
        shard: Freeze the model and shard its decoder layers over all processes.

    Raises:
        ConfigError: The model cannot be loaded or is not supported, or as `check_machine`.
    """
    check_machine(four_bit=four_bit, shard=shard)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    # On a CPU the backward pass of fused attention is slower than eager attention at instruction lengths.
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
    model = load_weights(name, dtype, attn_implementation=attention, **more)
    if (last := model.get_output_embeddings()) is not None:
        last.register_forward_pre_hook(_gap_free)
    if shard:
        in_parts(model.requires_grad_(False))
    model = model.eval() if four_bit else model.to(device).eval()
    check_logits(model, name)
    return model


def load_weights(name: str, dtype: torch.dtype, **more: Any) -> Any:
    """Load a model as it is in its files, by default into CPU memory; `more` goes to `from_pretrained`.

    Raises:
        ConfigError: As `load_model`.
    """
    folder = _checked_folder(name)
    check_weights(name, folder, {})
    with named(name):
        config = read_config(name, folder)
        try:
            both: Any = AutoModelForCausalLM.from_pretrained(
                folder, config=config, dtype=dtype, trust_remote_code=False, output_loading_info=True, **more
            )
        except RuntimeError:
            check_weights(name, folder, _shapes(skeleton(name)))  # names the weight with a wrong shape
            raise
    model, loading = both
    if getattr(model, "_hf_peft_config_loaded", False):
        raise ConfigError(f"model: {name} contains an adapter; name a model without one")
    if missing := sorted(loading["missing_keys"]):
        raise ConfigError(f"model: {name} lacks the weights {', '.join(missing[:3])}; download it again")
    keep_ends(model)
    return model


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {key: tuple(p.shape) for key, p in model.named_parameters()}


def _gap_free(module: nn.Module, read: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Make the head's input contiguous; torch would copy a frozen head for each row of strided states."""
    return read[0].flatten().view_as(read[0]), *read[1:]


def skeleton(name: str, **how: Any) -> PreTrainedModel:
    """Return the model on the meta device: modules and shapes, without weights; `how` goes to `from_config`.

    Raises:
        ConfigError: The configuration cannot be loaded or is not supported.
    """
    folder = _checked_folder(name)
    with named(name):
        config = read_config(name, folder)
        text = config.get_text_config(decoder=True)
        if not getattr(text, "num_attention_heads", None):
            raise ConfigError(
                f"model: {name} is a {text.model_type}, a decoder without attention; choose another"
            )
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, **how)


def check_base(name: str, tokenizer: PreTrainedTokenizerBase, *, weights: bool = True) -> None:
    """Check a base for faults that would stop a run later, without loading weights.

    Args:
        weights: Require weight files; otherwise check them only if there are any.

    Raises:
        ConfigError: The weights are missing, damaged or of another shape, the logits are computed in an
            unsupported way, or the tokenizer produces IDs without an embedding.
    """
    folder, model = model_folder(name), skeleton(name)
    if weights or list(Path(folder).glob("*.safetensors")):
        check_weights(name, folder, _shapes(model))
    readout(model)
    rows = len(model.get_input_embeddings().weight)  # type: ignore[arg-type]
    # Special tokens that the template does not use (Gemma's image tokens) may have no embedding.
    never = special_ids(tokenizer, len(tokenizer))
    written = {*encode_prompt(tokenizer, "?"), *encode_response(tokenizer, "?"), pad_id(tokenizer)}
    ids = (set(tokenizer.get_vocab().values()) - never) | written
    if max(ids) >= rows:
        token = tokenizer.convert_ids_to_tokens(max(ids))
        raise ConfigError(
            f"model: {name} has embeddings for {rows} tokens, but its tokenizer gives {token!r} the id "
            f"{max(ids)}; use the tokenizer of the same model, or resize the embeddings"
        )


def check_length(model: nn.Module, name: str, longest: int, what: str) -> None:
    """Check that the longest text fits the model's positions; beyond, they do not exist or are untrained.

    Args:
        longest: Tokens of the longest text.
        what: Names that text in the message.

    Raises:
        ConfigError: It does not fit.
    """
    most = positions_of(model)
    if most is not None and longest > most:
        raise ConfigError(f"{what} has {longest} tokens, but {name} has only {most} positions; leave it out")


def positions(name: str) -> int | None:
    """Return the model's maximum number of tokens; None if its configuration sets no limit.

    Raises:
        ConfigError: The configuration cannot be loaded or is not supported.
    """
    folder = _checked_folder(name)
    with named(name):
        return _positions(read_config(name, folder).get_text_config(decoder=True))


def positions_of(model: nn.Module) -> int | None:
    """Return a loaded model's maximum number of tokens; None if its configuration sets no limit."""
    return _positions(text_config(model))


def _positions(config: Any) -> int | None:
    return getattr(config, "max_position_embeddings", None) or getattr(config, "max_seq_len", None)


def load_tokenizer(name: str, chat_template: str | None = None) -> PreTrainedTokenizerBase:
    """Load a tokenizer with a padding token and a chat template: its own, or one inferred from its tokens.

    Args:
        chat_template: Name or file of a template to use instead; see `data.templates`.

    Raises:
        ConfigError: The tokenizer or the template cannot be loaded.
    """
    folder = _checked_folder(name)
    with named(name):
        # Next to a tekken.json, mistral-common's tokenizer would be used, which has no text chat template.
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, mistral_format=False)
    take_plainly(tokenizer)
    give_template(tokenizer, chat_template)
    if tokenizer.pad_token is None:
        try:
            # A template may end its turns with another token than EOS.
            tokenizer.pad_token = tokenizer.eos_token or end_of_turn(tokenizer)
        except ConfigError:
            raise ConfigError(
                f"model: the tokenizer of {name} has neither a pad_token nor an eos_token; set one of them "
                "in its tokenizer_config.json"
            ) from None
    return tokenizer


def pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the ID of the padding token."""
    assert isinstance(tokenizer.pad_token_id, int)  # load_tokenizer ensures it
    return tokenizer.pad_token_id


def in_parts(model: nn.Module) -> None:
    """Shard the decoder's layers over all processes, which must all run every forward pass from now on.

    torch's `fully_shard` (Zhao et al. 2023, arXiv:2304.11277) gathers a layer for its forward pass and again
    for its backward pass. Embeddings and head, which losses and signals use separately, and modules added to
    the layers later are replicated.
    """
    mesh = init_device_mesh("cuda" if torch.cuda.is_available() else "cpu", (processes.count(),))
    for layer in layers_of(model):
        fully_shard(layer, mesh=mesh)
    # One root for all layers, so that the next layer is prefetched.
    rest = {p for p in decoder_of(model).parameters() if not isinstance(p, DTensor)}
    fully_shard(decoder_of(model), mesh=mesh, ignored_params=rest)


def _checked_folder(name: str) -> str:
    folder = model_folder(name)
    if (Path(folder) / "adapter_config.json").exists():  # transformers would load it too
        raise ConfigError(
            f"model: {folder} contains an adapter (adapter_config.json); name a folder without one, or merge "
            "it into its base first"
        )
    looks_local = folder.startswith((".", "/", "~")) or Path(folder).exists()
    if looks_local and not (Path(folder) / "config.json").exists():
        raise ConfigError(f"model: {folder} has no config.json; name a folder that save_pretrained wrote")
    return folder


@torch.no_grad()
def check_logits(model: nn.Module, name: str) -> None:
    """Check on a few tokens that `head` on `last_hidden` reproduces the model's own logits.

    Also check that the model is causal: truncating the text must not change the logits of earlier tokens.

    Raises:
        ConfigError: The logits differ, or the model attends to later tokens.
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
            f"{what} computes its logits from its last states in an unsupported way; use another base"
        )
    if _apart(own[:, :2], short):
        raise ConfigError(f"{what} attends to later tokens; use a causal language model")


def _apart(one: Tensor, other: Tensor) -> bool:
    """Return whether logits differ by more than rounding, with a tolerance for half precision."""
    finite = one.isfinite() & other.isfinite()
    far = ((one - other).abs() > 0.05 * one[finite].abs().max().clamp(min=1e-6)) & finite
    return bool(far.any() or (one.isfinite() != other.isfinite()).any())
