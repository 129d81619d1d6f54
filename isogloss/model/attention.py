"""How a decoder runs for a while, with another attention or with compiled layers; then it is as before."""

import shutil
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, eager_mask

from isogloss.errors import ConfigError
from isogloss.model.decoder import causal_of, layers_of

LONG = 128
"""Tokens from which a processor's attention keeps no probabilities for backward."""
RECOMPUTED = "recomputed"
"""Name of that attention among those of transformers."""


@contextmanager
def fused_attention(model: nn.Module) -> Iterator[None]:
    """Attention as one kernel while nothing learns, where the architecture has it."""
    causal = causal_of(model)
    config = causal.config.get_text_config()
    # The kernel knows no capped logits (Gemma 2).
    capped = getattr(config, "attn_logit_softcapping", None) is not None
    plain = config._attn_implementation in ("eager", RECOMPUTED)
    served = plain and not capped and getattr(causal, "_supports_sdpa", False)
    with _attending(causal, "sdpa" if served else None):
        yield


@contextmanager
def thrifty_attention(model: nn.Module) -> Iterator[None]:
    """Attention as the architecture's own plain products, where it was that, keeping less for backward.

    Its probabilities, heads × tokens × tokens a row in float32 and once more in the type of the states, are
    computed again in backward. Texts of fewer than `LONG` tokens keep them: there they are few.
    """
    causal = causal_of(model)
    plain = causal.config.get_text_config()._attn_implementation == "eager"
    # Architectures that take other attention name their own so.
    own = hasattr(sys.modules[type(causal).__module__], "eager_attention_forward")
    with _attending(causal, RECOMPUTED if plain and own else None):
        yield


@contextmanager
def _attending(causal: Any, how: str | None) -> Iterator[None]:
    """Another implementation of attention inside, or the same."""
    before = causal.config.get_text_config()._attn_implementation
    if how is not None:
        causal.set_attn_implementation(how)
    try:
        yield
    finally:
        if how is not None:
            causal.set_attn_implementation(before)


def _recomputed(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """As transformers asks of an attention function; no weights are returned."""
    plain = sys.modules[type(module).__module__].eager_attention_forward

    def attend(*given: Tensor | None) -> Tensor:
        return plain(module, *given, **kwargs)[0]

    if not torch.is_grad_enabled() or key.shape[-2] < LONG:
        return attend(query, key, value, mask), None
    random = bool(kwargs.get("dropout"))
    found = checkpoint(attend, query, key, value, mask, use_reentrant=False, preserve_rng_state=random)
    return found, None


AttentionInterface.register(RECOMPUTED, _recomputed)
AttentionMaskInterface.register(RECOMPUTED, eager_mask)


def check_compiler() -> None:
    """A processor's code is compiled by a C++ compiler.

    Raises:
        ConfigError: There is none.
    """
    if torch.cuda.is_available():
        return
    from torch._inductor import config  # takes a second, which only this is worth

    wanted = [name for name in config.cpp.cxx if name]
    if not any(map(shutil.which, wanted)):
        raise ConfigError(
            f"compile is true and there is no C++ compiler ({', '.join(wanted)}); install one, name yours in "
            "the environment variable CXX, or set compile: false"
        )


@contextmanager
def compiled(model: nn.Module, **how: Any) -> Iterator[None]:
    """Decoder layers compiled by torch inside; layers alike share what was compiled.

    On a GPU the first batch compiles for its own shape, the next shape for all; on a processor the first does
    for all, as a graph of one shape alone (32 × 160 in bfloat16, torch 2.13) gave gradients of nan.

    Args:
        how: As `torch.compile` takes it.
    """
    layers = layers_of(model)
    if next(model.parameters()).device.type == "cpu":
        how = {"dynamic": True} | how
    for layer in layers:
        layer.compile(**how)
    try:
        # One compilation each for layers with adapters and without, observed or not, of a shape or of any.
        with torch._dynamo.config.patch(recompile_limit=32), warnings.catch_warnings():
            # torch looks for one on all that a layer reads; the gathered rows of adapters have none.
            warnings.filterwarnings("ignore", r"The \.grad attribute of a Tensor that is not a leaf")
            yield
    finally:
        for layer in layers:
            layer._compiled_call_impl = None  # as before `compile`, which has no opposite
