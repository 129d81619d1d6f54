"""Architecture-independent access to a decoder: layers, hidden states and head."""

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from isogloss.data.chat import pad, response_positions
from isogloss.errors import ConfigError
from isogloss.model.readout import Readout, readout_of

KEYED = {"full_attention", "sliding_attention", "chunked_attention"}
"""Layer types, in transformers' terms, that cache keys and values."""
TOKENS = 1536
"""Tokens in a forward pass without gradient on a CPU: the hidden states of more exceed its cache."""


def most_tokens(model: nn.Module, on_processor: int = TOKENS) -> float:
    """Return the maximum tokens, padding included, of a forward pass without gradient; no limit on a GPU."""
    return on_processor if next(model.parameters()).device.type == "cpu" else math.inf


def text_config(model: nn.Module) -> Any:
    """Return the configuration of the text decoder, also of a multimodal or PEFT model."""
    return causal_of(model).config.get_text_config()


def parts_of(model: nn.Module) -> list[str]:
    """Return the names of the parameters that are sharded over processes."""
    return [name for name, p in model.named_parameters() if isinstance(p, DTensor)]


def layers_of(model: nn.Module) -> nn.ModuleList:
    """Return the list of decoder layers of any architecture.

    Only the text decoder is searched: a vision tower may have as many layers.

    Raises:
        ConfigError: No list of that length was found.
    """
    count = text_config(model).num_hidden_layers
    for module in decoder_of(model).modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    raise ConfigError(f"no list of {count} decoder layers was found in {type(model).__name__}")


def decoder_prefix(model: nn.Module) -> str:
    """Return the prefix of the text decoder's module names within the causal model."""
    causal, decoder = causal_of(model), decoder_of(model)
    name = next(name for name, module in causal.named_modules() if module is decoder)
    return f"{name}." if name else ""


def keeps_keys_alone(model: nn.Module) -> bool:
    """Return whether the decoder caches only keys and values of every token.

    Such a cache can be truncated, shared and used at other positions; a recurrent state cannot.
    """
    return not getattr(causal_of(model), "_is_stateful", False) and layer_types(model) <= KEYED


def layer_types(model: nn.Module) -> set[str]:
    """Return the types of the decoder's layers, in transformers' terms; empty if it does not tell them."""
    return set(getattr(text_config(model), "layer_types", None) or ())


