"""Standardisation: vectors in units of the mean and standard deviation of their language."""

import pytest
import torch

from isogloss.model.standardise import standardised, statistics_of


def test_a_vector_is_expressed_in_deviations_from_the_mean():
    """The column means are 2 and 20, the deviations 1 and 10."""
    statistics = statistics_of(torch.tensor([[1.0, 10.0], [3.0, 30.0]]))
    assert statistics.mean.tolist() == [2.0, 20.0]
    assert statistics.scale.tolist() == [1.0, 10.0]
    assert standardised(torch.tensor([[4.0, 0.0]]), statistics).tolist() == [[2.0, -2.0]]


def test_a_constant_dimension_becomes_zero():
    """0.1 has no exact float; real hidden states have values as large as 1e5."""
    vectors = torch.tensor([[0.1, 1e5, 1.0], [0.1, 1e5, 2.0], [0.1, 1e5, 3.0]])
    other = torch.tensor([[7.0, 0.0, 2.0]])
    assert standardised(other, statistics_of(vectors)).tolist() == [[0.0, 0.0, 0.0]]


def test_a_small_deviation_around_a_large_mean_is_kept():
    """99,999 and 100,001: a variance computed from the mean of squares in float32 would lose it."""
    statistics = statistics_of(torch.tensor([[99999.0], [100001.0]]))
    assert statistics.scale.tolist() == [1.0]


def test_bfloat16_is_computed_in_float32():
    vectors = torch.tensor([[1.0], [3.0]], dtype=torch.bfloat16)
    found = standardised(vectors, statistics_of(vectors))
    assert found.dtype is torch.float32
    assert found.tolist() == [[-1.0], [1.0]]


def test_the_gradient_goes_to_the_vectors_and_not_to_the_statistics():
    vectors = torch.tensor([[1.0, 2.0], [3.0, 6.0]], requires_grad=True)
    statistics = statistics_of(vectors)
    standardised(vectors, statistics).sum().backward()
    assert not statistics.mean.requires_grad
    assert vectors.grad is not None
    assert vectors.grad.tolist() == [[1.0, 0.5], [1.0, 0.5]]  # 1 / deviation


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        (torch.ones(1, 2), "1 vectors have no standard deviation; give at least two"),
        (
            torch.tensor([[1.0], [torch.nan]]),
            "vector 1 holds nan or infinity; all must be finite",
        ),
    ],
)
def test_vectors_without_statistics_are_refused(vectors, message):
    with pytest.raises(ValueError, match=message):
        statistics_of(vectors)
