"""Standardise sentence vectors: subtract the mean of each dimension, divide by its standard deviation.

A few dimensions of a decoder's hidden states are hundreds of times larger than the rest and hardly vary
between sentences, so they dominate a plain cosine. Retrieval standardises each language with its own
statistics; the hidden-state term standardises all languages with those of English.
Flow: vectors → statistics_of → Statistics; any vectors → standardised.
"""

from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor

FEWEST: Final = 50
"""Minimum number of sentences for reliable statistics: at 50, a deviation has a standard error of 10 %."""


@dataclass(frozen=True)
class Statistics:
    """Mean and standard deviation of each dimension, in float32.

    The deviation of a constant dimension is infinite, so that the dimension has no effect.
    """

    mean: Float[Tensor, " d"]
    scale: Float[Tensor, " d"]


def statistics_of(vectors: Float[Tensor, "n d"]) -> Statistics:
    """Compute mean and standard deviation over n sentences of one language, without gradient.

    The deviation divides by n. A dimension that varies by no more than float32 rounding counts as constant.

    Args:
        vectors: Sentence embeddings of any float type, from one model and layer.

    Raises:
        ValueError: There are fewer than two vectors, or one contains a value that is not finite.
    """
    if len(vectors) < 2:
        raise ValueError(f"{len(vectors)} vectors have no standard deviation; give at least two")
    exact = vectors.detach().double()
    if len(bad := (~exact.isfinite().all(1)).nonzero()):
        raise ValueError(f"vector {int(bad[0])} holds nan or infinity; all must be finite")
    mean, scale = exact.mean(0), exact.std(0, correction=0)
    none = scale <= torch.finfo(torch.float32).eps * exact.abs().amax(0)
    return Statistics(mean.float(), scale.masked_fill(none, torch.inf).float())


def unscaled(vectors: Float[Tensor, "n d"]) -> Statistics:
    """Return statistics that leave vectors unchanged: mean 0, deviation 1."""
    width = vectors.shape[1]
    return Statistics(torch.zeros(width), torch.ones(width))


def standardised(vectors: Float[Tensor, "n d"], statistics: Statistics) -> Float[Tensor, "n d"]:
    """Return (x - mean) / scale in every dimension, in float32; differentiable in the vectors.

    Libovický et al. 2020 (arXiv:2004.05160) subtract each language's mean to compare sentences across
    languages. Timkey and van Schijndel 2021 (arXiv:2109.04404) divide by the deviation so that a few
    dimensions do not dominate the cosine. LIR (arXiv:2109.04727) and LSAR (arXiv:2401.05792) also remove
    further language-specific directions.

    Args:
        vectors: Sentence embeddings of any float type, from the statistics' model, layer and language.
    """
    device = vectors.device
    return (vectors.float() - statistics.mean.to(device)) / statistics.scale.to(device)
