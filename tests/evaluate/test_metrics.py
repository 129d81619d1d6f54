"""Metrics: tables worked out by hand, a slow reference for the margin, and identities."""

import math
from itertools import permutations

import pytest
import torch

from isogloss.evaluate import metrics
from isogloss.evaluate.family import Closed, consistency_family
from isogloss.evaluate.metrics import (
    agreement,
    beyond_chance,
    chance_agreement,
    retrieve,
    same_targets,
    spread,
)
from isogloss.model.standardise import standardised, statistics_of


def test_unreadable_answers_never_agree():
    """None on either side, or on both, is no agreement."""
    assert agreement(["a", "a", None, "a", None], ["a", "b", "a", None, None]) == [
        True,
        False,
        False,
        False,
        False,
    ]


def test_different_numbers_of_answers_are_refused():
    """Nothing is silently cut off at the shorter side."""
    with pytest.raises(ValueError, match="shorter"):
        agreement(["a", "b"], ["a"])


def strict_share(found):
    return found.strict.double().mean().item()


def margin_share(found):
    return torch.cat([found.margin_forward, found.margin_backward]).double().mean().item()


def test_retrieval_matches_a_table_worked_out_by_hand():
    """Cosines .6 0 0 / .8 1 0 / 0 0 1: y0 is nearer to x1, but not by the margin."""
    english = torch.eye(3)
    other = torch.tensor([[3.0, 4.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    found = retrieve(english, other)
    assert found.forward.tolist() == [True, True, True]
    assert found.backward.tolist() == [False, True, True]
    assert found.strict.tolist() == [False, True, True]
    assert found.scores == [0.5, 1.0, 1.0]
    assert found.accuracy == pytest.approx(5 / 6)
    assert strict_share(found) == pytest.approx(2 / 3)
    # .6 over the mean of row .2 and column 1.4/3 is 1.8; .8 over that of .6 and 1.4/3 is only 1.5
    assert found.margin_backward.tolist() == [True, True, True]
    assert margin_share(found) == 1.0


def test_swapping_the_sides_swaps_the_directions():
    """The hub is on the English side."""
    other = torch.eye(3)
    english = torch.tensor([[3.0, 4.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    found = retrieve(english, other)
    assert found.forward.tolist() == [False, True, True]
    assert found.backward.tolist() == [True, True, True]


def test_a_rotation_of_the_rows_finds_nothing():
    """Every sentence finds the wrong translation."""
    found = retrieve(torch.eye(3), torch.eye(3).roll(1, 0))
    assert (found.accuracy, strict_share(found), margin_share(found)) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("size", [2, 3, 7, 65])
def test_embeddings_that_are_all_alike_find_nothing(size):
    """Ties are failures, even if the products round differently."""
    vector = torch.randn(1, 301, generator=torch.Generator().manual_seed(0))
    scales = torch.linspace(0.1, 9.0, size)[:, None]
    found = retrieve(vector * scales, vector * scales.flip(0))
    assert (found.accuracy, strict_share(found), margin_share(found)) == (0.0, 0.0, 0.0)


def test_two_equal_translations_are_a_tie_for_both():
    """y0 = y1: forward is undecided; backward, each y has one nearest x, which is wrong for one of them."""
    found = retrieve(torch.eye(3), torch.tensor([[1.0, 0.1, 0.0], [1.0, 0.1, 0.0], [0.0, 0.0, 1.0]]))
    assert found.forward.tolist() == [False, False, True]
    assert found.backward.tolist() == [True, False, True]
    assert found.margin_forward.tolist() == [False, False, True]


def test_equal_sentences_are_one_target():
    """Equal in either language; white space and Unicode composition are ignored."""
    same = same_targets(["a", "b", "a", "c"], ["u", "\u1ec7  x", "v", "e\u0323\u0302 x "])
    assert same.tolist() == [
        [True, False, True, False],
        [False, True, False, True],
        [True, False, True, False],
        [False, True, False, True],
    ]


def test_every_sentence_twice_is_retrieved_as_well_as_once():
    """A copy of the right translation is right, so no score changes; counted by row, none would be found."""
    english, other = noisy_pairs(20, 0)
    texts = [f"sentence {n}" for n in range(20)]
    once = retrieve(english, other, same_targets(texts, texts))
    twice = retrieve(english.repeat(2, 1), other.repeat(2, 1), same_targets(texts * 2, texts * 2))
    assert 0 < once.accuracy < 1
    assert twice.forward.tolist() == once.forward.tolist() * 2
    assert twice.backward.tolist() == once.backward.tolist() * 2
    assert strict_share(twice) == strict_share(once)
    assert retrieve(english.repeat(2, 1), other.repeat(2, 1)).accuracy == 0.0


def test_a_copy_of_a_wrong_sentence_stays_wrong():
    """x0 and x1 are one sentence, both nearest to y2: neither is found, but x2 and y2 still are."""
    english = torch.tensor([[0.0, 0.6, 0.8], [0.0, 0.6, 0.8], [0.0, 0.0, 1.0]])
    other = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    found = retrieve(english, other, same_targets(["a", "a", "b"], ["u", "v", "w"]))
    assert found.forward.tolist() == [False, False, True]


def test_three_huge_dimensions_spoil_the_plain_cosine_but_not_the_standardised_one():
    """Sentence i has its meaning in dimension 3 + i; the first three are 1,000 times as large, and noise.

    The other language has another mean and half the scale. All plain cosines are within 1e-4, so noise
    decides.
    """
    meaning, far = torch.eye(6), torch.tensor([1000.0, -2000.0, 3000.0])
    noise = torch.tensor([[1.0, -1, 1, -1, 1, -1], [1, 1, -1, -1, 1, -1], [-1, 1, 1, -1, -1, 1]]).T
    english = torch.cat([far + noise, meaning], dim=1)
    other = torch.cat([far + noise.roll(2, 0) + 5, 0.5 * meaning + 7], dim=1)
    cosine = torch.nn.functional.cosine_similarity(english[:, None], other[None], dim=2)
    assert (cosine.max() - cosine.min()).item() < 1e-4
    assert retrieve(english, other).accuracy == 0.0
    scaled = [standardised(side, statistics_of(side)) for side in (english, other)]
    assert retrieve(*scaled).accuracy == 1.0


def test_chance_agreement_follows_from_both_sides_answers():
    """p = (½, ½), q = (¾, ¼): ½·¾ + ½·¼ = ½; with one unreadable answer q = (½, ¼) and 3/8."""
    english = ["a", "a", "b", "b"]
    assert chance_agreement(english, ["a", "a", "a", "b"]) == 0.5
    assert chance_agreement(english, ["a", "a", None, "b"]) == 0.375


@pytest.mark.parametrize(
    ("answers", "kappa"),
    [
        (["a", "a", "b", "b"], 1.0),
        (["a", "a", "a", "b"], 0.5),  # (¾ - ½) / (1 - ½)
        (["a", "a", "a", "a"], 0.0),  # right half the time without reading anything
        (["b", "b", "a", "a"], -1.0),
    ],
)
def test_kappa_matches_values_worked_out_by_hand(answers, kappa):
    """Cohen's formula; both sides have two different answers over four items."""
    english = ["a", "a", "b", "b"]
    observed = sum(agreement(english, answers)) / 4
    assert beyond_chance(observed, chance_agreement(english, answers)) == pytest.approx(kappa)


def test_two_models_that_always_say_the_same_agree_no_more_than_chance():
    """κ is undefined there and counts as 0."""
    assert beyond_chance(1.0, chance_agreement(["a", "a"], ["a", "a"])) == 0.0


def test_negative_cosines_do_not_reverse_the_margin():
    """-.6 beats -.8, though -.6/-.7 is below -.8/-.7."""
    found = retrieve(torch.eye(2), torch.tensor([[-0.6, -0.8], [-0.8, -0.6]]))
    assert found.forward.tolist() == [True, True]
    assert found.margin_forward.tolist() == [True, True]
    assert found.margin_backward.tolist() == [True, True]


def test_a_zero_embedding_finds_nothing_and_spoils_nothing():
    """A zero vector only fails in its own row."""
    english = torch.eye(4)
    english[1] = 0.0
    found = retrieve(english, torch.eye(4))
    assert found.forward.tolist() == [True, False, True, True]


def test_one_pair_finds_itself():
    """With nothing to confuse it with, a pair is found, whatever k is."""
    found = retrieve(torch.ones(1, 2), torch.ones(1, 2))
    assert (found.accuracy, strict_share(found), margin_share(found)) == (1.0, 1.0, 1.0)


def noisy_pairs(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    english = torch.randn(n, 8, generator=generator)
    return english, english + 1.2 * torch.randn(n, 8, generator=generator)


def margin_hits(english: torch.Tensor, other: torch.Tensor, k: int) -> list[bool]:
    """Compute xSIM by its definition, in float64 and loops."""
    x, y = ([(v / v.norm()) for v in side.double()] for side in (english, other))
    n = len(x)
    cosine = [[float(a @ b) for b in y] for a in x]
    mx = [sum(sorted(row, reverse=True)[:k]) / k for row in cosine]
    my = [sum(sorted((cosine[i][j] for i in range(n)), reverse=True)[:k]) / k for j in range(n)]
    hits = []
    for i in range(n):
        near = sorted(range(n), key=lambda j: -cosine[i][j])[:k]
        hits.append(max(near, key=lambda j: cosine[i][j] / ((mx[i] + my[j]) / 2)) == i)
    return hits


@pytest.mark.parametrize("seed", range(5))
def test_the_margin_agrees_with_a_slow_reference(seed):
    """Both directions, k = 4 of 50, some right and some wrong."""
    english, other = noisy_pairs(50, seed)
    found = retrieve(english, other)
    assert found.margin_forward.tolist() == margin_hits(english, other, 4)
    assert found.margin_backward.tolist() == margin_hits(other, english, 4)
    assert 0 < margin_share(found) < 1


@pytest.mark.parametrize("seed", range(5))
def test_strict_counts_the_rows_right_in_both_directions(seed):
    """MEXA's own formula gives the same rows; their share is at most that of either direction."""
    english, other = noisy_pairs(60, seed)
    found = retrieve(english, other)
    cosine = torch.nn.functional.cosine_similarity(english[:, None].double(), other[None].double(), dim=-1)
    mexa = [
        all(cosine[i, i] > cosine[i, j] and cosine[i, i] > cosine[j, i] for j in range(60) if j != i)
        for i in range(60)
    ]
    assert found.strict.tolist() == mexa
    assert strict_share(found) <= min(found.forward.double().mean(), found.backward.double().mean())
    assert 0 < strict_share(found) < found.accuracy < 1


def test_half_precision_is_computed_in_float32():
    """bfloat16 embeddings give the results of their float32 copies."""
    english, other = (side.bfloat16() for side in noisy_pairs(40, 0))
    low, high = retrieve(english, other), retrieve(english.float(), other.float())
    assert low.scores == high.scores
    assert torch.equal(low.margin_forward, high.margin_forward)


def test_a_number_that_is_not_finite_is_refused():
    """One NaN would otherwise make every row fail in its column, unnoticed."""
    other = torch.eye(3)
    other[1, 2] = math.nan
    with pytest.raises(ValueError, match=r"^embedding 1 of other holds nan or infinity; all must be finite$"):
        retrieve(torch.eye(3), other)


def test_no_sentences_are_refused():
    """An empty set has no accuracy."""
    with pytest.raises(ValueError, match=r"^no sentences to retrieve; give at least one pair$"):
        retrieve(torch.empty(0, 3), torch.empty(0, 3))


def test_spread_names_the_worst_language():
    """Mean 0.6; deviations 0.2, 0 and 0.2: √(0.08 / 3)."""
    found = spread({"es": 0.8, "hi": 0.6, "sw": 0.4})
    worst, lowest, deviation = found
    assert (worst, lowest) == ("sw", 0.4)
    assert deviation == pytest.approx(math.sqrt(0.08 / 3))


@pytest.mark.parametrize("values", [{}, {"sw": math.nan, "es": 0.5}])
def test_spread_refuses_a_language_without_a_number(values):
    """NaN would hide the worst language."""
    with pytest.raises(ValueError, match="it needs a number for every language"):
        spread(values)


@pytest.mark.parametrize(
    ("a", "b", "value"),
    [
        ("xy", "xy", 1.0),
        ("xy", "yx", 0.268941),  # P@1 = 0, P@2 = 1, w = 1/(1+e) for j = 2
        ("xyz", "yxz", 0.334759),  # w2 + w3 = 0.244728 + 0.090031
        ("xyz", "xzy", 0.877636),  # w1 + w2/2 + w3 = 0.665241 + 0.122364 + 0.090031
    ],
)
def test_rank_c_matches_values_worked_out_by_hand(a, b, value):
    """Overlap of the best j, weighted by the softmax of N − j + 1; symmetric."""
    assert metrics.rank_c([list(a)], [list(b)]) == pytest.approx([value], abs=1e-6)
    assert metrics.rank_c([list(b)], [list(a)]) == pytest.approx([value], abs=1e-6)


@pytest.mark.parametrize(("n", "chance"), [(1, 1.0), (2, 0.634471), (3, 0.474930), (10, 0.158152)])
def test_the_chance_of_rank_c_is_the_mean_over_all_rankings(n, chance):
    """By enumeration; for 10 a truncated geometric series: (1/(1 − q) − 10 q¹⁰/(1 − q¹⁰)) / 10, q = 1/e."""
    assert metrics.rank_c_chance([n]) == pytest.approx(chance, abs=1e-5)
    if n < 5:
        every = list(permutations("abcdefghij"[:n]))
        values = metrics.rank_c([every[0]] * len(every), every)
        assert sum(values) / len(values) == pytest.approx(chance, abs=1e-5)


def test_shuffled_rank_c_keeps_what_both_always_prefer():
    """Languages that always rank alike get 1 from any pairing, though chance is 0.634."""
    a = [["x", "y"]] * 6
    assert metrics.rank_c_shuffled(a, a, seed=0) == 1.0
    assert metrics.rank_c_shuffled([["x", "y"]], [["x", "y"]], seed=0) is None
    with pytest.raises(ValueError, match="query 1 has different candidates in a and b"):
        metrics.rank_c([["x", "y"]], [["x", "z"]])


def test_correct_overlap_divides_by_what_either_has_right():
    """Both right once, one of the two right twice more: 1/3; nothing right: no number."""
    assert metrics.correct_overlap([True, True, False, False], [True, False, True, False]) == 1 / 3
    assert metrics.correct_overlap([False], [False]) is None


def test_seaevals_consistency_is_the_mean_over_all_sets_of_languages():
    """Item 1: a a b, item 2: all c. Pairs: (1 + 3) of 6; triples: 1 of 2; None never agrees."""
    answers = {"en": ["a", "c"], "sw": ["a", "c"], "ur": ["b", "c"]}
    assert metrics.seaeval_consistency(answers, 2) == pytest.approx(4 / 6)
    assert metrics.seaeval_consistency(answers, 3) == pytest.approx(1 / 2)
    assert metrics.seaeval_consistency({"en": [None], "sw": [None]}, 2) == 0.0
    assert metrics.ac3(0.5, 1.0) == pytest.approx(2 / 3) and metrics.ac3(0.0, 0.0) == 0.0
    with pytest.raises(ValueError, match="size is 4 of 3 languages; it must be between 2 and their number"):
        metrics.seaeval_consistency(answers, 4)


def test_the_family_is_measured_on_what_all_languages_answer():
    """Two shared items; Urdu lacks the third, and Italian shares none with English."""

    def said(*meanings: str | None) -> dict[str, Closed]:
        return {
            str(n): Closed(m, m == "x", None if m is None else (m, "y" if m == "x" else "x"))
            for n, m in enumerate(meanings)
        }

    answers = {
        "en": said("x", "y", "x"),
        "sw": said("x", "x", "x"),
        "ur": said("x", "y"),
        "it": {"9": said("x")["0"]},
    }
    found = consistency_family(answers, seed=0)
    assert found["items"] == 2 and found["languages"] == ["en", "sw", "ur"]
    assert found["agreement"]["en"] == {"sw": 0.5, "ur": 1.0} and found["agreement"]["ur"]["sw"] == 0.5
    assert found["correct_overlap"]["en"] == {"sw": 0.5, "ur": 1.0}
    assert found["consistency"] == {"2": pytest.approx(4 / 6), "3": 0.5, "all": 0.5}
    assert found["ac3"]["3"] == pytest.approx(2 * 0.5 * (4 / 6) / (0.5 + 4 / 6))
    assert found["rankc"]["pairs"]["en"]["sw"] == pytest.approx((1 + 0.268941) / 2, abs=1e-6)
    assert found["rankc"]["chance"] == pytest.approx(0.634471, abs=1e-6)
    assert consistency_family({"en": said("x")}, seed=0) == {}
