"""Official metrics as the benchmarks' own scripts compute them, as pure functions of gold and predictions.

All values lie between 0 and 1. Independent of models, suites and files. There are no intervals, as most of
these metrics are defined on a corpus, not on an item.
Sources: XGLUE's evaluation script (Liang et al. 2020), which calls seqeval for tags and sacrebleu for texts;
MLQA's (Lewis et al. 2020); Järvelin and Kekäläinen 2002 for nDCG.
"""

import math
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import cache
from itertools import groupby
from typing import Final

from sacrebleu.metrics.bleu import BLEU

_ARTICLES: Final = {
    "en": r"\b(a|an|the)\b",
    "es": r"\b(un|una|unos|unas|el|la|los|las)\b",
    "de": r"\b(ein|eine|einen|einem|eines|einer|der|die|das|den|dem|des)\b",
    "vi": r"\b(của|là|cái|chiếc|những)\b",
    "ar": "ال",  # anywhere, even inside a word, as in the official script
}
_HAN: Final = re.compile("[\u4e00-\u9fa5]")
Span = tuple[str, int, int]


def accuracy(gold: Sequence[str], predicted: Sequence[str]) -> float:
    """Share of predictions that are the gold label.

    Raises:
        ValueError: The two differ in length or are empty.
    """
    _paired(gold, predicted)
    return sum(a == b for a, b in zip(gold, predicted, strict=True)) / len(gold)


def token_accuracy(gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> float:
    """Share of correctly tagged tokens over all sentences: the metric that XGLUE documents for POS.

    Raises:
        ValueError: As `accuracy`, or a sentence has a different number of tags on each side.
    """
    _same_tokens(gold, predicted)
    return accuracy([t for row in gold for t in row], [t for row in predicted for t in row])


def spans(sentences: Sequence[Sequence[str]]) -> set[Span]:
    """Return the spans (type, first, last) of tag sequences; positions run through all sentences.

    Follows seqeval 1.2, which XGLUE's script also uses for POS: the first character of a tag is its prefix;
    its type is what follows the first hyphen or, without a hyphen, the first character. So IOB1 and IOB2 give
    the same spans, equal adjacent POS tags form one span, CCONJ and SCONJ have the same type, and SYM never
    merges with a neighbour.
    """
    found, before, kind, first = set(), "O", "", 0
    tags = [tag for row in sentences for tag in (*row, "O")]
    for place, tag in enumerate([*tags, "O"]):
        head, this = tag[0], tag[1:].split("-", maxsplit=1)[-1] or "_"
        changed = kind != this
        if before in "ES" or (before in "BI" and head in "BSO") or (before not in "O." and changed):
            found.add((kind, first, place - 1))
        if head in "BS" or (before in "ESO" and head in "EI") or (head not in "O." and changed):
            first = place
        before, kind = head, this
    return found


def span_precision(gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> float:
    """Share of predicted spans that are gold spans; 0 if none is predicted. Computed by XGLUE for POS.

    Raises:
        ValueError: As `token_accuracy`.
    """
    right, found, _ = _span_counts(gold, predicted)
    return right / found if found else 0.0


def span_f1(gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> float:
    """Micro F1 of spans; 0 if there are none on either side. XGLUE's NER metric.

    Raises:
        ValueError: As `token_accuracy`.
    """
    right, found, there = _span_counts(gold, predicted)
    return 2 * right / (found + there) if found + there else 0.0


def answer_f1(gold: Sequence[str], predicted: str, language: str) -> float:
    """MLQA's F1 of one answer: overlap of normalised tokens with the best-matching gold answer.

    Raises:
        ValueError: `gold` is empty.
    """
    if not gold:
        raise ValueError("a question has no gold answer; it needs at least one")
    given = _answer_tokens(predicted, language)

    def one(answer: str) -> float:
        wanted = _answer_tokens(answer, language)
        common = (Counter(given) & Counter(wanted)).total()
        return 2 * common / (len(given) + len(wanted)) if common else 0.0

    return max(map(one, gold))


def answer_match(gold: Sequence[str], predicted: str, language: str) -> bool:
    """MLQA's exact match: any gold answer has the same normalised tokens."""
    return any(_answer_tokens(one, language) == _answer_tokens(predicted, language) for one in gold)


def ndcg(queries: Sequence[str], gold: Sequence[float], predicted: Sequence[float]) -> float:
    """Mean nDCG over groups of adjacent rows with the same query, as XGLUE's script groups them.

    All ranks count, the gain is the relevance itself, and rows with tied predictions share their mean gain.
    Groups of one row are skipped; a group without a relevant row scores 0.

    Raises:
        ValueError: The three differ in length, or no query has two adjacent rows.
    """
    rows = zip(queries, gold, predicted, strict=True)
    groups = [[row[1:] for row in group] for _, group in groupby(rows, key=lambda row: row[0])]
    values = [_ndcg_of([g for g, _ in group], [p for _, p in group]) for group in groups if len(group) > 1]
    if not values:
        raise ValueError("no query has two adjacent rows; a ranking needs at least two")
    return math.fsum(values) / len(values)


def bleu(gold: Sequence[str], predicted: Sequence[str]) -> float:
    """Corpus BLEU / 100, lower-cased, tokenised with 13a in every language: XGLUE's metric for QG and NTG.

    Raises:
        ValueError: As `accuracy`.
    """
    _paired(gold, predicted)
    return BLEU(lowercase=True, tokenize="13a").corpus_score(list(predicted), [list(gold)]).score / 100


def _paired(gold: Sequence[object], predicted: Sequence[object]) -> None:
    if len(gold) != len(predicted) or not gold:
        raise ValueError(
            f"{len(predicted)} predictions for {len(gold)} gold rows; there must be one for each"
        )


def _same_tokens(gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> None:
    _paired(gold, predicted)
    for number, (a, b) in enumerate(zip(gold, predicted, strict=True), start=1):
        if len(a) != len(b):
            raise ValueError(f"sentence {number} has {len(b)} tags for {len(a)} tokens; tag every token once")


def _span_counts(gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> tuple[int, int, int]:
    """Return the numbers of correct, predicted and gold spans."""
    _same_tokens(gold, predicted)
    there, found = spans(gold), spans(predicted)
    return len(there & found), len(found), len(there)


def _ndcg_of(gold: Sequence[float], predicted: Sequence[float]) -> float:
    discounts = [1 / math.log2(rank + 1) for rank in range(1, len(gold) + 1)]
    best = sum(g * d for g, d in zip(sorted(gold, reverse=True), discounts, strict=True))
    if not best:
        return 0.0
    order, rank, total = sorted(range(len(gold)), key=lambda i: -predicted[i]), 0, 0.0
    for _, tied in groupby(order, key=lambda i: predicted[i]):
        gains = [gold[i] for i in tied]
        total += sum(discounts[rank : rank + len(gains)]) * sum(gains) / len(gains)
        rank += len(gains)
    return total / best


def _answer_tokens(text: str, language: str) -> list[str]:
    kept = "".join(c for c in text.lower() if not _is_punctuation(c))
    if language in _ARTICLES:
        kept = re.sub(_ARTICLES[language], " ", kept)
    if language == "zh":  # every Chinese character is a token
        kept = _HAN.sub(r" \g<0> ", kept)
    return kept.split()


@cache
def _is_punctuation(character: str) -> bool:
    return character in string.punctuation or unicodedata.category(character).startswith("P")
