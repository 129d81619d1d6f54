"""The few things asked of any decoder model: load it, its hidden states, its head. Knows no carrier."""

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
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
from isogloss.data.chat import encode_prompt, encode_response, end_of_turn, pad, response_positions
from isogloss.data.templates import give_template
from isogloss.data.tokens import special_ids
from isogloss.defaults import EMBEDDED
from isogloss.errors import ConfigError
from isogloss.model.base_files import (
    check_adapter,
    check_weights,
    keep_ends,
    named,
    read_config,
    take_plainly,
)
from isogloss.model.readout import Readout, readout_of

KEYED = ("full_attention", "sliding_attention", "chunked_attention")
"""Kinds of layers, in transformers' words, that keep keys and values."""
PROBED = 8
"""Tokens on which a model's own logits are compared with ours."""
TOKENS = 1536
"""Tokens of a forward without gradient on a processor, whose cache does not hold the states of more."""


def model_folder(name: str) -> str:
    """A model's folder or hub name; `demo` is the embedded base, and `bases` knows of packaged ones.

    Raises:
        ConfigError: A packaged model or GGUF file is not there.
    """
    if name == EMBEDDED:
        return str(resources.files("isogloss.data.demo") / "base")
    return bases.local(name)


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
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype,
            bnb_4bit_use_double_quant=True,
        )  # fmt: skip
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


def most_tokens(model: nn.Module, on_processor: int = TOKENS) -> float:
    """Tokens, padding included, that a forward without gradient should read at most where the model lies."""
    return on_processor if next(model.parameters()).device.type == "cpu" else math.inf


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


def parts_of(model: nn.Module) -> list[str]:
    """The names of the parameters that lie in parts with several processes."""
    return [name for name, p in model.named_parameters() if isinstance(p, DTensor)]


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


def layers_of(model: nn.Module) -> nn.ModuleList:
    """The decoder's blocks, whatever the architecture calls them.

    They are looked for below the text decoder alone: the tower of a model that sees may have as many.
    """
    count = causal_of(model).config.get_text_config().num_hidden_layers
    for module in decoder_of(model).modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    raise ConfigError(f"no list of {count} decoder layers was found in {type(model).__name__}")


def decoder_prefix(model: nn.Module) -> str:
    """What the names of the text decoder's modules begin with, seen from the causal model."""
    causal, decoder = causal_of(model), decoder_of(model)
    name = next(name for name, module in causal.named_modules() if module is decoder)
    return f"{name}." if name else ""


def keeps_keys_alone(model: nn.Module) -> bool:
    """Whether what the decoder keeps of a text is keys and values of every token.

    These can be cut, shared and read at other positions; a state that runs along the text cannot.
    """
    causal = causal_of(model)
    kinds = getattr(causal.config.get_text_config(), "layer_types", None) or ()
    return not getattr(causal, "_is_stateful", False) and set(kinds) <= set(KEYED)


