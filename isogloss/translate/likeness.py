"""Similarity of the two sides of a pair, by a base model and by the other pairs of the batch.

A correct translation of the wrong sentence looks fine on its own; only its meaning is far from the English.
A base model that knows little of a language places translations near each other only roughly. But most pairs
of a batch are right, so they show which hidden states and which character n-grams correspond: each side is
predicted from the other by regression on the other pairs, and compared with the actual one. No suite is
involved and no weight changes.
Flow: texts → mean-pooled hidden states of the lower middle layers, and n-grams → a kernel per side → cosine
of predicted and actual side, relative to each side's nearest neighbours → once more without the worst pairs.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from math import log
from typing import Final

import torch
from jaxtyping import Bool, Float
from scipy.sparse import csr_matrix
from torch import Tensor

from isogloss.evaluate.retrieval import Model, embed
from isogloss.languages import SOURCE
from isogloss.model.decoder import layers_of
from isogloss.model.standardise import standardised, statistics_of

FEWEST: Final = 150
"""Minimum number of pairs of a language; fewer are too little data for the regression."""
NEAREST: Final = 10
"""Number of nearest neighbours that a side is compared with."""
TOGETHER: Final = 1000
"""Maximum number of pairs compared with each other."""
RIDGE: Final = 0.3
"""Ridge added to the kernel's diagonal, whose entries are at most 1, so that no pair is memorised."""
WORST: Final = 0.25
"""Share of the pairs left out of the second regression, as they may be wrong."""
GRAMS: Final = (3, 4, 5)
"""Lengths of character n-grams."""


def layers(count: int) -> range:
    """Return the layers whose hidden states are most similar across translations: about the second quarter.

    In Gemma 3 270M, layers 5 to 9 of 18: on Tatoeba pairs, their mean found more shuffled pairs than any
    single layer.
    """
    return range(max(1, round(0.28 * count)), max(1, round(0.5 * count)) + 1)


def scorer(subject: Model) -> Callable[..., list[float]]:
    """Return a `likeness` function for `Job.run` that scores pairs with a base model.

    With fewer than `FEWEST` pairs of a language, all scores are infinite and filter nothing.
    """
    chosen = list(layers(len(layers_of(subject.model))))

    def score(english: Sequence[str], texts: Sequence[str], code: str) -> list[float]:
        if len(english) < FEWEST:
            return [float("inf")] * len(english)
        ours = embed(subject, english, SOURCE, chosen, 32)
        return scores(ours, embed(subject, texts, code, chosen, 32), english, texts).tolist()

    return score


def scores(
    english: Mapping[int, Float[Tensor, "n d"]],
    other: Mapping[int, Float[Tensor, "n d"]],
    english_texts: Sequence[str],
    other_texts: Sequence[str],
) -> Float[Tensor, " n"]:
    """Return the sum of three margins per pair: of the hidden states and of the predictions either way.

    The predictions are those of the English from the other language, and the reverse.

    Args:
        english, other: Hidden states of both sides of n pairs of one language, by layer.
        english_texts, other_texts: The texts themselves.
    """
    count = len(english_texts)
    found = []
    units = [
        [torch.nn.functional.normalize(standardised(v, statistics_of(v)), dim=1) for v in side.values()]
        for side in (english, other)
    ]
    # Of similar size, so that none is small.
    for part in torch.arange(count).tensor_split(-(-count // TOGETHER)):
        ours, theirs = ([whole[part] for whole in unit] for unit in units)
        plain = margins(torch.stack([one @ two.T for one, two in zip(ours, theirs, strict=True)]).mean(0))
        first, second = (
            centred(
                torch.stack([one @ one.T for one in unit]).mean(0) / 2
                + grams([texts[int(n)] for n in part]) / 2
            )
            for unit, texts in ((ours, english_texts), (theirs, other_texts))
        )
        teach = torch.ones(len(part), dtype=torch.bool)
        for _ in range(2):
            there, back = foretold(first, second, teach), foretold(second, first, teach)
            together = plain + margins(there) + margins(back)
            teach = together >= together.quantile(WORST)
        found.append(together.float())
    return torch.cat(found)


def margins(alike: Float[Tensor, "n n"]) -> Float[Tensor, " n"]:
    """Return twice each pair's similarity minus each side's mean similarity to its nearest neighbours.

    The correction removes the advantage of sentences that are similar to all others (CSLS: Conneau et al.
    2018, arXiv:1710.04087, section 2.3).
    """
    others = alike.clone().fill_diagonal_(-torch.inf)
    nearest = min(NEAREST, len(alike) - 1)
    return 2 * alike.diagonal() - sum(others.topk(nearest, dim).values.mean(dim) for dim in (0, 1))


def grams(texts: Sequence[str]) -> Float[Tensor, "n n"]:
    """Return cosines of texts by tf-idf over character n-grams.

    N-grams of a single text carry no information about other texts and are left out.
    """
    counts = []
    for text in texts:
        line = f" {' '.join(text.casefold().split())} "
        counts.append(Counter(line[i : i + n] for n in GRAMS for i in range(len(line) - n + 1)))
    spread = Counter(gram for one in counts for gram in one)
    place = {gram: column for column, gram in enumerate(gram for gram, n in spread.items() if n > 1)}
    cells = [
        (row, place[gram], (1 + log(n)) * log(len(texts) / spread[gram]))
        for row, one in enumerate(counts)
        for gram, n in one.items()
        if gram in place
    ]
    rows, columns, values = zip(*cells, strict=True) if cells else ((), (), ())
    table = csr_matrix((values, (rows, columns)), shape=(len(texts), max(1, len(place))))
    products = torch.from_numpy((table @ table.T).toarray()).double()
    length = products.diagonal().clamp(min=1e-12).sqrt()  # so that a text without n-grams gets 0
    return products / length / length[:, None]


def centred(kernel: Float[Tensor, "n n"]) -> Float[Tensor, "n n"]:
    """Centre a kernel: inner products after subtracting the vectors' mean, in double precision."""
    kernel = kernel.double()
    return kernel - kernel.mean(0) - kernel.mean(1, keepdim=True) + kernel.mean()


def foretold(
    wanted: Float[Tensor, "n n"], given: Float[Tensor, "n n"], teach: Bool[Tensor, " n"]
) -> Float[Tensor, "n n"]:
    """Return cosines of each prediction from the given side (rows) and each wanted side (columns).

    Kernel ridge regression, with leave-one-out predictions without n fits: a pair's leave-one-out residual is
    its residual divided by one minus its leverage (Hastie, Tibshirani and Friedman 2009, The Elements of
    Statistical Learning, equation 7.64).

    Args:
        wanted, given: Kernels of the two sides of n pairs.
        teach: The pairs used for fitting.
    """
    some = teach.nonzero().flatten()
    fit = given[some][:, some] + RIDGE * torch.eye(len(some), dtype=given.dtype)
    weights = torch.zeros_like(given)
    weights[:, some] = torch.linalg.solve(fit, given[some]).T
    own = weights[some, some]
    weights[some] /= (1 - own)[:, None]
    weights[some, some] = 0.0
    made = weights @ wanted
    length = (made * weights).sum(1).clamp(min=1e-12).sqrt()
    return made / length[:, None] / wanted.diagonal().clamp(min=1e-12).sqrt()
