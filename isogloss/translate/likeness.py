"""How alike both sides of a pair are to a base model: its own states of them, each language's standardised.

A translation of another sentence shows nothing wrong on its surface; what it says is far from the English.
Knows no suite and trains nothing. Flow: texts → mean-pooled states of the lower middle layers → standardised
per language → cosine, mean over layers → set against each side's nearest others.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from isogloss.evaluate.retrieval import Model, embed
from isogloss.languages import SOURCE
from isogloss.model.decoder import layers_of
from isogloss.model.standardise import FEWEST, standardised, statistics_of

NEAREST = 10
"""Others that a side is set against."""
TOGETHER = 1000
"""Pairs that are compared with each other."""


def layers(count: int) -> range:
    """Layers of a model of `count` whose states of translations are alike: the second quarter, about.

    In Gemma 3 270M, 5 to 9 of 18: on Tatoeba pairs their mean found more shuffled ones than any alone.
    """
    return range(max(1, round(0.28 * count)), max(1, round(0.5 * count)) + 1)


def scorer(subject: Model, done: Callable[[int], None] = lambda count: None) -> Callable[..., list[float]]:
    """What `Job.run` takes as likeness: the scores of pairs, by a base.

    Fewer than `FEWEST` pairs of a language have no statistics: their scores are infinite, and filter nothing.

    Args:
        done: Told how many texts have been read.
    """
    chosen = list(layers(len(layers_of(subject.model))))

    def score(english: Sequence[str], texts: Sequence[str], code: str) -> list[float]:
        if len(english) < FEWEST:
            return [float("inf")] * len(english)
        ours = embed(subject, english, SOURCE, chosen, 32, done)
        return scores(ours, embed(subject, texts, code, chosen, 32, done)).tolist()

    return score


def scores(
    english: Mapping[int, Float[Tensor, "n d"]], other: Mapping[int, Float[Tensor, "n d"]]
) -> Float[Tensor, " n"]:
    """Twice the cosine of a pair less the mean of each side's to its nearest others.

    Set against the nearest, a sentence that is alike to all others gains nothing (CSLS: Conneau et al. 2018,
    arXiv:1710.04087, section 2.3).

    Args:
        english, other: By layer, the states of both sides of n pairs of one language.
    """
    unit = {
        layer: [
            torch.nn.functional.normalize(standardised(side, statistics_of(side)), dim=1)
            for side in (english[layer], other[layer])
        ]
        for layer in english
    }
    count = len(next(iter(english.values())))
    found = []
    for part in torch.arange(count).tensor_split(
        -(-count // TOGETHER)
    ):  # of equal size, so that none is small
        alike = torch.stack([one[part] @ two[part].T for one, two in unit.values()]).mean(0)
        others = alike.clone().fill_diagonal_(-torch.inf)
        nearest = min(NEAREST, len(part) - 1)
        around = sum(others.topk(nearest, dim).values.mean(dim) for dim in (0, 1))
        found.append(2 * alike.diagonal() - around)
    return torch.cat(found)