def two_thirds(model: nn.Module) -> int:
    """How many of the decoder's layers lie in its lower two thirds, where languages are told apart."""
    return max(1, 2 * len(layers_of(model)) // 3)


@contextmanager
def capture(model: nn.Module, layer: int) -> Iterator[list[Float[Tensor, "batch tokens hidden"]]]:
    """Collects the output of decoder layer `layer` (1 is the first) of every forward inside.

    Of the tokens that the decoder is asked to read: what a carrier puts before them is left out.

    Raises:
        ConfigError: The decoder has no such layer.
    """
    layers = layers_of(model)
    if not 1 <= layer <= len(layers):
        raise ConfigError(f"there is no decoder layer {layer}; the first is 1 and the last {len(layers)}")
    found: list[Tensor] = []
    tokens = [0]

    def asked(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        read = kwargs.get("input_ids", args[0] if args else None)
        tokens[0] = (kwargs["inputs_embeds"] if read is None else read).shape[1]

    def keep(module: nn.Module, inputs: tuple, output: Tensor | tuple[Tensor, ...]) -> None:
        states = output[0] if isinstance(output, tuple) else output
        found.append(states[:, -tokens[0] :])

    handles = [
        # Before any hook of a carrier, which would show it the longer text.
        decoder_of(model).register_forward_pre_hook(asked, prepend=True, with_kwargs=True),
        layers[layer - 1].register_forward_hook(keep),
    ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


DEPTH: ContextVar[int | None] = ContextVar("DEPTH", default=None)
"""How many decoder layers the forward that runs will read, where it stops below the last."""


class _ReadEnough(Exception):  # noqa: N818 - no error
    """No layer above is to be read."""


def states_up_to(
    model: nn.Module,
    ids: Int[Tensor, "batch tokens"],
    mask: Int[Tensor, "batch tokens"],
    layers: Sequence[int],
) -> dict[int, Float[Tensor, "batch tokens hidden"]]:
    """What `capture` finds of some decoder layers in one forward that ends with the highest of them.

    A decoder whose layers lie in parts with several processes is read to its end.

    Raises:
        ConfigError: The decoder has no such layer.
    """

    def stop(module: nn.Module, args: tuple) -> None:
        raise _ReadEnough

    above = layers_of(model)[max(layers) :]
    with ExitStack() as stack:
        found = {layer: stack.enter_context(capture(model, layer)) for layer in layers}
        if len(above) and not parts_of(above):
            # Before any other hook, so that nothing is made ready for that layer, and not compiled with it.
            stack.enter_context(_as_it_is(above[0]))
            handle = above[0].register_forward_pre_hook(stop, prepend=True)
            stack.callback(handle.remove)
            stack.callback(DEPTH.reset, DEPTH.set(max(layers)))
        stack.enter_context(suppress(_ReadEnough))
        last_hidden(model, ids, mask)
    return {layer: states[0] for layer, states in found.items()}


@contextmanager
def _as_it_is(layer: nn.Module) -> Iterator[None]:
    """A layer called as Python, whether it is compiled or not."""
    compiled, layer._compiled_call_impl = layer._compiled_call_impl, None
    try:
        yield
    finally:
        layer._compiled_call_impl = compiled


def causal_of(model: Any) -> Any:
    """The causal model itself, without a PEFT wrapper around it."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def decoder_of(model: nn.Module) -> nn.Module:
    """The model without its head: its output's last_hidden_state is what the head reads."""
    causal = causal_of(model)
    found = causal.get_decoder() if hasattr(causal, "get_decoder") else causal.base_model
    if found is causal:  # such as Llama 4's text model, whose prefix is that of the whole
        found = next((child for child in causal.children() if isinstance(child, PreTrainedModel)), causal)
    return found


def last_hidden(
    model: nn.Module, ids: Int[Tensor, "batch tokens"], mask: Int[Tensor, "batch tokens"]
) -> Float[Tensor, "batch tokens hidden"]:
    """Hidden states after the final norm."""
    return decoder_of(model)(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state


@torch.no_grad()
def response_states(
    model: nn.Module, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], pad_id: int
) -> list[Float[Tensor, "tokens hidden"]]:
    """Hidden states after the final norm that predict each response behind its prompt, in one forward."""
    device = next(model.parameters()).device
    ids, mask = pad([[*p, *r] for p, r in zip(prompts, responses, strict=True)], pad_id)
    lengths = [len(response) for response in responses]
    at = response_positions([len(prompt) for prompt in prompts], lengths, ids.shape[1])
    hidden = last_hidden(model, ids.to(device), mask.to(device)).flatten(0, 1)[at.to(device)]
    return list(hidden.split(lengths))


def head(model: nn.Module, hidden: Float[Tensor, "*tokens hidden"]) -> Float[Tensor, "*tokens vocab"]:
    """Logits of some positions, with whatever scaling or capping the architecture adds."""
    causal = causal_of(model)
    return readout(model)(causal.get_output_embeddings()(hidden))


def readout(model: nn.Module) -> Readout:
    """What the architecture makes of its head's product.

    Raises:
        ConfigError: Something else than scaled or capped logits.
    """
    return readout_of(causal_of(model), decoder_of(model))


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


def mean_pool(
    hidden: Float[Tensor, "batch tokens hidden"], mask: Int[Tensor, "batch tokens"]
) -> Float[Tensor, "batch hidden"]:
    """Mean over the positions where the mask is 1, in float32."""
    weights = mask[..., None].float()
    return (hidden.float() * weights).sum(1) / weights.sum(1).clamp(min=1)
