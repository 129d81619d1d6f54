"""Detect how an architecture computes logits from the last hidden states, besides the head's product.

Granite divides the logits, HyperCLOVA X multiplies them by a setting of the same name, Gemma caps them and
MiniCPM scales the states first, so this is measured instead of read from the configuration. The model's own
forward pass runs with a decoder that returns known states and a head that returns known logits, and its
output is fitted with

    z = cap · tanh(scale · (W h + b) / cap), or scale · (W h + b) without a cap.

No weights are read, so this works on the meta device.
"""

import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes
from transformers.modeling_outputs import BaseModelOutputWithPast

from isogloss.errors import ConfigError

STATES = (1.0, -2.0, 4.0)
"""Known last hidden states, equal in every dimension; exact in any float type."""
SMALL, HUGE = 2.0**-24, 2.0**30
"""Logits too small for any cap to change, and large enough for any cap; exact in any float type."""


@dataclass(frozen=True)
class Readout:
    """z = cap · tanh(scale · (W h + b) / cap), or scale · (W h + b) without a cap."""

    scale: float = 1.0
    cap: float | None = None

    def __call__(self, product: Float[Tensor, "*tokens vocab"]) -> Float[Tensor, "*tokens vocab"]:
        """Apply scale and cap to the head's product."""
        logits = product if self.scale == 1.0 else product * self.scale
        return logits if self.cap is None else torch.tanh(logits / self.cap) * self.cap


_seen: WeakKeyDictionary[nn.Module, Readout] = WeakKeyDictionary()


def readout_of(causal: Any, decoder: nn.Module) -> Readout:
    """Return how a causal model computes logits from its head's product; cached per model object.

    A model that cannot be run on known states is assumed to be plain; `load.check_logits` verifies it later
    on the weights.

    Args:
        decoder: The module that returns the last hidden states.

    Raises:
        ConfigError: The logits are another function of the last hidden states.
    """
    if causal not in _seen:
        # Hide this from active counters of operations or bytes.
        with _disable_current_modes(), torch.device("cpu"):
            _seen[causal] = _look(causal, decoder)
    return _seen[causal]


def _look(causal: Any, decoder: nn.Module) -> Readout:
    head = causal.get_output_embeddings()
    names = {id(module): name for name, module in causal.named_modules()}
    path = names.get(id(decoder), "").split(".")
    if head is None or path == [""]:
        return Readout()
    states = torch.tensor(STATES).reshape(1, -1, 1)
    vocabulary, width = head.weight.shape
    states = states.expand(1, len(STATES), width).contiguous()
    grid = torch.linspace(-50.0, 50.0, vocabulary, dtype=torch.float64)
    signs = torch.where(torch.arange(vocabulary) % 2 == 0, 1.0, -1.0).double()
    product = torch.stack([grid, SMALL * signs, HUGE * signs])[None]
    read: list[Tensor] = []

    def decode(*args: Any, **kwargs: Any) -> "_Output":
        return _Output(last_hidden_state=states)

    def multiply(hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        read.append(hidden)
        return product

    known = _with(causal, names[id(head)], multiply)
    # A float32 weight: architectures that cast states to the head's dtype would round the measurement.
    wide = nn.Parameter(torch.zeros(1, 1).expand(vocabulary, width), requires_grad=False)
    known.get_submodule(names[id(head)])._parameters = {"weight": wide}
    for depth in range(1, len(path) + 1):  # the decoder and its parent modules
        known = _with(known, ".".join(path[:depth]), decode)
    try:
        ids = torch.zeros(1, len(STATES), dtype=torch.long)
        with torch.no_grad():
            logits = known.forward(input_ids=ids, use_cache=False).logits
        before = read[0].double() / states.double()
    except Exception:  # an unusual architecture may raise anything
        return Readout()
    found = _fit(logits[0].double(), product[0])
    scaled = float(before.flatten()[0])
    if not torch.allclose(before, before.new_tensor(scaled), rtol=1e-6, atol=0.0):
        found = None
    elif found is not None and scaled != 1.0:
        found = Readout(found.scale * scaled, found.cap) if getattr(head, "bias", None) is None else None
    if found is None:
        raise ConfigError(
            f"model: {type(causal).__name__} computes its logits from its last states in an unsupported way "
            "(scaling and capping are supported); use another base"
        )
    return found


def _fit(logits: Tensor, product: Tensor) -> Readout | None:
    """Fit the readout that gives these logits; None if there is none."""
    if logits.shape != product.shape:
        return None
    huge = logits[2].abs()
    scale = float((logits[1] / product[1]).mean())
    scale = 1.0 if math.isclose(scale, 1.0, rel_tol=1e-6) else scale  # float32 rounding of a cap
    cap = None if float(huge.min()) >= 0.5 * abs(scale) * HUGE else float(huge.mean())
    found = Readout(scale, cap)
    return found if torch.allclose(found(product), logits, rtol=1e-5, atol=1e-6) else None


def _with(parent: nn.Module, name: str, forward: Callable[..., Any]) -> Any:
    """Copy a module, sharing its weights, with the `forward` of one submodule replaced."""
    made = object.__new__(type(parent))  # copy.copy calls __new__, which a sharded class overrides
    made.__dict__ = dict(parent.__dict__)
    made._modules = dict(parent._modules)
    for hooks in ("_forward_pre_hooks", "_forward_hooks"):
        setattr(made, hooks, OrderedDict())
    if name:
        child, _, rest = name.partition(".")
        made._modules[child] = _with(parent.get_submodule(child), rest, forward)
    else:
        made._compiled_call_impl = None
        made.forward = forward  # type: ignore[method-assign]
    return made


class _Output(BaseModelOutputWithPast):
    """A model output with hidden states only; all other attributes are None."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)
