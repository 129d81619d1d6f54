"""Context managers that run a decoder with another attention or with compiled layers, then restore it."""

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
from isogloss.model.decoder import causal_of, layers_of, text_config

LONG = 128
"""Sequence length from which attention on a CPU recomputes its probabilities in the backward pass."""
RECOMPUTED = "recomputed"
"""Name under which this attention is registered with transformers."""


@contextmanager
def fused_attention(model: nn.Module) -> Iterator[None]:
    """Use SDPA, if the architecture supports it; for forward passes without gradient."""
    causal, config = causal_of(model), text_config(model)
    # SDPA does not support soft-capped attention logits (Gemma 2).
    capped = getattr(config, "attn_logit_softcapping", None) is not None
    plain = config._attn_implementation in ("eager", RECOMPUTED)
    served = plain and not capped and getattr(causal, "_supports_sdpa", False)
    with _attending(causal, "sdpa" if served else None):
        yield


@contextmanager
def thrifty_attention(model: nn.Module) -> Iterator[None]:
    """Make eager attention recompute its probabilities in the backward pass, to save memory.

    The probabilities take heads × tokens × tokens per row in float32, and once more in the dtype of the
    hidden states. Texts of fewer than `LONG` tokens store them, as they are small.
    """
    causal = causal_of(model)
    plain = text_config(causal)._attn_implementation == "eager"
    # Architectures with exchangeable attention define their eager version under this name.
    own = hasattr(sys.modules[type(causal).__module__], "eager_attention_forward")
    with _attending(causal, RECOMPUTED if plain and own else None):
        yield


@contextmanager
def _attending(causal: Any, how: str | None) -> Iterator[None]:
    """Switch the attention implementation inside the context; None keeps it."""
    before = text_config(causal)._attn_implementation
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
    """Attention function with transformers' signature; returns no attention weights."""
    plain = sys.modules[type(module).__module__].eager_attention_forward

    def attend(*given: Tensor | None) -> Tensor:
        return plain(module, *given, **kwargs)[0]

    if not torch.is_grad_enabled() or key.shape[-2] < LONG:
        return attend(query, key, value, mask), None
    random = bool(kwargs.get("dropout"))
    return checkpoint(attend, query, key, value, mask, use_reentrant=False, preserve_rng_state=random), None


AttentionInterface.register(RECOMPUTED, _recomputed)
AttentionMaskInterface.register(RECOMPUTED, eager_mask)


def check_compiler() -> None:
    """Check that there is a C++ compiler, which `torch.compile` needs on a CPU.

    Raises:
        ConfigError: None was found.
    """
    if torch.cuda.is_available():
        return
    from torch._inductor import config  # importing it takes a second

    wanted = [name for name in config.cpp.cxx if name]
    if not any(map(shutil.which, wanted)):
        raise ConfigError(
            f"compile is true, but no C++ compiler was found ({', '.join(wanted)}); install one, name yours "
            "in the environment variable CXX, or set compile: false"
        )


@contextmanager
def compiled(model: nn.Module, **how: Any) -> Iterator[None]:
    """Compile the decoder layers inside the context; identical layers share the compiled code.

    On a GPU the first batch compiles for its static shape, and the next shape for dynamic shapes. On a CPU
    shapes are dynamic from the start, since a static graph (32 × 160 in bfloat16, torch 2.13) gave nan
    gradients.

    Args:
        how: Arguments of `torch.compile`.
    """
    layers = layers_of(model)
    if next(model.parameters()).device.type == "cpu":
        how = {"dynamic": True} | how
    for layer in layers:
        layer.compile(**how)
    try:
        # Separate compilations for layers with or without adapters or hooks, and static or dynamic shapes.
        with torch._dynamo.config.patch(recompile_limit=32), warnings.catch_warnings():
            # torch reads .grad of every input of a layer, but gathered adapter rows are not leaf tensors.
            warnings.filterwarnings("ignore", r"The \.grad attribute of a Tensor that is not a leaf")
            yield
    finally:
        for layer in layers:
            layer._compiled_call_impl = None  # undoes `compile`, which has no inverse
