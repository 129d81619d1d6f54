"""Standardise: sentence vectors as steps away from their language's mean, in units of its spread.

A few dimensions of a decoder's states are hundreds of times as long as the rest and hardly differ from one
sentence to the next; a plain cosine sees little else. Knows no model, no suite and no loss.
Flow: vectors of one language → statistics_of → Statistics; any vectors of that language → standardised.
"""

from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor

FEWEST: Final = 50
"""Sentences below which nobody should rely on statistics: the standard error of a spread is 10 % at 50."""


@dataclass(frozen=True)
class Statistics:
    """Mean and standard deviation of each dimension, in float32; the deviation is infinite where a dimension
    does not vary, so that it counts for nothing."""

    mean: Float[Tensor, " d"]
    scale: Float[Tensor, " d"]


def statistics_of(vectors: Float[Tensor, "n d"]) -> Statistics:
    """Mean and standard deviation over n sentences of one language, without gradient.

    The deviation divides by n. One within the rounding of float32 around the mean is none.

    Args:
        vectors: Sentence embeddings of any float type, read by one model at one layer.

    Raises:
        ValueError: There are fewer than two vectors, or one holds a number that is not finite.
    """
    if len(vectors) < 2:
        raise ValueError(f"{len(vectors)} vectors have no spread; give at least two")
    exact = vectors.detach().double()
    if len(bad := (~exact.isfinite().all(1)).nonzero()):
        raise ValueError(f"vector {int(bad[0])} holds nan or infinity; all must be finite")
    mean, scale = exact.mean(0), exact.std(0, correction=0)
    none = scale <= torch.finfo(torch.float32).eps * exact.abs().amax(0)
    return Statistics(mean.float(), scale.masked_fill(none, torch.inf).float())


def unscaled(vectors: Float[Tensor, "n d"]) -> Statistics:
    """Statistics that leave vectors as they are."""
    width = vectors.shape[1]
    return Statistics(torch.zeros(width), torch.ones(width))


def standardised(vectors: Float[Tensor, "n d"], statistics: Statistics) -> Float[Tensor, "n d"]:
    """(x - mean) / scale in every dimension, in float32; the gradient goes to the vectors.

    Taking off each language's mean is how Libovický et al. 2020 (arXiv:2004.05160) compare sentences across
    languages, and dividing by the deviation is how Timkey and van Schijndel 2021 (arXiv:2109.04404) keep a
    few dimensions from drowning the cosine. LIR (arXiv:2109.04727) and LSAR (arXiv:2401.05792) take off
    directions of the language beside its mean.

    Args:
        vectors: Sentence embeddings of any float type, of the statistics' model, layer and language.
    """
    device = vectors.device
    return (vectors.float() - statistics.mean.to(device)) / statistics.scale.to(device)
