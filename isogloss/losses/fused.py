"""From hidden states and a frozen head to losses and their gradient, a chunk of tokens at a time.

The head does not learn, so nothing is wanted of its logits but one gradient with respect to the states that
it reads. It has a closed form and is found in forward, while a chunk's logits are there: tokens × vocabulary
is never held beyond a chunk, nothing is computed twice, and backward multiplies [tokens, hidden] by a number.
Equal to the functions of `losses` on whole logits.

Cross-entropy, and a divergence on top-k, set apart a few tokens: the response's own and those that are kept.
The slopes of all others are as q: one product of q with the head, times a number a token, to which the few
are added from their own rows of the head.
Letters: T response tokens, V vocabulary, z logits, q student, p teacher, τ temperature.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from isogloss.losses.functional import LEAST, log_softmax, outcomes_of, wide
from isogloss.losses.topk import TopK
from isogloss.model.decoder import causal_of, head, readout

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
            z = rounded.float().add_(torch.addmm(rounded, hidden, weight.T, beta=-1))
            with torch.no_grad():
                announce(self.linear, hidden)
        return self._finished(z, self.linear.bias)

    def _finished(self, z: Tensor, bias: Tensor | None) -> Tensor:
        """What stands behind the product: bias, scale and cap."""
        z = z if bias is None else z + bias
        z = z if self.scale == 1.0 else z * self.scale
        return z if self.cap is None else torch.tanh(z / self.cap) * self.cap

    def token_logits(
        self, hidden: Float[Tensor, "tokens hidden"], ids: Int[Tensor, " tokens"]
    ) -> Float[Tensor, " tokens"]:
        """The logit of one token at each state, from its own row of the head."""
        z = (wide(hidden) * wide(self.linear.weight[ids])).sum(1)
        return self._finished(z, None if self.linear.bias is None else self.linear.bias[ids])

    def softcap_grad(self, logits: Float[Tensor, "*any"]) -> Tensor | float:
        """Derivative of the capping at some logits."""
        return 1.0 if self.cap is None else 1 - (logits / self.cap).square()

    def input_grad(
        self, slope: Float[Tensor, "tokens vocab"], softcap: Tensor | float
    ) -> Float[Tensor, "tokens hidden"]:
        """The gradient with respect to the states, from that with respect to the logits, which is used up."""
        slope = slope if isinstance(softcap, float) else slope.mul_(softcap)
        back = slope.to(self.linear.weight.dtype) @ self.linear.weight
        return back if self.scale == 1.0 else back * self.scale

    def sparse_input_grad(
        self,
        slope: Float[Tensor, "tokens some"],
        softcap: Tensor | float,
        ids: Int[Tensor, "tokens some"],
    ) -> Float[Tensor, "tokens hidden"]:
        """As `input_grad`, of some tokens' logits alone."""
        weight, each = self.linear.weight, slope * softcap * self.scale
        return F.embedding_bag(ids, weight, mode="sum", per_sample_weights=each.to(weight.dtype))


