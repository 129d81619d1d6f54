"""From hidden states and a frozen head to losses and their gradient, a chunk of tokens at a time.

The head does not learn, so nothing is wanted of its logits but one gradient with respect to the states that
it reads. It has a closed form and is found in forward, while a chunk's logits are there: tokens × vocabulary
is never held beyond a chunk, nothing is computed twice, and backward multiplies [tokens, hidden] by a number.
Equal to the functions of `losses` on whole logits.
Letters: T response tokens, V vocabulary, z logits, q student, p teacher, τ temperature.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from isogloss.distill.losses import log_softmax, outcomes_of, wide
from isogloss.distill.topk import TopK
from isogloss.model import causal_of

Divergence = Literal["forward", "reverse", "jensen_shannon"]


@dataclass(frozen=True)
class Head:
    """A linear head that is not trained, and what the architecture does to its product.

    z = cap · tanh(scale · (W h + b) / cap), without a cap scale · (W h + b).
    """

    linear: nn.Linear
    scale: float = 1.0
    cap: float | None = None

    def logits(self, hidden: Float[Tensor, "tokens hidden"]) -> Float[Tensor, "tokens vocab"]:
        """In float32 or wider: products of half-precision factors are not rounded to half precision.

        Rounded logits move probabilities by percents, and gradients by more where both sides nearly agree.
        """
        weight = self.linear.weight
        hidden = hidden.to(weight.dtype)
        announce(self.linear, hidden)
        if weight.dtype not in (torch.bfloat16, torch.float16):
            z = hidden @ weight.T
        elif weight.is_cuda:
            z = torch.mm(hidden, weight.T, out_dtype=torch.float32)
        else:
            # A processor's product is summed wide and rounded at its end: a second one finds what that took.
            rounded = hidden @ weight.T
            z = rounded.float() + torch.addmm(rounded, hidden, weight.T, beta=-1).float()
            with torch.no_grad():
                announce(self.linear, hidden)
        z = z if self.linear.bias is None else z + self.linear.bias
        z = z if self.scale == 1.0 else z * self.scale
        return z if self.cap is None else torch.tanh(z / self.cap) * self.cap

    def back(
        self, slope: Float[Tensor, "tokens vocab"], logits: Float[Tensor, "tokens vocab"]
    ) -> Float[Tensor, "tokens hidden"]:
        """The gradient with respect to the states, from that with respect to the logits, which is used up."""
        if self.cap is not None:
            slope *= 1 - (logits / self.cap).square()
        if self.scale != 1.0:
            slope *= self.scale
        return slope.to(self.linear.weight.dtype) @ self.linear.weight


def announce(linear: nn.Linear, hidden: Tensor) -> None:
    """The product is made beside the head, but a meter's hooks on it want to hear of it."""
    for hook in linear._forward_pre_hooks.values():
        hook(linear, (hidden,))


def frozen_head(model: nn.Module) -> Head | None:
    """The model's head, if it is a plain linear layer that learns nothing and lies whole on its device.

    None for one that is trained, quantised, adapted or sharded: `model.head` with autograd serves all.
    """
    causal = causal_of(model)
    linear = causal.get_output_embeddings()
    if type(linear) is not nn.Linear or any(p.requires_grad for p in linear.parameters()):
        return None
    weight = linear.weight
    if (
        type(weight) is not nn.Parameter
        or (weight.is_meta and hasattr(linear, "_hf_hook"))  # accelerate holds it elsewhere
        or weight.ndim != 2
        or not weight.is_floating_point()
    ):
        return None
    config = causal.config.get_text_config()
    scale = (getattr(config, "logit_scale", None) or 1.0) / (getattr(config, "logits_scaling", None) or 1.0)
    return Head(linear, scale, getattr(config, "final_logit_softcapping", None) or None)


