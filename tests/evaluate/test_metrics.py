"""Metrics: tables worked out by hand, a slow reference for the margin, and identities."""

import math

import pytest
import torch

from isogloss.evaluate.metrics import agreement, alignment, correct, retrieve, spread


def test_unreadable_answers_never_agree():
    """None on either side, or on both, is no agreement."""
    assert agreement(["a", "a", None, "a", None], ["a", "b", "a", None, None]) == [
        True,
        False,
        False,
        False,
        False,
    ]


def test_an_unreadable_answer_is_wrong():
    """None is wrong and stays in the denominator."""
    assert correct(["a", "b", "c"], ["a", "c", None]) == [True, False, False]


@pytest.mark.parametrize("measure", [agreement, correct])
def test_answers_of_another_number_are_refused(measure):
    """Nothing is silently cut off at the shorter side."""
    with pytest.raises(ValueError, match="shorter"):
        measure(["a", "b"], ["a"])


def test_alignment_is_the_mean_of_both_halves():
    """½ (0.5 + 1)."""
    assert alignment(0.5, 1.0) == 0.75


def test_retrieval_matches_a_table_worked_out_by_hand():
    """Cosines .6 0 0 / .8 1 0 / 0 0 1: y0 is nearer to x1, but its margin is not."""
    english = torch.eye(3)
    other = torch.tensor([[3.0, 4.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    found = retrieve(english, other)
    assert found.forward.tolist() == [True, True, True]
    assert found.backward.tolist() == [False, True, True]
    assert found.strict.tolist() == [False, True, True]
    assert found.scores == [0.5, 1.0, 1.0]
    assert found.accuracy == pytest.approx(5 / 6)
    assert found.strict_accuracy == pytest.approx(2 / 3)
    # .6 over the mean of row .2 and column 1.4/3 is 1.8; .8 over that of .6 and 1.4/3 is only 1.5
    assert found.margin_backward.tolist() == [True, True, True]
    assert found.margin_accuracy == 1.0


def test_swapping_the_sides_swaps_the_directions():
    """English first: the hub is now on the English side."""
    other = torch.eye(3)
    english = torch.tensor([[3.0, 4.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    found = retrieve(english, other)
    assert found.forward.tolist() == [False, True, True]
    assert found.backward.tolist() == [True, True, True]


def test_a_rotation_of_the_rows_finds_nothing():
    """Every sentence finds the wrong translation."""
    found = retrieve(torch.eye(3), torch.eye(3).roll(1, 0))
    assert (found.accuracy, found.strict_accuracy, found.margin_accuracy) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("size", [2, 3, 7, 65])
def test_embeddings_that_are_all_alike_find_nothing(size):
    """Ties are failures, even when the products round differently."""
    vector = torch.randn(1, 301, generator=torch.Generator().manual_seed(0))
    scales = torch.linspace(0.1, 9.0, size)[:, None]
    found = retrieve(vector * scales, vector * scales.flip(0))
    assert (found.accuracy, found.strict_accuracy, found.margin_accuracy) == (0.0, 0.0, 0.0)


def test_two_equal_translations_are_a_tie_for_both():
    """y0 = y1: going there is undecided; coming back each y has one nearest x, which is wrong for one."""
    found = retrieve(torch.eye(3), torch.tensor([[1.0, 0.1, 0.0], [1.0, 0.1, 0.0], [0.0, 0.0, 1.0]]))
    assert found.forward.tolist() == [False, False, True]
    assert found.backward.tolist() == [True, False, True]
    assert found.margin_forward.tolist() == [False, False, True]


def test_negative_cosines_do_not_turn_the_margin_round():
    """-.6 beats -.8, though -.6/-.7 is below -.8/-.7."""
    found = retrieve(torch.eye(2), torch.tensor([[-0.6, -0.8], [-0.8, -0.6]]))
    assert found.forward.tolist() == [True, True]
    assert found.margin_forward.tolist() == [True, True]
    assert found.margin_backward.tolist() == [True, True]


def test_a_zero_embedding_finds_nothing_and_spoils_nothing():
    """A vector without direction is a failure of its own row only."""
    english = torch.eye(4)
    english[1] = 0.0
    found = retrieve(english, torch.eye(4))
    assert found.forward.tolist() == [True, False, True, True]


def test_one_pair_finds_itself():
    """With nothing to confuse it with, a pair is found, whatever k is."""
    found = retrieve(torch.ones(1, 2), torch.ones(1, 2))
    assert (found.accuracy, found.strict_accuracy, found.margin_accuracy) == (1.0, 1.0, 1.0)


def noisy_pairs(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    english = torch.randn(n, 8, generator=generator)
    return english, english + 1.2 * torch.randn(n, 8, generator=generator)


def margin_hits(english: torch.Tensor, other: torch.Tensor, k: int) -> list[bool]:
    """XSIM as its definition says it, in float64 and loops."""
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
    assert 0 < found.margin_accuracy < 1


@pytest.mark.parametrize("seed", range(5))
def test_strict_counts_the_rows_right_in_both_directions(seed):
    """MEXA's own formula, computed apart, gives the same rows and is below either direction."""
    english, other = noisy_pairs(60, seed)
    found = retrieve(english, other)
    cosine = torch.nn.functional.cosine_similarity(english[:, None].double(), other[None].double(), dim=-1)
    mexa = [
        all(cosine[i, i] > cosine[i, j] and cosine[i, i] > cosine[j, i] for j in range(60) if j != i)
        for i in range(60)
    ]
    assert found.strict.tolist() == mexa
    assert found.strict_accuracy <= min(found.forward.double().mean(), found.backward.double().mean())
    assert 0 < found.strict_accuracy < found.accuracy < 1


def test_half_precision_is_computed_in_float32():
    """bfloat16 embeddings give what their float32 copies give."""
    english, other = (side.bfloat16() for side in noisy_pairs(40, 0))
    low, high = retrieve(english, other), retrieve(english.float(), other.float())
    assert low.scores == high.scores
    assert torch.equal(low.margin_forward, high.margin_forward)


def test_a_number_that_is_not_finite_is_refused():
    """One nan would otherwise make every row of its column fail in silence."""
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
    assert (found.worst, found.lowest) == ("sw", 0.4)
    assert found.deviation == pytest.approx(math.sqrt(0.08 / 3))


@pytest.mark.parametrize("values", [{}, {"sw": math.nan, "es": 0.5}])
def test_spread_refuses_a_language_without_a_number(values):
    """Nan would hide the worst language."""
    with pytest.raises(ValueError, match="it needs a number for every language"):
        spread(values)
