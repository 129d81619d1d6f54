"""How alike both sides of a pair are: to a base model, and to what the other pairs of the batch teach.

A translation of another sentence shows nothing wrong on its surface; what it says is far from the English.
A base that knows a language little puts translations near each other only roughly. But most pairs of a batch
are right, so that they say which states, and which pieces of words, go with which: each side is foretold from
the other by the pairs beside it, and compared with what is there. Knows no suite and changes no weight.
Flow: texts → mean-pooled states of the lower middle layers, and n-grams → kernels of either side → cosine of
what is foretold and what is there, set against each side's nearest others → without the worst, once more.
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
"""Pairs of a language below which the others teach too little."""
NEAREST: Final = 10
"""Others that a side is set against."""
TOGETHER: Final = 1000
"""Pairs that are compared with each other."""
RIDGE: Final = 0.3
"""What is added to each pair's likeness to itself, which is 1 at most, so that none is learned by heart."""
WORST: Final = 0.25
"""Share of the pairs that teach nothing the second time, as they may be wrong."""
GRAMS: Final = (3, 4, 5)
"""Characters of an n-gram."""


def layers(count: int) -> range:
    """Layers of a model of `count` whose states of translations are alike: the second quarter, about.

    In Gemma 3 270M, 5 to 9 of 18: on Tatoeba pairs their mean found more shuffled ones than any alone.
    """
    return range(max(1, round(0.28 * count)), max(1, round(0.5 * count)) + 1)


def scorer(subject: Model, done: Callable[[int], None] = lambda count: None) -> Callable[..., list[float]]:
    """What `Job.run` takes as likeness: the scores of pairs, by a base.

    Of fewer than `FEWEST` pairs of a language the scores are infinite, and filter nothing.

    Args:
        done: Told how many texts have been read.
    """
    chosen = list(layers(len(layers_of(subject.model))))

    def score(english: Sequence[str], texts: Sequence[str], code: str) -> list[float]:
        if len(english) < FEWEST:
            return [float("inf")] * len(english)
        ours = embed(subject, english, SOURCE, chosen, 32, done)
        return scores(ours, embed(subject, texts, code, chosen, 32, done), english, texts).tolist()

    return score


def scores(
    english: Mapping[int, Float[Tensor, "n d"]],
    other: Mapping[int, Float[Tensor, "n d"]],
    english_texts: Sequence[str],
    other_texts: Sequence[str],
) -> Float[Tensor, " n"]:
    """The sum of three likenesses of a pair, each set against those of its sides to their nearest others: of
    the states as they are, of what the language foretells and the English, and the reverse.

    Args:
        english, other: By layer, the states of both sides of n pairs of one language.
        english_texts, other_texts: What was read.
    """
    count = len(english_texts)
    found = []
    for part in torch.arange(count).tensor_split(
        -(-count // TOGETHER)
    ):  # alike in size, so that none is small
        units = [
            [
                torch.nn.functional.normalize(standardised(v, statistics_of(v)), dim=1)[part]
                for v in side.values()
            ]
            for side in (english, other)
        ]
        plain = margins(torch.stack([one @ two.T for one, two in zip(*units, strict=True)]).mean(0))
        first, second = (
            centred(
                torch.stack([one @ one.T for one in unit]).mean(0) / 2
                + grams([texts[int(n)] for n in part]) / 2
            )
            for unit, texts in zip(units, (english_texts, other_texts), strict=True)
        )
        teach = torch.ones(len(part), dtype=torch.bool)
        for _ in range(2):
            there, back = foretold(first, second, teach), foretold(second, first, teach)
            together = plain + margins(there) + margins(back)
            teach = together >= together.quantile(WORST)
        found.append(together.float())
    return torch.cat(found)


def margins(alike: Float[Tensor, "n n"]) -> Float[Tensor, " n"]:
    """Twice the likeness of a pair less the mean of each side's to its nearest others.

    Set against the nearest, a sentence that is alike to all others gains nothing (CSLS: Conneau et al. 2018,
    arXiv:1710.04087, section 2.3).
    """
    others = alike.clone().fill_diagonal_(-torch.inf)
    nearest = min(NEAREST, len(alike) - 1)
    return 2 * alike.diagonal() - sum(others.topk(nearest, dim).values.mean(dim) for dim in (0, 1))


def grams(texts: Sequence[str]) -> Float[Tensor, "n n"]:
    """Cosines of texts by their n-grams of characters, those that are rare counting for more (tf-idf).

    Of what only one text has nothing can be learned, so it is left out.
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
    return normalised(torch.from_numpy((table @ table.T).toarray()).double())


def normalised(products: Float[Tensor, "n n"]) -> Float[Tensor, "n n"]:
    """Cosines of products; nothing is alike to nothing."""
    length = products.diagonal().clamp(min=1e-12).sqrt()
    return products / length / length[:, None]


def centred(kernel: Float[Tensor, "n n"]) -> Float[Tensor, "n n"]:
    """Products of the same vectors without their mean, in double precision."""
    kernel = kernel.double()
    return kernel - kernel.mean(0) - kernel.mean(1, keepdim=True) + kernel.mean()


def foretold(
    wanted: Float[Tensor, "n n"], given: Float[Tensor, "n n"], teach: Bool[Tensor, " n"]
) -> Float[Tensor, "n n"]:
    """Cosines of what each given side foretells (rows) and each wanted side (columns), in the wanted space.

    Ridge regression by kernels; what a pair foretells is learned from the others, without fitting n times:
    the residual of leaving a pair out is its own over one less its leverage (Hastie, Tibshirani and Friedman
    2009, The Elements of Statistical Learning, equation 7.64).

    Args:
        wanted, given: Products of either side of n pairs.
        teach: The pairs that are learned from.
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
