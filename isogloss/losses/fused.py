"""Fused losses on hidden states and a frozen head, with their gradient, one chunk of tokens at a time.

The head is frozen, so only the gradient with respect to its input states is needed. It has a closed form and
its products with the head are computed in forward, while a chunk's logits exist: the (tokens, vocabulary)
logits never exceed one chunk, and nothing is recomputed. Results equal those of `losses.functional` on full
logits.

Most losses treat only a few tokens of a state specially: the response token, answer options, the teacher's
likeliest tokens. They are functions of `token_log_probs`, which reads the head once for all of them. A
teacher given by its hidden states has a probability for every token; `scored` handles that.
Symbols: T response tokens, V vocabulary, z logits, q student, p teacher, τ temperature. "Slope" is the
gradient with respect to the logits.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from isogloss.losses import functional
from isogloss.losses.functional import LEAST, log_softmax, wide
from isogloss.model.decoder import causal_of, head, readout, text_config
from isogloss.model.readout import Readout

Divergence = Literal["forward", "reverse", "jensen_shannon"]
LOGITS, LOGITS_GPU = 1 << 25, 1 << 27
"""Maximum logits in memory at a time, for student and teacher each; more are computed in chunks.

With the CPU's chunk size a GPU would be limited by kernel launches (docs/log.md)."""


def chunk_size(model: nn.Module, gpu: bool) -> int:
    """Return the number of tokens whose logits are held at a time."""
    return max(1, (LOGITS_GPU if gpu else LOGITS) // text_config(model).vocab_size)


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
        return Readout(self.scale, self.cap)(z if self.linear.bias is None else z + self.linear.bias)

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
        self, slope: Float[Tensor, " tokens"], ids: Int[Tensor, " tokens"], starts: Int[Tensor, " states"]
    ) -> Float[Tensor, "states hidden"]:
        """As `input_grad`, for a few tokens of each state: those from its start to the next state's."""
        weight, each = self.linear.weight, (slope * self.scale).to(self.linear.weight.dtype)
        return F.embedding_bag(ids, weight, starts, mode="sum", per_sample_weights=each)


def announce(linear: nn.Linear, hidden: Tensor) -> None:
    """Call the FLOP counter's pre-hooks on the head, whose own forward is bypassed."""
    for hook in linear._forward_pre_hooks.values():
        hook(linear, (hidden,))


def frozen_head(model: nn.Module) -> Head | None:
    """Return the model's head if it is a plain frozen linear layer.

    None if it is trained or adapted: `model.decoder.head` with autograd handles these.
    """
    linear = causal_of(model).get_output_embeddings()
    if type(linear) is not nn.Linear or any(p.requires_grad for p in linear.parameters()):
        return None
    made = readout(model)
    return Head(linear, made.scale, made.cap)


def logits_of(model: nn.Module) -> Callable[[Float[Tensor, "tokens hidden"]], Float[Tensor, "tokens vocab"]]:
    """Return the function from last hidden states to logits; a frozen head's are not rounded to its dtype."""
    fixed = frozen_head(model)
    return partial(head, model) if fixed is None else fixed.logits


