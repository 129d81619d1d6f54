"""The losses, as pure functions of tensors: sums over tokens or rows, in nats.

Every function takes response tokens already gathered for student and teacher, so nothing is masked here:
`data.chat.response_positions` gives the positions that predict responses, and `train.objective` gathers them.
Behind a frozen head, training computes the same values chunk by chunk with `losses.fused`; tests compare the
two.

A divergence takes the teacher as dense logits or as its k likeliest tokens plus the remaining mass (`TopK`).
For `TopK` it compares two distributions over k + 1 outcomes: the student's other tokens are also merged into
one outcome, so no mass is renormalised away. It is never more than the dense divergence (data processing
inequality; Cover & Thomas 2006, section 2.8), and equal to it if teacher and student distribute the rest
alike, or if k = V. Another temperature cannot be applied to the rest, of which only the sum is known. So at
temperature τ the divergence is the one at temperature 1 over the k + 1 outcomes, plus τ² times the one at τ
between the distributions renormalised to the k tokens: the first moves mass to the k tokens, the second keeps
the teacher's ratios among them (Hinton et al. 2015, arXiv:1503.02531) even where it is nearly one-hot.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from isogloss.losses.topk import TopK

LEAST = -1e30
"""Replaces ln 0 (logits of -inf, as on padding entries of a vocabulary), so that 0 · ln 0 is 0, not nan."""


@dataclass(frozen=True)
class Kept:
    """The student's ln probability of a `TopK`'s tokens, and of all other tokens together, if any."""

    logprobs: Float[Tensor, "tokens k"]
    rest: Float[Tensor, " tokens"] | None

    @staticmethod
    def of(logits: Float[Tensor, "tokens vocab"], top: TopK) -> "Kept":
        where = torch.arange(len(top), device=logits.device).repeat_interleave(top.ids.shape[1])
        kept, rest = token_log_probs(logits, top.ids.long().flatten(), where)
        return Kept(kept.view(top.ids.shape), rest if top.ids.shape[1] < logits.shape[1] else None)


def forward_kl(
    student: Float[Tensor, "tokens vocab"] | Kept,
    teacher: Float[Tensor, "tokens vocab"] | TopK,
    *,
    temperature: float = 1.0,
) -> Float[Tensor, ""]:
    """Sum over tokens of KL(teacher ‖ student) = Σ p·(ln p - ln q), in nats; 0 when both agree.

    p is the teacher's distribution, q the student's (Kullback & Leibler 1951, doi:10.1214/aoms/1177729694).

    Args:
        student: Raw logits of any float type, the softmax runs in float32; or `Kept`, for a `TopK`.
        teacher: Raw logits of the same tokens, or a `TopK` of their distribution; without gradient.
        temperature: Divides both logits; the sum is multiplied by its square, which preserves the
            gradient's scale (Hinton et al. 2015, arXiv:1503.02531, section 2).

    Raises:
        ValueError: `temperature` is not a finite number above 0.
    """
    return _divergence(lambda log_q, log_p: _kl(log_p, log_q), student, teacher, temperature)


def reverse_kl(
    student: Float[Tensor, "tokens vocab"] | Kept,
    teacher: Float[Tensor, "tokens vocab"] | TopK,
    *,
    temperature: float = 1.0,
) -> Float[Tensor, ""]:
    """Sum over tokens of KL(student ‖ teacher) = Σ q·(ln q - ln p), in nats; 0 when both agree.

    Mode-seeking: it keeps the student off tokens that the teacher finds unlikely, whereas `forward_kl` makes
    it cover all that the teacher finds likely (Gu et al. 2024, arXiv:2306.08543, section 2). Arguments as in
    `forward_kl`.

    Raises:
        ValueError: As `forward_kl`.
    """
    return _divergence(_kl, student, teacher, temperature)


def jensen_shannon(
    student: Float[Tensor, "tokens vocab"] | Kept,
    teacher: Float[Tensor, "tokens vocab"] | TopK,
    *,
    beta: float = 0.5,
    temperature: float = 1.0,
) -> Float[Tensor, ""]:
    """Sum over tokens of the generalised Jensen–Shannon divergence, in nats.

    β·KL(teacher ‖ m) + (1 - β)·KL(student ‖ m), where m = β·teacher + (1 - β)·student
    (Agarwal et al. 2024, arXiv:2306.13649, section 2). Other arguments as in `forward_kl`.

    Raises:
        ValueError: `beta` is not strictly between 0 and 1, or as `forward_kl`.
    """
    if not 0.0 < beta < 1.0:
        raise ValueError(
            f"beta is {beta}; it must lie between 0 and 1; at the ends use forward_kl or reverse_kl"
        )

    def both(log_q: Tensor, log_p: Tensor) -> Tensor:
        log_m = torch.logaddexp(log_p + math.log(beta), log_q + math.log1p(-beta))
        return (beta * log_p.exp() * (log_p - log_m) + (1 - beta) * log_q.exp() * (log_q - log_m)).sum()

    return _divergence(both, student, teacher, temperature)


def cross_entropy(
    student: Float[Tensor, "tokens vocab"], response: Int[Tensor, " tokens"]
) -> Float[Tensor, ""]:
    """Sum over tokens of -ln q(response token), in nats, where q is the student's distribution.

    The negative log-likelihood of the response (Bishop 2006, section 4.3.4), which equals `forward_kl` with
    a one-hot teacher.

    Args:
        student: Raw logits of any float type; the softmax runs in float32.
        response: The token ID at each position.
    """
    return F.cross_entropy(wide(student), response, reduction="sum")


def token_log_probs(
    logits: Float[Tensor, "states vocab"],
    ids: Int[Tensor, " tokens"],
    where: Int[Tensor, " tokens"],
    *,
    others: bool = True,
) -> tuple[Float[Tensor, " tokens"], Float[Tensor, " states"]]:
    """Return ln q of some tokens, and of all other tokens of each state together, in nats.

    Args:
        where: Index of the state that predicts each of them.
        others: Whether the second is needed; otherwise it is 0.
    """
    log_q = wide(logits).log_softmax(-1)
    tokens = log_q[where, ids].clamp(min=LEAST)
    if not others:
        return tokens, log_q.new_zeros(len(log_q))
    return tokens, log_q.index_put((where, ids), log_q.new_tensor(LEAST)).logsumexp(1)


def answer_set_kl(
    scores: Float[Tensor, " options"], targets: Float[Tensor, " options"], sizes: Sequence[int]
) -> Float[Tensor, ""]:
    """Sum over rows of KL(p ‖ q) between distributions over whole answers, in nats.

    p is the reference model's distribution over a row's options in English: a softmax over their
    log-probabilities, so the total probability that it gives the option set does not matter. q is the
    student's distribution over all possible answers: if it were renormalised to the options too, q could
    match p while nearly all of its mass is on other answers. The KL of a sequence is the expected sum over
    its tokens (chain rule), so it is weighted like response tokens.

    Args:
        scores: The student's ln probability of each option as a whole answer, end of turn included, with the
            rows concatenated.
        targets: The reference model's ln probabilities, in the same order; without gradient.

    Raises:
        ValueError: `sizes` do not sum to the number of options.
    """
    if sum(sizes) != len(scores) or len(scores) != len(targets):
        raise ValueError(f"{len(scores)} scores and {len(targets)} targets for rows of {list(sizes)} options")
    total = scores.new_zeros(())
    for log_q, theirs in zip(scores.split(list(sizes)), targets.split(list(sizes)), strict=True):
        total = total + _kl(theirs.to(log_q.dtype).log_softmax(0), log_q)
    return total


def similarity(
    student: Float[Tensor, "rows hidden"],
    twins: Float[Tensor, "meanings hidden"],
    own: Int[Tensor, " rows"],
    *,
    temperature: float,
) -> Float[Tensor, ""]:
    """Sum over rows of the KL between softmax similarities to all twins, in nats.

    The target is the softmax of cosines / τ from the row's own twin to all twins; the prediction is the same
    from the row (similarity distillation: Fang et al. 2021, arXiv:2101.04731, equation 5, with all twins as
    its queue). The loss is the mean of this and the reverse direction, from each row's twin to the rows of
    the batch. It is 0 if every row coincides with its twin. InfoNCE, whose target is the own twin alone,
    would keep pushing a row away from twins of similar wording, to where the layers above cannot read it.

    Args:
        student: Standardised mean-pooled hidden states of the instructions.
        twins: The same of the English twins, each meaning once; without gradient.
        own: Index of each row's twin.
        temperature: Divides the cosines; a lower value concentrates on the nearest twins.
    """
    ours, theirs = F.normalize(wide(student), dim=-1), F.normalize(wide(twins), dim=-1)
    mine = theirs[own]
    there = forward_kl(ours @ theirs.T / temperature, mine @ theirs.T / temperature)
    back = forward_kl(mine @ ours.T / temperature, mine @ mine.T / temperature)
    return (there + back) / 2


def perplexity(twins: Float[Tensor, "meanings hidden"], temperature: float) -> float:
    """Return the mean perplexity (exp of the entropy) of the target of `similarity`.

    It is 1 for a one-hot target and the number of meanings for a uniform one; near either, the target does
    not tell which meanings are alike.
    """
    return _perplexity(_cosines(twins), temperature)


def temperature_of(twins: Float[Tensor, "meanings hidden"], wanted: float) -> float:
    """Find the temperature at which the target of `similarity` has a given perplexity; bisection, to 1 %.

    The perplexity rises with the temperature, from the number of identical twins to the number of all twins.
    """
    low, high, cosines = 1e-3, 10.0, _cosines(twins)
    while high / low > 1.01:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if _perplexity(cosines, middle) < wanted else (low, middle)
    return math.sqrt(low * high)


COSINES = 1 << 23
"""Cosines used for a perplexity: of many twins an evenly spaced subset, each compared with all twins."""


def _cosines(twins: Float[Tensor, "meanings hidden"]) -> Float[Tensor, "some meanings"]:
    units, count = F.normalize(wide(twins), dim=-1), len(twins)
    some = torch.linspace(0, count - 1, min(count, max(64, COSINES // count)), device=twins.device).long()
    return units[some] @ units.T


def _perplexity(cosines: Float[Tensor, "some meanings"], temperature: float) -> float:
    log_p = F.log_softmax(cosines / temperature, dim=-1)
    return (-(log_p.exp() * log_p).sum(-1)).exp().mean().item()


def _kl(log_p: Float[Tensor, "*any"], log_q: Float[Tensor, "*any"]) -> Float[Tensor, ""]:
    """Sum p·(ln p - ln q) over all outcomes, for either of the two as p."""
    return (log_p.exp() * (log_p - log_q)).sum()


def _divergence(
    measure: Callable[[Tensor, Tensor], Tensor],
    student: Float[Tensor, "tokens vocab"] | Kept,
    teacher: Float[Tensor, "tokens vocab"] | TopK,
    temperature: float,
) -> Float[Tensor, ""]:
    """Apply a divergence of log q and log p at a temperature, times its square; `TopK`: see the module."""
    if not isinstance(teacher, TopK):
        assert not isinstance(student, Kept)
        return measure(log_softmax(student, temperature), log_softmax(teacher, temperature)) * temperature**2
    ours = student if isinstance(student, Kept) else Kept.of(student, teacher)
    total = ours.logprobs.new_zeros(())
    if ours.rest is not None:
        outcomes = ((ours.logprobs, ours.rest), (teacher.logprobs, teacher.rest))
        both = (torch.cat([wide(kept), wide(rest)[:, None]], 1).clamp(min=LEAST) for kept, rest in outcomes)
        total = measure(*both)
    if ours.rest is None or temperature != 1:
        kept = (log_softmax(one.logprobs, temperature) for one in (ours, teacher))
        total = total + measure(*kept) * temperature**2
    return total


def log_softmax(logits: Float[Tensor, "tokens vocab"], temperature: float) -> Float[Tensor, "tokens vocab"]:
    """Return the log-softmax of logits / temperature, in float32 or wider.

    Raises:
        ValueError: `temperature` is not a finite number above 0.
    """
    if not (math.isfinite(temperature) and temperature > 0):
        raise ValueError(f"temperature is {temperature}; it must be a finite number above 0")
    logits = wide(logits)
    found = F.log_softmax(logits if temperature == 1 else logits / temperature, dim=-1)
    return found.clamp(min=LEAST) if found.requires_grad else found.clamp_(min=LEAST)


def wide(values: Tensor) -> Tensor:
    """Cast to float32, unless already float64."""
    return values if values.dtype == torch.float64 else values.float()