def announce(linear: nn.Linear, hidden: Tensor) -> None:
    """Call the FLOP counter's pre-hooks on the head, whose own forward is bypassed."""
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
    made = readout(model)
    return Head(linear, made.scale, made.cap)


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
    weights: tuple[float, float] = (1.0, 1.0),
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Cross-entropy and divergence, sums over tokens in nats, as `losses` has them; 0 what is not asked for.

    Args:
        hidden: The student's states, which the head reads.
        size: Tokens whose logits are held at a time.
        response: The tokens of the cross-entropy.
        teacher: The teacher's states under the same head, or what was kept of its distribution.
        weights: How much either will count in what is differentiated, up to a common factor, so that one
            product gives the gradient of both; nothing is learned of one that has 0.

    Raises:
        ValueError: As the divergences of `losses`.
        RuntimeError: In backward, where the two count in another ratio.
    """
    if divergence == "jensen_shannon" and not 0.0 < beta < 1.0:
        raise ValueError(
            f"beta is {beta}; it must lie between 0 and 1; at the ends use forward_kl or reverse_kl"
        )
    weights = weights[0] if response is not None else 0.0, weights[1] if teacher is not None else 0.0
    how = _How(head, size, divergence, beta, temperature, weights)
    return _Scored.apply(hidden, response, teacher, how)  # type: ignore[return-value]


def token_log_probs(
    model: nn.Module,
    hidden: Float[Tensor, "places hidden"],
    ids: Int[Tensor, " tokens"],
    where: Int[Tensor, " tokens"],
    *,
    size: int,
    fixed: Head | None = None,
) -> Float[Tensor, " tokens"]:
    """ln q(id) of some tokens, in nats, differentiable with respect to the states that predict them.

    d ln q(y) / dh = W_y - Σ_v q_v W_v: the sum over the vocabulary is found in forward, a chunk of places at
    a time and once for all tokens that a place predicts, so backward is a number per token times vectors of
    the hidden size. Tokens that are asked for are set apart from the sum, in float32: where q(y) is near 1,
    W_y and the sum are nearly the same, and rounded to bfloat16 their difference would be lost.

    Args:
        hidden: The model's last hidden states, which its head reads.
        ids: The tokens whose probability is asked for.
        where: The place in `hidden` that predicts each of them.
        size: Places whose logits are held at a time.
        fixed: The head; the model's own if not given. One that is not frozen serves with autograd.
    """
    fixed = fixed or frozen_head(model)
    if fixed is not None:
        return _TokenLogProbs.apply(hidden, ids, where, fixed, size)  # type: ignore[return-value]
    found = [
        head(model, states).float().log_softmax(-1).gather(1, own[:, None])[:, 0]
        for states, own in zip(hidden[where].split(size), ids.split(size), strict=True)
    ]
    return torch.cat(found)


class _TokenLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, ids: Tensor, where: Tensor, head: Head, size: int) -> Tensor:
        learn, states = ctx.needs_input_grad[0], hidden.detach()
        mean = torch.empty_like(states) if learn else None
        found = torch.empty(len(states), dtype=wide(states[:0]).dtype, device=states.device)
        # Answers that begin alike ask for the same token at the same place, once each.
        pairs, pair = torch.stack([where, ids]), torch.arange(len(ids), device=ids.device)
        if not ids.is_meta:
            pairs, pair = pairs.unique(dim=1, return_inverse=True)
        share = found.new_zeros(pairs.shape[1])
        for start in range(0, len(states), size):
            part = slice(start, start + size)
            # Nothing here requires a gradient; a meter on the head sees that one is found.
            with torch.set_grad_enabled(learn):
                z = head.logits(states[part])
            highest, softcap = z.amax(1, keepdim=True), head.softcap_grad(z)
            q = z.sub_(highest).exp_()
            total = q.sum(1, keepdim=True)
            found[part] = (highest + total.log())[:, 0]
            if mean is not None:
                slope = q.div_(total)
                slope = slope if isinstance(softcap, float) else slope.mul_(softcap)
                if not ids.is_meta:
                    here = ((pairs[0] >= start) & (pairs[0] < start + size)).nonzero()[:, 0]
                    at, token = pairs[0, here] - start, pairs[1, here]
                    share[here] = slope[at, token]
                    slope[at, token] = 0.0
                mean[part] = head.input_grad(slope, 1.0)
        own = head.token_logits(states[where], ids)
        ctx.head, ctx.softcap = head, head.softcap_grad(own)
        ctx.save_for_backward(mean, where, pairs, pair, share)
        return own - found[where]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outer: Tensor) -> tuple:
        mean, where, pairs, pair, share = ctx.saved_tensors
        each, head = outer[0], ctx.head
        sums = each.new_zeros(len(mean)).index_add_(0, where, each)
        pull = torch.zeros_like(share).index_add_(0, pair, each * ctx.softcap) - sums[pairs[0]] * share
        rows = wide(head.linear.weight[pairs[1]]) * (pull * head.scale)[:, None]
        gradient = wide(mean) * -sums[:, None]
        return gradient.index_add_(0, pairs[0], rows).to(mean.dtype), None, None, None, None


@dataclass(frozen=True)
class _How:
    head: Head
    size: int
    divergence: Divergence
    beta: float
    temperature: float
    weights: tuple[float, float]


Scores = tuple[Tensor | float, Tensor | float, Tensor | None]
"""Cross-entropy, divergence, and the gradient of what they add up to."""


class _Scored(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, response: Tensor | None, teacher: Tensor | TopK | None, how: _How
    ) -> tuple[Tensor, Tensor]:
        learn = ctx.needs_input_grad[0] and any(how.weights)
        states, ctx.weights = hidden.detach(), how.weights
        gradient = torch.empty_like(states) if learn else None
        sums = torch.zeros(2, dtype=wide(states[:0]).dtype, device=states.device)
        for start in range(0, len(states), how.size):
            part = slice(start, start + how.size)
            # Nothing here requires a gradient; a meter on the head sees that one is found.
            with torch.set_grad_enabled(learn):
                z = how.head.logits(states[part])
            own = None if response is None else response[part]
            said = None if teacher is None else teacher[part]
            if isinstance(said, TopK) and said.ids.shape[1] == z.shape[1]:
                said = torch.empty_like(z).scatter_(1, said.ids.long(), said.logprobs.to(z))
            elif isinstance(said, Tensor):
                said = how.head.logits(said)
            if isinstance(said, Tensor):
                ce, kl, found = _dense_grad(z, own, said, how, learn)
            else:
                ce, kl, found = _topk_grad(z, own, said, how, learn)
            sums[0] += ce
            sums[1] += kl
            if gradient is not None and found is not None:
                gradient[part] = found
        ctx.save_for_backward(gradient)
        return sums[0].clone(), sums[1].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outer: Tensor) -> tuple:
        (gradient,) = ctx.saved_tensors
        if gradient is None:
            return None, None, None, None
        factor, *other = [one / weight for one, weight in zip(outer, ctx.weights, strict=True) if weight]
        if other and not factor.is_meta and not torch.isclose(factor, other[0], rtol=1e-4):
            raise RuntimeError(f"cross-entropy and divergence count otherwise than {ctx.weights}")
        return gradient * factor.to(gradient.dtype), None, None, None


def _topk_grad(z: Tensor, response: Tensor | None, top: TopK | None, how: _How, learn: bool) -> Scores:
    """Of the response's own tokens and of those that a teacher kept; all others have a slope like q's.

    With a = ∂D/∂ln q of each outcome, a kept token has the slope a - q Σa and one of the rest
    (a(rest)/q(rest) - Σa) q; cross-entropy's slope is q, less 1 for the response's own token.
    """
    if top is not None and how.temperature != 1:
        outcomes_of(z, top, how.temperature)  # refuses it
    none = torch.empty(len(z), 0, dtype=torch.long, device=z.device)
    ids = none if top is None else top.ids.long()
    own = none if response is None else response[:, None]
    few, kept = torch.cat([ids, own], 1), ids.shape[1]
    # The response's own token may stand among those kept: then its last place is empty.
    there = torch.ones_like(few, dtype=torch.bool)
    if top is not None and response is not None:
        there[:, kept:] = (ids != own).all(1, keepdim=True)
    logits, highest = z.gather(1, few), z.amax(1, keepdim=True)
    softcaps = how.head.softcap_grad(z), how.head.softcap_grad(logits)
    logits = logits - highest
    # In place z becomes the others' exp(z - max): a number a token makes q of it.
    others = z.sub_(highest).exp_().scatter_(1, few, 0.0)
    some, rest = logits.exp() * there, others.sum(1, keepdim=True)
    total = some.sum(1, keepdim=True) + rest
    some, rest, logits = some / total, rest / total, logits - total.log()
    (w_ce, w_kl), tiny = how.weights, torch.finfo(z.dtype).tiny
    ce, kl, factor, slope = 0.0, 0.0, torch.full_like(total, w_ce), w_ce * some
    if response is not None:
        ce = -logits[:, kept:].sum()
        slope -= w_ce * ((few == own) & there)
    if top is not None:
        rest = (rest + some[:, kept:].sum(1, keepdim=True)).clamp(min=tiny)
        ours = torch.cat([logits[:, :kept], rest.log()], 1)
        theirs = torch.cat([wide(top.logprobs), wide(top.rest)[:, None]], 1)
        kl, a = _outcomes(ours.clamp_(min=LEAST), theirs.clamp_(min=LEAST), how)
        all_q, rest_q = -a.sum(1, keepdim=True), a[:, kept:] / rest
        factor = factor + w_kl * (all_q + rest_q)
        own_a = torch.cat([a[:, :kept], rest_q * some[:, kept:]], 1)
        slope += w_kl * (all_q * some + own_a)
    if not learn:
        return ce, kl, None
    most = how.head.input_grad(others, softcaps[0]) * (factor / total)
    return ce, kl, most + how.head.sparse_input_grad(slope, softcaps[1], few)


def _dense_grad(z: Tensor, response: Tensor | None, teacher: Tensor, how: _How, learn: bool) -> Scores:
    """Of all tokens; at a temperature the divergence is times τ², and its slope (a - q Σa) τ."""
    tau, (w_ce, w_kl), ce = how.temperature, how.weights, 0.0
    ours, theirs = log_softmax(z, tau), log_softmax(teacher, tau)
    if response is not None:
        ce = F.nll_loss(ours if tau == 1 else log_softmax(z, 1.0), response, reduction="sum")
    kl, a = _outcomes(ours, theirs, how)
    if not learn:
        return ce, kl * tau**2, None
    factor = -w_kl * tau * a.sum(1, keepdim=True)
    slope = ours.exp_().mul_(factor + w_ce if tau == 1 else factor).add_(a, alpha=w_kl * tau)
    if w_ce and response is not None:
        if tau != 1:
            slope.add_(z.softmax(1), alpha=w_ce)
        slope[torch.arange(len(z), device=z.device), response] -= w_ce
    return ce, kl * tau**2, how.head.input_grad(slope, how.head.softcap_grad(z))


def _outcomes(ours: Tensor, theirs: Tensor, how: _How) -> tuple[Tensor, Tensor]:
    """The divergence of log-probabilities over outcomes, and its derivative by `ours`; uses `theirs` up."""
    if how.divergence == "forward":
        p = theirs.exp()
        return theirs.sub_(ours).mul_(p).sum(), p.neg_()
    if how.divergence == "reverse":
        a = ours.exp().mul_(theirs.neg_().add_(ours))
        return a.sum(), a
    middle = torch.logaddexp(theirs + math.log(how.beta), ours + math.log1p(-how.beta))
    a = (1 - how.beta) * ours.exp() * (ours - middle)
    return a.sum() + how.beta * (theirs.exp() * (theirs - middle)).sum(), a
