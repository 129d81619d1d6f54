"""Metrics: whether answers agree and whether parallel sentences find each other. Pure functions.

Everything is kept per item: intervals are made from items (`statistics`). Knows no model and no suite.
Letters: n sentences, d dimensions. Formulae and sources: docstrings.
"""

import math
import random
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Final

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

# Two cosines closer than this are a tie: the rounding of a float32 product over some thousand dimensions.
TIE: Final = 1e-6
NEIGHBOURS: Final = 4  # Artetxe and Schwenk 2019 (arXiv:1811.01136), and xSIM after them


def agreement(reference: Sequence[str | None], answers: Sequence[str | None]) -> list[bool]:
    """Per item, whether both answers mean the same; an unreadable one (None) agrees with nothing.

    Raises:
        ValueError: The two differ in length.
    """
    return [a is not None and a == b for a, b in zip(reference, answers, strict=True)]


def chance_agreement(reference: Sequence[str | None], answers: Sequence[str | None]) -> float:
    """How often both would agree if each kept its answers but gave them to other items: Σ_k p_k q_k.

    p and q are the shares of meaning k among all answers of either side; an unreadable one (None) has no
    meaning, so the shares need not add up to 1.

    Raises:
        ValueError: The two differ in length, or there is no item.
    """
    if len(reference) != len(answers) or not answers:
        raise ValueError(
            f"{len(reference)} and {len(answers)} answers; both need the same items, at least one"
        )
    ours, theirs = Counter(reference), Counter(answers)
    shared = sum(count * theirs[meaning] for meaning, count in ours.items() if meaning is not None)
    return shared / len(answers) ** 2


def beyond_chance(observed: float, chance: float) -> float:
    """Cohen's κ = (observed - chance) / (1 - chance), 1960 (doi:10.1177/001316446002000104).

    1 where both always agree, 0 where they agree as often as chance has it, below 0 where less often. Where
    both sides give one and the same answer to everything κ has no value; it counts as 0, since such agreement
    shows nothing.
    """
    return (observed - chance) / (1 - chance) if chance < 1 else 0.0


@dataclass(frozen=True)
class Retrieval:
    """Per sentence, whether its translation was found, from English (forward) and into English (backward)."""

    forward: Bool[Tensor, " n"]
    backward: Bool[Tensor, " n"]
    margin_forward: Bool[Tensor, " n"]
    margin_backward: Bool[Tensor, " n"]

    @property
    def strict(self) -> Bool[Tensor, " n"]:
        """True pair above all others of its row and its column (MEXA, Kargaran et al. 2024)."""
        return self.forward & self.backward

    @property
    def scores(self) -> list[float]:
        """Per sentence 0, ½ or 1: the mean of both directions; for resampling."""
        return ((self.forward.float() + self.backward.float()) / 2).tolist()

    @property
    def accuracy(self) -> float:
        return (_share(self.forward) + _share(self.backward)) / 2

    @property
    def strict_accuracy(self) -> float:
        return _share(self.strict)

    @property
    def margin_accuracy(self) -> float:
        return (_share(self.margin_forward) + _share(self.margin_backward)) / 2


def same_targets(english: Sequence[str], other: Sequence[str]) -> Bool[Tensor, "n n"]:
    """Which pairs of rows count as one in retrieval: the same sentence in English or in the other language.

    Whichever of two equal sentences is found, it is the right one. White space does not tell sentences apart.

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
    """Look for each sentence's translation among all, by cosine and by ratio margin, in both directions.

    Row i of both sides means the same. A tie is a failure, so embeddings that are all alike find nothing.
    The margin is that of xSIM: cosine over the mean of both sides' mean cosine to their 4 nearest, chosen
    among those 4. Nothing is centred; a mean that is not positive counts as `TIE`, which leaves the sign of
    the cosine to decide instead of turning it round.

    Args:
        english: Sentence embeddings of any float type; the products run in float32.
        other: Embeddings of the translations, in the same order.
        same: Rows that count as one, from `same_targets`: any of them is the right one to find. When not
            given, each row is right for itself alone.

    Raises:
        ValueError: There is no sentence, or an embedding holds a number that is not finite.
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


def alignment(consistency: float, retrieval: float) -> float:
    """½ (consistency + retrieval): the alignment accuracy of one language."""
    return (consistency + retrieval) / 2


@dataclass(frozen=True)
class Spread:
    """How unequal the languages are: the worst one, its value, and the standard deviation over all."""

    worst: str
    lowest: float
    deviation: float


