"""Metrics: agreement of answers and retrieval of parallel sentences. Pure functions.

Results are per item, as intervals are computed over items (`statistics`). Independent of models and suites.
Letters: n sentences, d dimensions. Formulae and sources are in the docstrings.
"""

import math
import random
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import pstdev
from typing import Final

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

# Cosines closer than this are tied: rounding error of a float32 dot product over some thousand dimensions.
TIE: Final = 1e-6
NEIGHBOURS: Final = 4  # Artetxe and Schwenk 2019 (arXiv:1811.01136), and xSIM after them
SHUFFLES: Final = 2  # of `rank_c_shuffled`


def agreement(reference: Sequence[str | None], answers: Sequence[str | None]) -> list[bool]:
    """Return, per item, whether both answers mean the same; an unreadable answer (None) agrees with nothing.

    Raises:
        ValueError: The two differ in length.
    """
    return [a is not None and a == b for a, b in zip(reference, answers, strict=True)]


def chance_agreement(reference: Sequence[str | None], answers: Sequence[str | None]) -> float:
    """Agreement expected if each side's answers were assigned to items at random: Σ_k p_k q_k.

    p_k and q_k are the shares of meaning k among each side's answers. Unreadable answers (None) have no
    meaning, so the shares need not sum to 1.

    Raises:
        ValueError: The two differ in length, or there is no item.
    """
    if len(reference) != len(answers) or not answers:
        raise ValueError(
            f"{len(reference)} and {len(answers)} answers; both sides need the same items, at least one"
        )
    ours, theirs = Counter(reference), Counter(answers)
    shared = sum(count * theirs[meaning] for meaning, count in ours.items() if meaning is not None)
    return shared / len(answers) ** 2


def beyond_chance(observed: float, chance: float) -> float:
    """Cohen's κ = (observed - chance) / (1 - chance), 1960 (doi:10.1177/001316446002000104).

    1 if both always agree, 0 if they agree as often as expected by chance, negative if less often. If both
    sides give one identical answer to everything, κ is undefined and counts as 0, as such agreement shows
    nothing.
    """
    return (observed - chance) / (1 - chance) if chance < 1 else 0.0


@dataclass(frozen=True)
class Retrieval:
    """Whether each sentence's translation was found, from English (forward) and into English (backward)."""

    forward: Bool[Tensor, " n"]
    backward: Bool[Tensor, " n"]
    margin_forward: Bool[Tensor, " n"]
    margin_backward: Bool[Tensor, " n"]

    @property
    def strict(self) -> Bool[Tensor, " n"]:
        """The true pair scores above all others in its row and column (MEXA, Kargaran et al. 2024)."""
        return self.forward & self.backward

    @property
    def scores(self) -> list[float]:
        """Mean of both directions per sentence (0, ½ or 1), for resampling."""
        return ((self.forward.float() + self.backward.float()) / 2).tolist()

    @property
    def accuracy(self) -> float:
        return (_share(self.forward) + _share(self.backward)) / 2


def same_targets(english: Sequence[str], other: Sequence[str]) -> Bool[Tensor, "n n"]:
    """Mark pairs of rows with the same sentence in English or in the other language.

    Finding either of two equal sentences counts as correct. Differences in white space are ignored.

    Raises:
        ValueError: The two differ in length.
    """
    pairs = list(zip(english, other, strict=True))
    same = torch.eye(len(pairs), dtype=torch.bool)
    for texts in zip(*pairs, strict=True):
        rows: dict[str, list[int]] = {}
        for row, text in enumerate(texts):
            rows.setdefault(" ".join(unicodedata.normalize("NFC", text).split()), []).append(row)
        for alike in rows.values():
            if len(alike) > 1:
                numbers = torch.tensor(alike)
                same[numbers[:, None], numbers[None, :]] = True
    return same


