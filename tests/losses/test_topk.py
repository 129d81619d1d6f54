"""Top-k: the remaining mass is one bucket, and packed values can be unpacked."""

import math

import pytest
import torch

from isogloss.losses.topk import TopK, pack, unpack


def random_logits(tokens, vocab, seed=0, scale=3.0):
    return torch.randn(tokens, vocab, generator=torch.Generator().manual_seed(seed)) * scale


def test_the_rest_is_the_mass_that_is_left():
    """0.5 and 0.3 leave 0.2; no mass counts as 2⁻²⁴, the resolution of float32."""
    top = TopK(torch.tensor([[4, 1], [0, 2]]), torch.tensor([[0.5, 0.3], [0.75, 0.25]]).log())
    assert top.rest.tolist() == pytest.approx([math.log(0.2), -24 * math.log(2)], abs=1e-6)


def test_the_likeliest_tokens_keep_their_dense_probabilities():
    """By hand: of the probabilities 0.1 0.4 0.2 0.3, tokens 1 and 3 are kept."""
    top = TopK.of(torch.tensor([[0.1, 0.4, 0.2, 0.3]]).log(), 2)
    assert top.ids.tolist() == [[1, 3]]
    assert top.logprobs.exp().tolist() == [pytest.approx([0.4, 0.3])]
    assert top.rest.exp().item() == pytest.approx(0.3)


def test_splitting_and_indexing_keep_pairs_together():
    """Chunks, masks and joined rows apply to both tensors."""
    top = TopK.of(random_logits(7, 20), 3)
    joined = TopK.cat([top[:3], top[3:]])
    assert torch.equal(joined.ids, top.ids) and torch.equal(joined.logprobs, top.logprobs)
    mask = torch.tensor([True, False, True, False, False, True, False])
    assert torch.equal(top[mask].ids, top.ids[[0, 2, 5]])
    assert torch.equal(top[mask].logprobs, top.logprobs[[0, 2, 5]])


@pytest.mark.parametrize(
    ("vocab", "k", "off"),
    [(5, 2, 1e-6), (269, 32, 2e-5), (65_537, 32, 4e-3), (151_936, 32, 4e-3), (262_208, 32, 8e-3)],
)
@pytest.mark.parametrize("scale", [0.1, 3.0, 8.0])
def test_a_packed_pair_takes_four_bytes_and_keeps_its_probability(vocab, k, off, scale):
    """IDs are exact and ln p nearly so, for likely and unlikely tokens; 4·k bytes include the rest."""
    top = TopK.of(random_logits(40, vocab, scale=scale), k)
    words = pack(top, vocab)
    assert words.nbytes == 40 * 4 * k
    found = unpack(words, vocab)
    assert torch.equal(found.ids, top.ids)
    # If nearly no mass is left, float32 cannot represent how much.
    sure = top.rest > math.log(1e-4)
    assert sure.any() or scale == 8.0 or vocab == 5
    torch.testing.assert_close(found.logprobs[sure], top.logprobs[sure], rtol=0, atol=off)
    torch.testing.assert_close(found.rest[sure], top.rest[sure], rtol=0, atol=off + 2e-3)
    torch.testing.assert_close(found.logprobs.exp(), top.logprobs.exp(), rtol=0, atol=off)


def test_the_order_of_pairs_does_not_matter_to_a_packed_row():
    """A server may list the response token first."""
    top = TopK.of(random_logits(6, 50), 4)
    turned = TopK(top.ids.flip(1), top.logprobs.flip(1))
    assert torch.equal(pack(turned, 50), pack(top, 50))


def test_all_tokens_can_be_packed():
    """k = V leaves no mass, also after unpacking."""
    top = TopK.of(random_logits(6, 9), 9)
    found = unpack(pack(top, 9), 9)
    torch.testing.assert_close(found.logprobs, top.logprobs, rtol=0, atol=1e-4)
    assert found.rest.exp().max().item() < 1e-6


@pytest.mark.parametrize(
    ("ids", "probabilities", "message"),
    [
        ([[3, 9]], [[0.5, 0.2]], "a top-k id is out of range; the vocabulary has 9 tokens"),
        ([[3, 3]], [[0.5, 0.2]], "a top-k id is repeated for one response token; give each id once"),
        ([[3, 4]], [[0.9, 0.2]], "top-k log-probabilities must be finite with a total mass of at most 1"),
        ([[3, 4]], [[0.9, 0.0]], "top-k log-probabilities must be finite with a total mass of at most 1"),
    ],
)
def test_invalid_distributions_are_refused(ids, probabilities, message):
    """Each message says what would be valid."""
    with pytest.raises(ValueError) as caught:
        TopK(torch.tensor(ids), torch.tensor(probabilities).log()).check(9)
    assert str(caught.value) == message


def test_a_vocabulary_that_leaves_too_few_bits_is_refused():
    """With 2²³ tokens, an ID takes 23 of 32 bits."""
    with pytest.raises(ValueError) as caught:
        pack(TopK(torch.tensor([[0]]), torch.tensor([[-1.0]])), 2**23)
    assert str(caught.value) == "a vocabulary of 8388608 leaves 9 bits per probability; 10 are needed"
