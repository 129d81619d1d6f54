"""Fused losses on hidden states and a frozen head, with their gradient, one chunk of tokens at a time.

The head is frozen, so only the gradient with respect to its input states is needed. It has a closed form and
is computed in forward, while a chunk's logits exist: the (tokens, vocabulary) logits never exceed one chunk,
nothing is recomputed, and backward multiplies (tokens, hidden) by a scalar. Results equal those of
`losses.functional` on full logits.

Cross-entropy and a top-k divergence treat only a few tokens specially: the response token and the top-k
tokens. The logit gradient of every other token is proportional to q: it takes one product of q with the
head, scaled by one number per response token, to which the few tokens are added from their rows of the head.
Symbols: T response tokens, V vocabulary, z logits, q student, p teacher, τ temperature. "Slope" is the
gradient with respect to the logits.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from isogloss.losses.functional import LEAST, log_softmax, wide
from isogloss.losses.topk import TopK
from isogloss.model.decoder import causal_of, head, readout

Divergence = Literal["forward", "reverse", "jensen_shannon"]


@dataclass(frozen=True)
class Head:
    """A frozen linear head, with the architecture's logit scale and soft cap.

    z = cap · tanh(scale · (W h + b) / cap), or scale · (W h + b) without a cap.
    """

    linear: nn.Linear
    scale: float = 1.0
    cap: float | None = None

    def logits(self, hidden: Float[Tensor, "tokens hidden"]) -> Float[Tensor, "tokens vocab"]:
        """Compute the logits in float32 or wider; half-precision products are not rounded to half precision.

        Rounding the logits changes probabilities by percents, and gradients by more if teacher and student
        nearly agree.
        """
        weight = self.linear.weight
        hidden = hidden.to(weight.dtype)
        announce(self.linear, hidden)
        if weight.dtype not in (torch.bfloat16, torch.float16):
            z = hidden @ weight.T
        elif weight.is_cuda:
            z = torch.mm(hidden, weight.T, out_dtype=torch.float32)
        else:
            # A CPU sums in float32 and rounds at the end: a second product recovers the rounding error.
            rounded = hidden @ weight.T
            z = rounded.float().add_(torch.addmm(rounded, hidden, weight.T, beta=-1))
            with torch.no_grad():
                announce(self.linear, hidden)
        return self._finished(z, self.linear.bias)

    def _finished(self, z: Tensor, bias: Tensor | None) -> Tensor:
        """Apply bias, scale and soft cap to the product."""
        z = z if bias is None else z + bias
        z = z if self.scale == 1.0 else z * self.scale
        return z if self.cap is None else torch.tanh(z / self.cap) * self.cap

    def token_logits(
        self, hidden: Float[Tensor, "tokens hidden"], ids: Int[Tensor, " tokens"]
    ) -> Float[Tensor, " tokens"]:
        """Compute the logit of one token per state, from that token's row of the head."""
        z = (wide(hidden) * wide(self.linear.weight[ids])).sum(1)
        return self._finished(z, None if self.linear.bias is None else self.linear.bias[ids])

    def softcap_grad(self, logits: Float[Tensor, "*any"]) -> Tensor | float:
        """Return the derivative of the soft cap at capped logits."""
        return 1.0 if self.cap is None else 1 - (logits / self.cap).square()

    def input_grad(
        self, slope: Float[Tensor, "tokens vocab"], softcap: Tensor | float
    ) -> Float[Tensor, "tokens hidden"]:
        """Return the gradient with respect to the states; `slope` may be overwritten."""
        slope = slope if isinstance(softcap, float) else slope.mul_(softcap)
        back = slope.to(self.linear.weight.dtype) @ self.linear.weight
        return back if self.scale == 1.0 else back * self.scale

    def sparse_input_grad(
        self,
        slope: Float[Tensor, "tokens some"],
        softcap: Tensor | float,
        ids: Int[Tensor, "tokens some"],
    ) -> Float[Tensor, "tokens hidden"]:
        """As `input_grad`, for the logits of a few tokens only."""
        weight, each = self.linear.weight, slope * softcap * self.scale
        return F.embedding_bag(ids, weight, mode="sum", per_sample_weights=each.to(weight.dtype))


def announce(linear: nn.Linear, hidden: Tensor) -> None:
    """Call the FLOP counter's pre-hooks on the head, whose own forward is bypassed."""
    for hook in linear._forward_pre_hooks.values():
        hook(linear, (hidden,))