def retrieve(
    english: Float[Tensor, "n d"], other: Float[Tensor, "n d"], same: Bool[Tensor, "n n"] | None = None
) -> Retrieval:
    """Retrieve each sentence's translation among all sentences, by cosine and ratio margin, both ways.

    Row i of both sides means the same. A tie is a failure, so identical embeddings find nothing. The margin
    is that of xSIM: the cosine divided by the mean of both sides' mean cosine to their 4 nearest neighbours,
    chosen among those 4. Embeddings are not centred. A non-positive denominator is replaced by `TIE`, so that
    the sign of the cosine decides instead of being flipped.

    Args:
        english: Sentence embeddings of any float type; products are computed in float32.
        other: Embeddings of the translations, in the same order.
        same: Rows with equal sentences, from `same_targets`: finding any of them is correct. By default, only
            row i is correct for row i.

    Raises:
        ValueError: There are no sentences, or an embedding is not finite.
    """
    if not len(english):
        raise ValueError("no sentences to retrieve; give at least one pair")
    english, other = _unit(english, "english"), _unit(other, "other")
    cosine = english @ other.T  # n n
    k = min(NEIGHBOURS, len(cosine))
    row_mean, column_mean = cosine.topk(k, dim=1).values.mean(1), cosine.topk(k, dim=0).values.mean(0)
    ratio = cosine / ((row_mean[:, None] + column_mean[None, :]) / 2).clamp_min(TIE)
    right = torch.eye(len(cosine), dtype=torch.bool) if same is None else same
    right = right.to(cosine.device)  # symmetric
    return Retrieval(
        forward=_above_others(cosine, right),
        backward=_above_others(cosine.T, right),
        margin_forward=_above_neighbours(ratio, cosine, k, right),
        margin_backward=_above_neighbours(ratio.T, cosine.T, k, right),
    )


def spread(values: Mapping[str, float]) -> tuple[str, float, float]:
    """Return the worst language, its value, and the population standard deviation over languages.

    Raises:
        ValueError: There are no languages, or a value is nan.
    """
    if not values or any(math.isnan(v) for v in values.values()):
        raise ValueError(f"{dict(values)} has no spread; it needs a number for every language")
    worst = min(values, key=values.__getitem__)
    return worst, values[worst], pstdev(values.values())


def _share(hits: Bool[Tensor, " n"]) -> float:
    return hits.double().mean().item()


def _unit(embeddings: Float[Tensor, "n d"], side: str) -> Float[Tensor, "n d"]:
    embeddings = embeddings.detach().float()
    bad = (~embeddings.isfinite().all(1)).nonzero()
    if len(bad):
        raise ValueError(f"embedding {int(bad[0])} of {side} holds nan or infinity; all must be finite")
    return F.normalize(embeddings, dim=1)


def _above_others(scores: Float[Tensor, "n n"], right: Bool[Tensor, "n n"]) -> Bool[Tensor, " n"]:
    best = scores.masked_fill(~right, -torch.inf).amax(1)
    others = scores.masked_fill(right, -torch.inf).amax(1)
    return best - others > TIE


def _above_neighbours(
    ratio: Float[Tensor, "n n"], cosine: Float[Tensor, "n n"], k: int, right: Bool[Tensor, "n n"]
) -> Bool[Tensor, " n"]:
    nearest = torch.zeros_like(cosine, dtype=torch.bool).scatter_(1, cosine.topk(k, dim=1).indices, True)
    found = (nearest & right).any(1)
    return _above_others(ratio.masked_fill(~nearest, -torch.inf), right) & found