def spread(values: Mapping[str, float]) -> Spread:
    """Spread of a measure over its languages: all that there are, so the deviation divides by their number.

    Raises:
        ValueError: There is no language, or one has no number (nan).
    """
    if not values or any(math.isnan(v) for v in values.values()):
        raise ValueError(f"{dict(values)} has no spread; it needs a number for every language")
    worst = min(values, key=values.__getitem__)
    mean = math.fsum(values.values()) / len(values)
    variance = math.fsum((v - mean) ** 2 for v in values.values()) / len(values)
    return Spread(worst, values[worst], math.sqrt(variance))


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
    """Per query, how alike two languages rank the same candidates (RankC, Qi et al. 2023).

    Sum over j of w_j · |top j of a ∩ top j of b| / j with w = softmax(N, N − 1, …, 1). Never 0: see
    `rank_c_chance`.

    Args:
        a: For each query its candidates from the likeliest down, by meaning.
        b: The same queries in another language.

    Raises:
        ValueError: The two differ in queries or in a query's candidates.
    """
    found = []
    for number, (first, second) in enumerate(zip(a, b, strict=True), start=1):
        if len(set(first)) != len(first) or sorted(first) != sorted(second):
            raise ValueError(f"query {number} has other candidates on each side; both must rank the same")
        overlap, seen, value = 0, (set(), set()), 0.0
        for j, (one, other) in enumerate(zip(first, second, strict=True), start=1):
            seen[0].add(one)
            seen[1].add(other)
            overlap += (one in seen[1]) + (other in seen[0]) - (one == other)
            value += _rank_weights(len(first))[j - 1] * overlap / j
        found.append(value)
    return found


def rank_c_chance(sizes: Sequence[int]) -> float:
    """What rankings drawn at random come to on average: P@j is j/N, so Σ w_j · j/N, mean over the queries.

    Raises:
        ValueError: There is no query, or one without candidates.
    """
    if not sizes or min(sizes) < 1:
        raise ValueError(f"the queries have {list(sizes)} candidates; there must be queries, each with some")
    each = [math.fsum(w * j / n for j, w in enumerate(_rank_weights(n), start=1)) for n in sizes]
    return math.fsum(each) / len(each)


def rank_c_shuffled(
    a: Sequence[Sequence[str]], b: Sequence[Sequence[str]], *, seed: int, draws: int = 20
) -> float | None:
    """RankC when each query meets another one's ranking: what a liking for the same options brings by itself.

    Queries change places only with those that have the same candidates; None where no two do.
    """
    groups: dict[tuple[str, ...], list[int]] = {}
    for number, candidates in enumerate(a):
        groups.setdefault(tuple(sorted(candidates)), []).append(number)
    groups = {key: numbers for key, numbers in groups.items() if len(numbers) > 1}
    rng, values = random.Random(seed), []
    for _ in range(draws):
        for numbers in groups.values():
            dealt = rng.sample(numbers, len(numbers))
            values += rank_c([a[n] for n in numbers], [b[n] for n in dealt])
    return math.fsum(values) / len(values) if values else None


def correct_overlap(a: Sequence[bool], b: Sequence[bool]) -> float | None:
    """Right in both over right in either (Jiang et al. 2020); None where neither has anything right.

    Raises:
        ValueError: The two differ in length.
    """
    pairs = list(zip(a, b, strict=True))
    either = sum(x or y for x, y in pairs)
    return sum(x and y for x, y in pairs) / either if either else None


def seaeval_consistency(answers: Mapping[str, Sequence[str | None]], size: int) -> float:
    """SeaEval's C_s: over all sets of `size` languages, the share of items that all of them answer alike.

    The same wrong answer is consistent; an unreadable one (None) agrees with nothing. An item on which groups
    of g₁, g₂, … languages agree counts Σ C(gᵢ, s) / C(L, s), which is the mean over all sets.

    Raises:
        ValueError: `size` is not within 2 and the number of languages, there is no item, or the languages
            differ in length.
    """
    if not 2 <= size <= len(answers):
        raise ValueError(f"sets of {size} of {len(answers)} languages; the size must be 2 to their number")
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
    """SeaEval's AC3: the harmonic mean of consistency and accuracy; 0 where both are."""
    total = consistency + accuracy
    return 2 * consistency * accuracy / total if total else 0.0


@cache
def _rank_weights(n: int) -> tuple[float, ...]:
    powers = [math.exp(-j) for j in range(n)]  # softmax of n, n - 1, … 1
    return tuple(power / math.fsum(powers) for power in powers)