def frozen_head(model: nn.Module) -> Head | None:
    """Return the model's head if it is a plain frozen linear layer held whole on its device.

    None if it is trained, quantised, adapted or sharded: `model.decoder.head` with autograd handles these.
    """
    causal = causal_of(model)
    linear = causal.get_output_embeddings()
    if type(linear) is not nn.Linear or any(p.requires_grad for p in linear.parameters()):
        return None
    weight = linear.weight
    if (
        type(weight) is not nn.Parameter
        or (weight.is_meta and hasattr(linear, "_hf_hook"))  # offloaded by accelerate
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
    """Return cross-entropy and divergence as in `losses.functional`: sums over tokens, in nats.

    Args:
        hidden: The student's last hidden states, the input of the head.
        size: Tokens whose logits are held at a time.
        response: Target tokens of the cross-entropy, which is 0 without them.
        teacher: The teacher's hidden states, for the same head, or a `TopK`; the divergence is 0 without it.
        weights: Weights of the two in the loss that is differentiated, up to a common factor, so that one
            product gives the gradient of both. A term with weight 0 gets no gradient.

    Raises:
        ValueError: As the divergences of `losses.functional`.
        RuntimeError: In backward, if the loss weights the two in another ratio.
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
    """Return ln q(id) of some tokens, in nats, differentiable with respect to the predicting states.

    d ln q(y) / dh = W_y - Σ_v q_v W_v. The sum over the vocabulary is computed in forward, one chunk of
    positions at a time and once for all tokens that a position predicts, so backward multiplies vectors of
    the hidden size by one number per token. The requested tokens are excluded from the sum and added in
    float32: if q(y) is near 1, W_y and the sum nearly cancel, and bfloat16 would lose the difference.

    Args:
        hidden: The model's last hidden states, the input of its head.
        ids: The requested tokens.
        where: Index into `hidden` of the state that predicts each of them.
        size: Positions whose logits are held at a time.
        fixed: The frozen head; by default the model's. A head that is not frozen falls back to autograd.
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
        # Answers with a common prefix request the same token at the same position: deduplicate the pairs.
        pairs, pair = torch.stack([where, ids]), torch.arange(len(ids), device=ids.device)
        if not ids.is_meta:
            pairs, pair = pairs.unique(dim=1, return_inverse=True)
        share = found.new_zeros(pairs.shape[1])
        for start in range(0, len(states), size):
            part = slice(start, start + size)
            # Nothing here requires a gradient; grad mode tells a meter on the head that one is computed.
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
"""Cross-entropy, divergence, and the gradient of their weighted sum."""


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
            # Nothing here requires a gradient; grad mode tells a meter on the head that one is computed.
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
            raise RuntimeError(f"the loss must weight cross-entropy and divergence as {ctx.weights}")
        return gradient * factor.to(gradient.dtype), None, None, None


def _topk_grad(z: Tensor, response: Tensor | None, top: TopK | None, how: _How, learn: bool) -> Scores:
    """Score the response tokens and the teacher's top-k; the slope of all other tokens is proportional to q.

    With a = ∂D/∂ln q of each outcome, a top-k token has the slope a - q Σa, and a token of the rest has
    (a(rest)/q(rest) - Σa) q. The slope of cross-entropy is q, minus 1 for the response token.
    """
    none = torch.empty(len(z), 0, dtype=torch.long, device=z.device)
    ids = none if top is None else top.ids.long()
    own = none if response is None else response[:, None]
    few, kept = torch.cat([ids, own], 1), ids.shape[1]
    # If the response token is among the top-k, its column at the end is masked.
    there = torch.ones_like(few, dtype=torch.bool)
    if top is not None and response is not None:
        there[:, kept:] = (ids != own).all(1, keepdim=True)
    logits, highest = z.gather(1, few), z.amax(1, keepdim=True)
    softcaps = how.head.softcap_grad(z), how.head.softcap_grad(logits)
    logits = logits - highest
    # In place, z becomes exp(z - max) of the other tokens: q up to one factor per response token.
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
        if (tau := how.temperature) != 1:
            kept_q = log_softmax(logits[:, :kept], tau)
            among, a = _outcomes(kept_q, log_softmax(top.logprobs, tau), how)
            kl = kl + among * tau**2
            slope[:, :kept] += w_kl * tau * (a - kept_q.exp() * a.sum(1, keepdim=True))
    if not learn:
        return ce, kl, None
    most = how.head.input_grad(others, softcaps[0]) * (factor / total)
    return ce, kl, most + how.head.sparse_input_grad(slope, softcaps[1], few)


def _dense_grad(z: Tensor, response: Tensor | None, teacher: Tensor, how: _How, learn: bool) -> Scores:
    """Score the full vocabulary; the divergence is multiplied by τ², and its slope is (a - q Σa) τ."""
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
    """Return the divergence over outcomes and its derivative by `ours`; `theirs` may be overwritten."""
    if how.divergence == "forward":
        p = theirs.exp()
        return theirs.sub_(ours).mul_(p).sum(), p.neg_()
    if how.divergence == "reverse":
        a = ours.exp().mul_(theirs.neg_().add_(ours))
        return a.sum(), a
    middle = torch.logaddexp(theirs + math.log(how.beta), ours + math.log1p(-how.beta))
    a = (1 - how.beta) * ours.exp() * (ours - middle)
    return a.sum() + how.beta * (theirs.exp() * (theirs - middle)).sum(), a
