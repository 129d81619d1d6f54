"""The losses, as pure functions of tensors: sums over tokens or means over rows, in nats.

Every function takes response tokens already gathered from both sides, so nothing is masked here.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F


def forward_kl(
    student: Float[Tensor, "tokens vocab"],
    teacher: Float[Tensor, "tokens vocab"],
    *,
    temperature: float = 1.0,
) -> Float[Tensor, ""]:
    """Sum over tokens of KL(teacher ‖ student), in nats; 0 when both agree.

    Args:
        student: Raw logits of any float type; the softmax runs in float32.
        teacher: Raw logits of the same tokens, without gradient.
        temperature: Divides both logits; the sum is multiplied by its square, which keeps the
            gradient's size (Hinton et al. 2015, arXiv:1503.02531, section 2).

    Raises:
        ValueError: `temperature` is not a finite number above 0.
    """
    log_p, log_q = _log_softmax(teacher, temperature), _log_softmax(student, temperature)
    return (log_p.exp() * (log_p - log_q)).sum() * temperature**2


def reverse_kl(
    student: Float[Tensor, "tokens vocab"],
    teacher: Float[Tensor, "tokens vocab"],
    *,
    temperature: float = 1.0,
) -> Float[Tensor, ""]:
    """Sum over tokens of KL(student ‖ teacher), in nats; arguments as in `forward_kl`."""
    log_p, log_q = _log_softmax(teacher, temperature), _log_softmax(student, temperature)
    return (log_q.exp() * (log_q - log_p)).sum() * temperature**2


def jensen_shannon(
    student: Float[Tensor, "tokens vocab"],
    teacher: Float[Tensor, "tokens vocab"],
    *,
    beta: float = 0.5,
    temperature: float = 1.0,
) -> Float[Tensor, ""]:
    """Sum over tokens of the generalised Jensen–Shannon divergence, in nats.

    β·KL(teacher ‖ m) + (1 - β)·KL(student ‖ m), where m = β·teacher + (1 - β)·student
    (Agarwal et al. 2024, arXiv:2306.13649, section 2). Other arguments as in `forward_kl`.

    Raises:
        ValueError: `beta` does not lie strictly between 0 and 1.
    """
    if not 0.0 < beta < 1.0:
        raise ValueError(
            f"beta is {beta}; it must lie between 0 and 1; at the ends use forward_kl or reverse_kl"
        )
    log_p, log_q = _log_softmax(teacher, temperature), _log_softmax(student, temperature)
    log_m = torch.logaddexp(log_p + math.log(beta), log_q + math.log1p(-beta))
    both = beta * log_p.exp() * (log_p - log_m) + (1 - beta) * log_q.exp() * (log_q - log_m)
    return both.sum() * temperature**2


def cross_entropy(
    student: Float[Tensor, "tokens vocab"], response: Int[Tensor, " tokens"]
) -> Float[Tensor, ""]:
    """Sum over tokens of -ln p(response token), in nats; the softmax runs in float32."""
    return F.cross_entropy(student.float(), response, reduction="sum")


def info_nce(
    student: Float[Tensor, "rows hidden"],
    twins: Float[Tensor, "meanings hidden"],
    own: Int[Tensor, " rows"],
    *,
    temperature: float = 0.05,
) -> Float[Tensor, ""]:
    """Sum over rows of the symmetric InfoNCE between instructions and English twins, in nats.

    Row i must be nearer (cosine) to its own twin than to the twin of any other meaning, in the batch or not:
    twins do not move while carriers learn, so all of them are negatives for the price of a product. The
    other way its twin must be nearer to row i than to the batch's rows of other meanings
    (van den Oord et al. 2018, arXiv:1807.03748, equation 4; the mean of the two directions).

    Args:
        student: Mean-pooled hidden states of the instructions.
        twins: The same of the English twins, each meaning once, without gradient.
        own: Which twin is whose.
        temperature: Divides the cosines.
    """
    similar = F.normalize(student.float(), dim=-1) @ F.normalize(twins.float(), dim=-1).T / temperature
    there = F.cross_entropy(similar, own, reduction="sum")
    same = (own[:, None] == own[None]) & ~torch.eye(len(own), dtype=torch.bool, device=own.device)
    back = similar[:, own].T.masked_fill(same, -math.inf)
    truth = torch.arange(len(own), device=own.device)
    return (there + F.cross_entropy(back, truth, reduction="sum")) / 2


def _log_softmax(logits: Float[Tensor, "tokens vocab"], temperature: float) -> Float[Tensor, "tokens vocab"]:
    if not (math.isfinite(temperature) and temperature > 0):
        raise ValueError(f"temperature is {temperature}; it must be a finite number above 0")
    return F.log_softmax(logits.float() / temperature, dim=-1)