def scored(
    hidden: Float[Tensor, "tokens hidden"],
    head: Head,
    *,
    size: int,
    response: Int[Tensor, " tokens"] | None = None,
    teacher: Float[Tensor, "tokens hidden"] | TopK | None = None,
    divergence: Divergence = "forward",
    beta: float = 0.5,
    temperature: float = 1.0,
    learned: tuple[bool, bool] = (True, True),
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Cross-entropy and divergence, sums over tokens in nats, as `losses` has them; 0 what is not asked for.

    Args:
        hidden: The student's states, which the head reads.
        size: Tokens whose logits are held at a time.
        response: The tokens of the cross-entropy.
        teacher: The teacher's states under the same head, or what was kept of its distribution.
        learned: Of which of the two a gradient is wanted; each costs one product with the head.

    Raises:
        ValueError: As the divergences of `losses`.
    """
    if divergence == "jensen_shannon" and not 0.0 < beta < 1.0:
        raise ValueError(
            f"beta is {beta}; it must lie between 0 and 1; at the ends use forward_kl or reverse_kl"
        )
    how = _How(head, size, divergence, beta, temperature, learned)
    return _Scored.apply(hidden, response, teacher, how)  # type: ignore[return-value]


@dataclass(frozen=True)
class _How:
    head: Head
    size: int
    divergence: Divergence
    beta: float
    temperature: float
    learned: tuple[bool, bool]


class _Scored(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, response: Tensor | None, teacher: Tensor | TopK | None, how: _How
    ) -> tuple[Tensor, Tensor]:
        asked = [response is not None, teacher is not None]
        learns = [ctx.needs_input_grad[0] and a and b for a, b in zip(asked, how.learned, strict=True)]
        states = hidden.detach()
        gradients = [torch.empty_like(states) if one else None for one in learns]
        sums = torch.zeros(2, dtype=wide(states[:0]).dtype, device=states.device)
        for start in range(0, len(states), how.size):
            part = slice(start, start + how.size)
            # Nothing here requires a gradient; a meter on the head sees that one is found.
            with torch.set_grad_enabled(any(learns)):
                z = how.head.logits(states[part])
            log_q = log_softmax(z, 1.0) if response is not None or how.temperature == 1 else None
            if response is not None and log_q is not None:
                value, slope = _cross_entropy(log_q, response[part], learns[0])
                sums[0] += value
                if slope is not None:
                    gradients[0][part] = how.head.back(slope, z)  # type: ignore[index]
            if teacher is not None:
                said = teacher[part]
                said = said if isinstance(said, TopK) else how.head.logits(said)
                value, slope = _divergence(z, log_q, said, how, learns[1])
                sums[1] += value
                if slope is not None:
                    gradients[1][part] = how.head.back(slope, z)  # type: ignore[index]
        ctx.save_for_backward(*gradients)
        return sums[0].clone(), sums[1].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outer: Tensor) -> tuple:
        parts = [
            gradient * factor.to(gradient.dtype)
            for gradient, factor in zip(ctx.saved_tensors, outer, strict=True)
            if gradient is not None
        ]
        return (sum(parts[1:], parts[0]) if parts else None), None, None, None


def _cross_entropy(log_q: Tensor, response: Tensor, learn: bool) -> tuple[Tensor, Tensor | None]:
    """-Σ ln q(response), and its slope q - 1[response] on the logits."""
    own = response[:, None]
    value = -log_q.gather(1, own).sum()
    if not learn:
        return value, None
    slope = log_q.exp()
    return value, slope.scatter_add_(1, own, torch.full_like(slope[:, :1], -1.0))


def _divergence(
    z: Tensor, log_q: Tensor | None, teacher: Tensor | TopK, how: _How, learn: bool
) -> tuple[Tensor, Tensor | None]:
    """The divergence times τ², and its slope on the logits.

    With a = ∂D/∂ln q of each outcome, a token of its own outcome has the slope a - q Σa, and one of the rest
    a(rest) · q/q(rest) - q Σa.
    """
    tau = how.temperature
    if log_q is None or tau != 1:
        log_q = log_softmax(z, tau)
    ours, theirs = outcomes_of(log_q, teacher, tau)
    if how.divergence == "forward":
        p = theirs.exp()
        value, a = (p * (theirs - ours)).sum(), p.neg_()
    elif how.divergence == "reverse":
        a = ours.exp() * (ours - theirs)
        value = a.sum()
    else:
        middle = torch.logaddexp(theirs + math.log(how.beta), ours + math.log1p(-how.beta))
        a = (1 - how.beta) * ours.exp() * (ours - middle)
        value = a.sum() + how.beta * (theirs.exp() * (theirs - middle)).sum()
    value = value * tau**2
    if not learn:
        return value, None
    total = a.sum(1, keepdim=True)
    slope = log_q.exp().mul_(-total)
    if isinstance(teacher, TopK):
        ids = teacher.ids.long()
        kept = ids.shape[1]
        if a.shape[1] > kept:
            slope += a[:, kept:] * (log_q.scatter(1, ids, -math.inf) - ours[:, kept:]).exp_()
        slope.scatter_add_(1, ids, a[:, :kept].contiguous())
    else:
        slope += a
    return value, slope.mul_(tau)