def rank_c(a: Sequence[Sequence[str]], b: Sequence[Sequence[str]]) -> list[float]:
    """Return, per query, how similarly two languages rank the same candidates (RankC, Qi et al. 2023).

    Sum over j of w_j · |top j of a ∩ top j of b| / j with w = softmax(N, N − 1, …, 1). Never 0: see
    `rank_c_chance`.

    Args:
        a: For each query, the meanings of its candidates, likeliest first.
        b: The same queries in another language.

    Raises:
        ValueError: The number of queries, or a query's candidates, differ between the two.
    """
    found = []
    for number, (first, second) in enumerate(zip(a, b, strict=True), start=1):
        if len(set(first)) != len(first) or sorted(first) != sorted(second):
            raise ValueError(
                f"query {number} has different candidates in a and b; both must rank the same ones"
            )
        overlap, seen, value = 0, (set(), set()), 0.0
        for j, (one, other) in enumerate(zip(first, second, strict=True), start=1):
            seen[0].add(one)
            seen[1].add(other)
            overlap += (one in seen[1]) + (other in seen[0]) - (one == other)
            value += _rank_weights(len(first))[j - 1] * overlap / j
        found.append(value)
    return found


def rank_c_chance(sizes: Sequence[int]) -> float:
    """Expected RankC of random rankings: P@j is j/N, so Σ w_j · j/N, averaged over the queries.

    Raises:
        ValueError: There are no queries, or a query has no candidates.
    """
    if not sizes or min(sizes) < 1:
        raise ValueError(f"the queries have {list(sizes)} candidates; give queries with at least one each")
    each = [math.fsum(w * j / n for j, w in enumerate(_rank_weights(n), start=1)) for n in sizes]
    return math.fsum(each) / len(each)


def rank_c_shuffled(a: Sequence[Sequence[str]], b: Sequence[Sequence[str]], *, seed: int) -> float | None:
    """RankC after shuffling one side's queries: the part due to a general preference for the same options.

    Only queries with the same candidates are shuffled with each other; None if no two queries have the same.
    """
    groups: dict[tuple[str, ...], list[int]] = {}
    for number, candidates in enumerate(a):
        groups.setdefault(tuple(sorted(candidates)), []).append(number)
    groups = {key: numbers for key, numbers in groups.items() if len(numbers) > 1}
    rng, values = random.Random(seed), []
    for _ in range(SHUFFLES):
        for numbers in groups.values():
            dealt = rng.sample(numbers, len(numbers))
            values += rank_c([a[n] for n in numbers], [b[n] for n in dealt])
    return math.fsum(values) / len(values) if values else None


def correct_overlap(a: Sequence[bool], b: Sequence[bool]) -> float | None:
    """Items right in both over items right in either (Jiang et al. 2020); None if no item is right in either.

    Raises:
        ValueError: The two differ in length.
    """
    pairs = list(zip(a, b, strict=True))
    either = sum(x or y for x, y in pairs)
    return sum(x and y for x, y in pairs) / either if either else None


def seaeval_consistency(answers: Mapping[str, Sequence[str | None]], size: int) -> float:
    """SeaEval's C_s: share of items on which all languages of a set agree, over all sets of `size` languages.

    The same wrong answer is consistent; an unreadable answer (None) agrees with nothing. An item on which
    groups of g₁, g₂, … of the L languages agree counts Σ C(gᵢ, s) / C(L, s), the mean over all sets.

    Raises:
        ValueError: `size` is not between 2 and the number of languages, there are no items, or the languages
            differ in length.
    """
    if not 2 <= size <= len(answers):
        raise ValueError(f"size is {size} of {len(answers)} languages; it must be between 2 and their number")
    items = list(zip(*answers.values(), strict=True))
    if not items:
        raise ValueError("no items; consistency needs at least one")
    alike = sum(
        math.comb(count, size)
        for item in items
        for count in Counter(answer for answer in item if answer is not None).values()
    )
    return alike / (math.comb(len(answers), size) * len(items))


def ac3(consistency: float, accuracy: float) -> float:
    """SeaEval's AC3: the harmonic mean of consistency and accuracy; 0 if both are 0."""
    total = consistency + accuracy
    return 2 * consistency * accuracy / total if total else 0.0


@cache
def _rank_weights(n: int) -> tuple[float, ...]:
    powers = [math.exp(-j) for j in range(n)]  # softmax of n, n - 1, … 1
    return tuple(power / math.fsum(powers) for power in powers)