def two_thirds(model: nn.Module) -> int:
    """Return the number of layers in the decoder's lower two thirds, where languages are told apart."""
    return max(1, 2 * len(layers_of(model)) // 3)


@contextmanager
def capture(model: nn.Module, layer: int) -> Iterator[list[Float[Tensor, "batch tokens hidden"]]]:
    """Collect the output of decoder layer `layer` (1 is the first) from every forward pass inside.

    Raises:
        ConfigError: The decoder has no such layer.
    """
    layers = layers_of(model)
    if not 1 <= layer <= len(layers):
        raise ConfigError(f"there is no decoder layer {layer}; the first is 1 and the last {len(layers)}")
    found: list[Tensor] = []

    def keep(module: nn.Module, inputs: tuple, output: Tensor | tuple[Tensor, ...]) -> None:
        found.append(output[0] if isinstance(output, tuple) else output)

    handle = layers[layer - 1].register_forward_hook(keep)
    try:
        yield found
    finally:
        handle.remove()


DEPTH: ContextVar[int | None] = ContextVar("DEPTH", default=None)
"""Number of decoder layers that the current forward pass runs; None if it does not stop early."""


class _ReadEnough(Exception):  # noqa: N818 - no error
    """Raised to end a forward pass early."""


def states_up_to(
    model: nn.Module,
    ids: Int[Tensor, "batch tokens"],
    mask: Int[Tensor, "batch tokens"],
    layers: Sequence[int],
) -> dict[int, Float[Tensor, "batch tokens hidden"]]:
    """Return the outputs of some decoder layers from one forward pass that stops after the highest.

    A decoder with sharded layers runs all layers.

    Raises:
        ConfigError: The decoder has no such layer.
    """

    def stop(module: nn.Module, args: tuple) -> None:
        raise _ReadEnough

    above = layers_of(model)[max(layers) :]
    with ExitStack() as stack:
        found = {layer: stack.enter_context(capture(model, layer)) for layer in layers}
        if len(above) and not parts_of(above):
            # Before any other hook, so that nothing is prepared for that layer, and outside compiled code.
            stack.enter_context(_as_it_is(above[0]))
            handle = above[0].register_forward_pre_hook(stop, prepend=True)
            stack.callback(handle.remove)
            stack.callback(DEPTH.reset, DEPTH.set(max(layers)))
        stack.enter_context(suppress(_ReadEnough))
        last_hidden(model, ids, mask)
    return {layer: states[0] for layer, states in found.items()}


@contextmanager
def _as_it_is(layer: nn.Module) -> Iterator[None]:
    """Run a layer uncompiled inside the context."""
    compiled, layer._compiled_call_impl = layer._compiled_call_impl, None
    try:
        yield
    finally:
        layer._compiled_call_impl = compiled


def causal_of(model: Any) -> Any:
    """Return the causal model without a PEFT wrapper."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def decoder_of(model: nn.Module) -> nn.Module:
    """Return the model without its head; its `last_hidden_state` is the head's input."""
    causal = causal_of(model)
    found = causal.get_decoder() if hasattr(causal, "get_decoder") else causal.base_model
    if found is causal:  # as in Llama 4's text model, which has the prefix of the whole model
        found = next((child for child in causal.children() if isinstance(child, PreTrainedModel)), causal)
    return found


def last_hidden(
    model: nn.Module, ids: Int[Tensor, "batch tokens"], mask: Int[Tensor, "batch tokens"]
) -> Float[Tensor, "batch tokens hidden"]:
    """Return the hidden states after the final norm."""
    return decoder_of(model)(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state


def padded(
    model: nn.Module, texts: Sequence[Sequence[int]], pad_id: int, side: Literal["left", "right"] = "right"
) -> tuple[Int[Tensor, "texts tokens"], Int[Tensor, "texts tokens"]]:
    """Pad texts to one length; return token IDs and padding mask on the model's device."""
    device = next(model.parameters()).device
    ids, mask = pad([list(text) for text in texts], pad_id, side)
    return ids.to(device), mask.to(device)


def by_length(texts: Sequence[Sequence[int]], rows: int, tokens: float = math.inf) -> Iterator[list[int]]:
    """Yield the indices of the texts, shortest first, in batches.

    Args:
        rows: Maximum texts per batch.
        tokens: Maximum tokens per batch, padding included.
    """
    made: list[int] = []
    for number in sorted(range(len(texts)), key=lambda number: len(texts[number])):
        if made and (len(made) == rows or (len(made) + 1) * len(texts[number]) > tokens):
            yield made
            made = []
        made.append(number)
    if made:
        yield made


@torch.no_grad()
def response_states(
    model: nn.Module, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], pad_id: int
) -> list[Float[Tensor, "tokens hidden"]]:
    """Return the final hidden states that predict each response after its prompt, from one forward pass."""
    ids, mask = padded(model, [[*p, *r] for p, r in zip(prompts, responses, strict=True)], pad_id)
    lengths = [len(response) for response in responses]
    at = response_positions([len(prompt) for prompt in prompts], lengths, ids.shape[1]).to(ids.device)
    return list(last_hidden(model, ids, mask).flatten(0, 1)[at].split(lengths))


def head(model: nn.Module, hidden: Float[Tensor, "*tokens hidden"]) -> Float[Tensor, "*tokens vocab"]:
    """Compute logits from hidden states, with the architecture's scaling and capping."""
    causal = causal_of(model)
    return readout(model)(causal.get_output_embeddings()(hidden))


def readout(model: nn.Module) -> Readout:
    """Return how the architecture computes logits from its head's product.

    Raises:
        ConfigError: It does anything but scale or cap them.
    """
    return readout_of(causal_of(model), decoder_of(model))


def mean_pool(
    hidden: Float[Tensor, "batch tokens hidden"], mask: Int[Tensor, "batch tokens"]
) -> Float[Tensor, "batch hidden"]:
    """Average the hidden states where the mask is 1, in float32."""
    weights = mask[..., None].float()
    return (hidden.float() * weights).sum(1) / weights.sum(1).clamp(min=1)
