"""The few things asked of any decoder: its layers, its hidden states, its head. Knows no adapter."""

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import (
    PreTrainedModel,
)

from isogloss.data.chat import pad, response_positions
from isogloss.errors import ConfigError
from isogloss.model.readout import Readout, readout_of

KEYED = ("full_attention", "sliding_attention", "chunked_attention")
"""Kinds of layers, in transformers' words, that keep keys and values."""
TOKENS = 1536
"""Tokens of a forward without gradient on a processor, whose cache does not hold the states of more."""


def most_tokens(model: nn.Module, on_processor: int = TOKENS) -> float:
    """Tokens, padding included, that a forward without gradient should read at most where the model lies."""
    return on_processor if next(model.parameters()).device.type == "cpu" else math.inf


def parts_of(model: nn.Module) -> list[str]:
    """The names of the parameters that lie in parts with several processes."""
    return [name for name, p in model.named_parameters() if isinstance(p, DTensor)]


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


def mean_pool(
    hidden: Float[Tensor, "batch tokens hidden"], mask: Int[Tensor, "batch tokens"]
) -> Float[Tensor, "batch hidden"]:
    """Mean over the positions where the mask is 1, in float32."""
    weights = mask[..., None].float()
    return (hidden.float() * weights).sum(1) / weights.sum(1).clamp(min=1)
