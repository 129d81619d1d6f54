"""The losses, as pure functions of tensors: sums over tokens or rows; divergences in nats.

Every function takes response tokens already gathered from both sides, so nothing is masked here:
`data.chat.response_positions` says where responses are predicted, `train.objective` gathers them.

A divergence takes the teacher as dense logits or as its k likeliest tokens and the rest (`TopK`). Of the
latter it is the divergence between two distributions over k + 1 outcomes, the student's tokens that were not
kept being one outcome too: no mass is renormalised away. It is never more than the dense one (data
processing; Cover & Thomas 2006, section 2.8), and equal to it where teacher and student agree on how the rest
is shared out, or where k = V. Exact is temperature 1 alone: how another temperature would change the rest
cannot be told from its sum, so that is refused unless k = V.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from isogloss.losses.topk import TopK

LEAST = -1e30
"""ln p of what has the logit -inf, such as padded tokens: p is 0, and 0 · ln 0 is 0, not nan."""


def forward_kl(
    student: Float[Tensor, "tokens vocab"],
    teacher: Float[Tensor, "tokens vocab"] | TopK,
    *,
    temperature: float = 1.0,
) -> Float[Tensor, ""]:
    """Sum over tokens of KL(teacher ‖ student) = Σ p·(ln p - ln q), in nats; 0 when both agree.

    p is the teacher's distribution, q the student's (Kullback & Leibler 1951, doi:10.1214/aoms/1177729694).

    Args:
        student: Raw logits of any float type; the softmax runs in float32.
        teacher: Raw logits of the same tokens, or what was kept of their distribution; without gradient.
        temperature: Divides both logits; the sum is multiplied by its square, which keeps the
            gradient's size (Hinton et al. 2015, arXiv:1503.02531, section 2).

    Raises:
        ValueError: `temperature` is not a finite number above 0, or not 1 where the teacher's rest is a sum.
    """
    log_q, log_p = outcomes_of(log_softmax(student, temperature), teacher, temperature)
    return (log_p.exp() * (log_p - log_q)).sum() * temperature**2


def reverse_kl(
    student: Float[Tensor, "tokens vocab"],
    teacher: Float[Tensor, "tokens vocab"] | TopK,
    *,
    temperature: float = 1.0,
) -> Float[Tensor, ""]:
    """Sum over tokens of KL(student ‖ teacher) = Σ q·(ln q - ln p), in nats; 0 when both agree.

    It keeps the student from tokens that the teacher finds unlikely, where the forward one has it cover all
    that the teacher finds likely (Gu et al. 2024, arXiv:2306.08543, section 2). Arguments as in `forward_kl`.

    Raises:
        ValueError: As `forward_kl`.
    """
    log_q, log_p = outcomes_of(log_softmax(student, temperature), teacher, temperature)
    return (log_q.exp() * (log_q - log_p)).sum() * temperature**2


def jensen_shannon(
    student: Float[Tensor, "tokens vocab"],
    teacher: Float[Tensor, "tokens vocab"] | TopK,
    *,
    beta: float = 0.5,
    temperature: float = 1.0,
) -> Float[Tensor, ""]:
    """Sum over tokens of the generalised Jensen–Shannon divergence, in nats.

    β·KL(teacher ‖ m) + (1 - β)·KL(student ‖ m), where m = β·teacher + (1 - β)·student
    (Agarwal et al. 2024, arXiv:2306.13649, section 2). Other arguments as in `forward_kl`.

    Raises:
        ValueError: `beta` does not lie strictly between 0 and 1, or as `forward_kl`.
    """
    if not 0.0 < beta < 1.0:
        raise ValueError(
            f"beta is {beta}; it must lie between 0 and 1; at the ends use forward_kl or reverse_kl"
        )
    log_q, log_p = outcomes_of(log_softmax(student, temperature), teacher, temperature)
    log_m = torch.logaddexp(log_p + math.log(beta), log_q + math.log1p(-beta))
    both = beta * log_p.exp() * (log_p - log_m) + (1 - beta) * log_q.exp() * (log_q - log_m)
    return both.sum() * temperature**2


def cross_entropy(
    student: Float[Tensor, "tokens vocab"], response: Int[Tensor, " tokens"]
) -> Float[Tensor, ""]:
    """Sum over tokens of -ln q(response token), in nats, where q is the student's distribution.

    The negative log-likelihood of the response (Bishop 2006, section 4.3.4); what one-hot teachers make of
    `forward_kl`.

    Args:
        student: Raw logits of any float type; the softmax runs in float32.
        response: The id of the token at each position.
    """
    return F.cross_entropy(wide(student), response, reduction="sum")


def answer_set_kl(
    scores: Float[Tensor, " options"], targets: Float[Tensor, " options"], sizes: Sequence[int]
) -> Float[Tensor, ""]:
    """Sum over rows of KL(p ‖ q) between distributions over whole answers, in nats.

    p is the reference model's over a row's options in English, a softmax over their log-probabilities, so
    that an option's length or its habit of naming other answers does not count; q is the student's own over
    all answers there are. Renormalised to the set too, q could follow p while all of its mass went elsewhere.
    The KL of a sequence is the expected sum of its tokens' (chain rule), so it counts as response tokens do.

    Args:
        scores: The student's ln probability of each option as a whole answer, end of turn included; rows one
            behind the other.
        targets: The reference model's, in the same order; without gradient.
        sizes: How many options each row has.

    Raises:
        ValueError: The sizes do not add up to the options.
    """
    if sum(sizes) != len(scores) or len(scores) != len(targets):
        raise ValueError(f"{len(scores)} scores and {len(targets)} targets for rows of {list(sizes)} options")
    total = scores.new_zeros(())
    for log_q, theirs in zip(scores.split(list(sizes)), targets.split(list(sizes)), strict=True):
        log_p = theirs.to(log_q.dtype).log_softmax(0)
        total = total + (log_p.exp() * (log_p - log_q)).sum()
    return total


def similarity(
    student: Float[Tensor, "rows hidden"],
    twins: Float[Tensor, "meanings hidden"],
    own: Int[Tensor, " rows"],
    *,
    temperature: float,
) -> Float[Tensor, ""]:
    """Sum over rows of the KL between softmax similarities to all twins, in nats.

    Target: the softmax of cosines / τ from the row's own twin to all twins; prediction: the same from the row
    (similarity distillation: Fang et al. 2021, arXiv:2101.04731, equation 5, with all twins for its queue).
    The mean of that and of the reverse direction, from each twin to the rows of the batch. It is 0 where
    every row coincides with its twin. InfoNCE, whose target is the own twin alone, would go on to push a row
    away from twins of much the same wording, to where the layers above cannot read it.

    Args:
        student: Mean-pooled hidden states of the instructions.
        twins: The same of the English twins, each meaning once, without gradient.
        own: Which twin is whose.
        temperature: Divides the cosines; the smaller, the more it is about the nearest alone.
    """
    ours, theirs = F.normalize(wide(student), dim=-1), F.normalize(wide(twins), dim=-1)
    mine = theirs[own]
    there = forward_kl(ours @ theirs.T / temperature, mine @ theirs.T / temperature)
    back = forward_kl(mine @ ours.T / temperature, mine @ mine.T / temperature)
    return (there + back) / 2


def perplexity(twins: Float[Tensor, "meanings hidden"], temperature: float) -> float:
    """How many twins the target of `similarity` names, on average: exp of its entropy.

    1 is one-hot, the number of meanings uniform; near either it says nothing about which meanings are alike.

    Args:
        twins: The English twins' states, as `similarity` reads them.
    """
    return _named(_cosines(twins), temperature)


def temperature_of(twins: Float[Tensor, "meanings hidden"], wanted: float) -> float:
    """The temperature at which the target of `similarity` names so many twins; by bisection, to 1 %.

    The perplexity rises with the temperature from the number of equal twins to the number of all.
    """
    low, high, cosines = 1e-3, 10.0, _cosines(twins)
    while high / low > 1.01:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if _named(cosines, middle) < wanted else (low, middle)
    return math.sqrt(low * high)


COSINES = 1 << 23
"""Cosines that a perplexity is the mean over: of many twins some, evenly apart, each to all of them."""


def _cosines(twins: Float[Tensor, "meanings hidden"]) -> Float[Tensor, "some meanings"]:
    units, count = F.normalize(wide(twins), dim=-1), len(twins)
    some = torch.linspace(0, count - 1, min(count, max(64, COSINES // count)), device=twins.device).long()
    return units[some] @ units.T


def _named(cosines: Float[Tensor, "some meanings"], temperature: float) -> float:
    log_p = F.log_softmax(cosines / temperature, dim=-1)
    return (-(log_p.exp() * log_p).sum(-1)).exp().mean().item()


def outcomes_of(
    log_q: Float[Tensor, "tokens vocab"],
    teacher: Float[Tensor, "tokens vocab"] | TopK,
    temperature: float,
) -> tuple[Float[Tensor, "tokens outcomes"], Float[Tensor, "tokens outcomes"]]:
    """Log-probabilities of student and teacher over the same outcomes, in nats.

    Outcomes are the vocabulary's tokens or, of a `TopK`, those kept in its own order and the rest.

    Args:
        log_q: The student's log-probabilities at the temperature.

    Raises:
        ValueError: As the divergences.
    """
    if not isinstance(teacher, TopK):
        return log_q, log_softmax(teacher, temperature)
    ids, whole = teacher.ids.long(), teacher.ids.shape[1] == log_q.shape[1]
    if temperature != 1 and not whole:
        raise ValueError(
            f"temperature is {temperature}; of the k likeliest tokens and the rest only 1 is exact; "
            "take 1, or hidden states as the signal"
        )
    kept = log_q.gather(1, ids)
    if whole:
        return kept, log_softmax(teacher.logprobs, temperature)
    rest = log_q.scatter(1, ids, -math.inf).logsumexp(1, keepdim=True)
    kept = torch.cat([kept, rest], 1).clamp(min=LEAST)
    return kept, torch.cat([wide(teacher.logprobs), wide(teacher.rest)[:, None]], 1).clamp(min=LEAST)


def log_softmax(logits: Float[Tensor, "tokens vocab"], temperature: float) -> Float[Tensor, "tokens vocab"]:
    """ln of the softmax of logits / temperature, in float32 or wider.

    Raises:
        ValueError: `temperature` is not a finite number above 0.
    """
    if not (math.isfinite(temperature) and temperature > 0):
        raise ValueError(f"temperature is {temperature}; it must be a finite number above 0")
    logits = wide(logits)
    found = F.log_softmax(logits if temperature == 1 else logits / temperature, dim=-1)
    return found.clamp(min=LEAST) if found.requires_grad else found.clamp_(min=LEAST)


def wide(values: Tensor) -> Tensor:
    """Float32, or what is wider already."""
    return values if values.dtype == torch.float64 else values.float()
