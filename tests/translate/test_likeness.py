"""Likeness of both sides of a pair, from states made by hand."""

import pytest
import torch

from isogloss.evaluate.retrieval import Model
from isogloss.model.standardise import FEWEST
from isogloss.translate.likeness import layers, scorer, scores


def test_the_layers_of_a_model_of_eighteen():
    """5 to 9 in Gemma 3 270M; a model of two has one below its middle."""
    assert list(layers(18)) == [5, 6, 7, 8, 9]
    assert list(layers(2)) == [1]


def test_true_pairs_score_above_shuffled_ones_whatever_the_languages_mean_and_scale():
    """The other side is the English, stretched, moved and with some noise."""
    torch.manual_seed(0)
    english = torch.randn(60, 16)
    other = 7 * english + 100 + torch.randn(60, 16)
    true = scores({3: english, 5: english}, {3: other, 5: other})
    shuffled = scores({3: english}, {3: other.roll(20, 0)})
    assert true.min() > 0 > shuffled.max()


def test_scores_by_hand():
    """Two opposite sentences: cosines are 1 and -1, so 2 less the mean of the other's, -1, on each side."""
    states = {1: torch.tensor([[1.0, 2.0], [3.0, -4.0]])}
    assert scores(states, states).tolist() == pytest.approx([4.0, 4.0])


def test_too_few_pairs_filter_nothing(tiny, tokenizer):
    """The base reads none of them."""
    score = scorer(Model(tiny("qwen3", seed=5), tokenizer))
    few = ["a"] * (FEWEST - 1)
    assert score(few, few, "sw") == [float("inf")] * (FEWEST - 1)