def scored(
    hidden: Float[Tensor, "tokens hidden"],
    head: Head,
    teacher: Float[Tensor, "tokens hidden"],
    *,
    size: int,
    response: Int[Tensor, " tokens"] | None = None,
    divergence: Divergence = "forward",
    temperature: float = 1.0,
    weights: tuple[float, float] = (1.0, 1.0),
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Return cross-entropy and divergence as in `losses.functional`: sums over tokens, in nats.

    Args:
        hidden: The student's last hidden states, the input of the head.
        teacher: The teacher's hidden states, for the same head.
        size: Tokens whose logits are held at a time.
        response: Target tokens of the cross-entropy, which is 0 without them.
        weights: Weights of the two in the loss that is differentiated, up to a common factor, so that one
            product gives the gradient of both. A term with weight 0 gets no gradient.

    Raises:
        ValueError: As the divergences of `losses.functional`.
        RuntimeError: In backward, if the loss weights the two in another ratio.
    """
    weights = weights[0] if response is not None else 0.0, weights[1]
    how = _How(head, size, divergence, temperature, weights)
    return _Scored.apply(hidden, response, teacher, how)  # type: ignore[return-value]


def token_log_probs(
    model: nn.Module,
    hidden: Float[Tensor, "states hidden"],
    ids: Int[Tensor, " tokens"],
    where: Int[Tensor, " tokens"],
    *,
    size: int | None = None,
    fixed: Head | None = None,
    others: bool = True,
) -> tuple[Float[Tensor, " tokens"], Float[Tensor, " states"]]:
    """Return ln q of some tokens, and of all other tokens of each state together, in nats.

    Both are differentiable with respect to the states, so every loss on a few tokens per state is a function
    of them: cross-entropy, answer sets, and a divergence from the teacher's likeliest tokens.

    Args:
        hidden: The model's last hidden states, the input of its head.
        where: Index into `hidden` of the state that predicts each of them.
        size: States whose logits are held at a time; by default `chunk_size`.
        fixed: The frozen head; by default the model's. With a head that is not frozen, the logits of each
            chunk are computed again in the backward pass.
        others: Whether the second is needed; without it, a head that is not frozen takes less memory.
    """
    fixed, size = fixed or frozen_head(model), size or chunk_size(model, hidden.is_cuda)
    if fixed is not None:
        return _TokenLogProbs.apply(hidden, ids, where, fixed, size)  # type: ignore[return-value]

    def read(states: Tensor, ids: Tensor, where: Tensor) -> tuple[Tensor, Tensor]:
        return functional.token_log_probs(head(model, states), ids, where, others=others)

    if len(hidden) <= size:
        return read(hidden, ids, where)
    order = torch.arange(len(where), device=where.device) if where.is_meta else where.argsort(stable=True)
    found = []
    for start, tokens in zip(
        range(0, len(hidden), size), _by_chunk(where[order], len(hidden), size), strict=True
    ):
        mine = order[tokens]
        chunk = hidden[start : start + size], ids[mine], where[mine] - start
        found.append(checkpoint(read, *chunk, use_reentrant=False))
    tokens, rest = (torch.cat(parts) for parts in zip(*found, strict=True))
    return tokens[order.argsort()], rest


def _by_chunk(where: Int[Tensor, " tokens"], states: int, size: int) -> list[slice]:
    """Return which tokens, sorted by state, belong to each chunk of `size` states."""
    starts = range(0, states, size)
    if where.is_meta:  # values are unknown: spread them evenly
        ends = [len(where) * start // states for start in starts]
    else:
        ends = torch.searchsorted(where, torch.tensor(list(starts), device=where.device)).tolist()
    return [slice(one, other) for one, other in pairwise([*ends, len(where)])]


class _TokenLogProbs(torch.autograd.Function):
    """ln q(y) of some tokens, and ln r, where r is the mass of a state's other tokens.

    By the states, d ln q(y) = W_y - m and d ln r = o - m, with o = Σ_others (q_v / r) W_v and
    m = r o + Σ_few q_v W_v. Only o needs a product with the head; it is taken in forward, while the logits
    exist. Each of the few tokens is added with its one total coefficient, as W_y and m nearly cancel where
    q(y) is near 1, and bfloat16 would lose the difference.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, ids: Tensor, where: Tensor, head: Head, size: int
    ) -> tuple[Tensor, Tensor]:
        learn, states = ctx.needs_input_grad[0], hidden.detach()
        vocab, device = head.linear.weight.shape[0], states.device
        # Several losses, and answers with a common prefix, ask for the same token of the same state.
        pairs, pair = where * vocab + ids, torch.arange(len(ids), device=device)
        if not ids.is_meta:
            pairs, pair = pairs.unique(return_inverse=True)
        where, ids = pairs // vocab, pairs % vocab
        tokens, rest = (
            torch.empty(n, dtype=wide(states[:0]).dtype, device=device) for n in (len(ids), len(states))
        )
        mean, softcaps = (torch.empty_like(states) if learn else None), torch.ones_like(tokens)
        for start, mine in zip(range(0, len(states), size), _by_chunk(where, len(states), size), strict=True):
            part = slice(start, start + size)
            # Nothing here requires a gradient; grad mode tells a meter on the head that one is computed.
            with torch.set_grad_enabled(learn):
                z = head.logits(states[part])
            at = None if ids.is_meta else (where[mine] - start, ids[mine])
            highest, softcap = z.amax(1, keepdim=True), head.softcap_grad(z)
            z = z.sub_(highest)
            if at is not None:
                tokens[mine] = z[at]
                softcaps[mine] = softcap[at] if isinstance(softcap, Tensor) else softcap
            others = z.exp_()
            if at is not None:
                others[at] = 0.0
            left = others.sum(1)
            total = left if at is None else left.index_add(0, at[0], tokens[mine].exp())
            if at is not None:
                tokens[mine] -= total.log()[at[0]]
            left = left.clamp_(min=torch.finfo(z.dtype).tiny)
            rest[part] = left.log() - total.log()
            if mean is not None:
                mean[part] = head.input_grad(others.div_(left[:, None]), softcap)
        tokens.clamp_(min=LEAST)
        ctx.head = head
        ctx.save_for_backward(mean, tokens, rest, softcaps, ids, where, pair)
        return tokens[pair], rest.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outer: Tensor) -> tuple:
        mean, tokens, rest, softcaps, ids, where, pair = ctx.saved_tensors
        if not len(rest):
            return torch.zeros_like(mean), None, None, None, None
        each = torch.zeros_like(tokens).index_add_(0, pair, outer[0])
        total = outer[1].index_add(0, where, each)
        few = (each - tokens.exp() * total[where]) * softcaps
        starts = torch.arange(len(rest), device=rest.device)
        starts = starts if where.is_meta else torch.searchsorted(where, starts)
        gradient = wide(mean) * (outer[1] - rest.exp() * total)[:, None]
        gradient += ctx.head.sparse_input_grad(few, ids, starts)
        return gradient.to(mean.dtype), None, None, None, None


@dataclass(frozen=True)
class _How:
    head: Head
    size: int
    divergence: Divergence
    temperature: float
    weights: tuple[float, float]


Scores = tuple[Tensor | float, Tensor | float, Tensor | None]
"""Cross-entropy, divergence, and the gradient of their weighted sum."""


class _Scored(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, response: Tensor | None, teacher: Tensor, how: _How
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
            ce, kl, found = _dense_grad(z, own, how.head.logits(teacher[part]), how, learn)
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
    middle = torch.logaddexp(theirs, ours) - math.log(2)
    a = ours.exp() * (ours - middle) / 2
    return a.sum() + (theirs.exp() * (theirs - middle)).sum() / 2, a
