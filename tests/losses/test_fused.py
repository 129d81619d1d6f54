"""Fused losses: equal to those on full logits, in value and gradient, for every kind of head."""

import pytest
import torch
from torch import nn

from isogloss.losses import functional
from isogloss.losses.fused import Head, frozen_head, scored, token_log_probs
from isogloss.losses.topk import TopK
from isogloss.model.decoder import head as plain_head

PLAIN = {
    "forward": functional.forward_kl,
    "reverse": functional.reverse_kl,
    "jensen_shannon": functional.jensen_shannon,
}
HEADS = {"plain": (1.0, None), "scaled": (0.25, None), "capped": (1.0, 5.0), "both": (2.0, 3.0)}


def made(tokens=23, hidden=12, vocab=41, *, dtype=torch.float32, scale=1.0, cap=None, bias=False):
    generator = torch.Generator().manual_seed(0)
    linear = nn.Linear(hidden, vocab, bias=bias, dtype=dtype)
    for p in linear.parameters():
        p.data = torch.randn(p.shape, generator=generator, dtype=torch.float64).to(dtype)
    states = [torch.randn(tokens, hidden, generator=generator, dtype=torch.float64).to(dtype) for _ in "ab"]
    response = torch.randint(vocab, (tokens,), generator=generator)
    return Head(linear.requires_grad_(False), scale, cap), *states, response


def dense(head, hidden):
    """Compute the head's logits step by step, with autograd."""
    z = hidden @ head.linear.weight.T
    z = (z if head.linear.bias is None else z + head.linear.bias) * head.scale
    return z if head.cap is None else torch.tanh(z / head.cap) * head.cap


def by_tokens(states, head, top, response, divergence="forward", temperature=1.0, *, size):
    """Compute cross-entropy and divergence from the probabilities of response and teacher's tokens."""
    count, k = top.ids.shape
    ids = torch.cat([response, top.ids.long().flatten()])
    where = torch.cat([torch.arange(count), torch.arange(count).repeat_interleave(k)])
    tokens, rest = token_log_probs(head.linear, states, ids, where, size=size, fixed=head)
    own, kept = tokens[:count], tokens[count:].view(count, k)
    among = (top.ids == response[:, None]).any(1)
    others = torch.logaddexp(rest, own.masked_fill(among, functional.LEAST))
    ours = functional.Kept(kept, others if k < head.linear.out_features else None)
    return -own.sum(), PLAIN[divergence](ours, top, temperature=temperature)


@pytest.mark.parametrize("divergence", PLAIN)
@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("size", [1, 5, 100])
def test_dense_losses_and_gradients_equal_the_plain_form(divergence, kind, temperature, size):
    """Chunk sizes that divide the tokens or not; both parts, with different weights, to 1e-5."""
    scale, cap = HEADS[kind]
    head, hidden, teacher, response = made(scale=scale, cap=cap, bias=kind == "both")
    found = []
    for fused in (True, False):
        states = hidden.clone().requires_grad_()
        if fused:
            ce, kl = scored(
                states, head, teacher, size=size, response=response, divergence=divergence,
                temperature=temperature, weights=(1.4, 2.6),
            )  # fmt: skip
        else:
            z = dense(head, states)
            ce = functional.cross_entropy(z, response)
            kl = PLAIN[divergence](z, dense(head, teacher), temperature=temperature)
        (0.7 * ce + 1.3 * kl).backward()
        found.append((ce.detach(), kl.detach(), states.grad))
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("divergence", PLAIN)
@pytest.mark.parametrize("k", [1, 8, 40, 41])
@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize(("weights", "temperature"), [((0.7, 1.3), 1.0), ((0, 1), 1.0), ((0.7, 1.3), 4.0)])
def test_top_k_losses_and_gradients_equal_the_plain_form(divergence, k, kind, weights, temperature):
    """The gradient of the remaining mass is split among its tokens as the student splits its own.

    The response token is part of it or among the kept tokens. Float64, to 1e-9.
    """
    scale, cap = HEADS[kind]
    head, hidden, teacher, response = made(scale=scale, cap=cap, dtype=torch.float64)
    said = TopK.of(dense(head, teacher), k)
    found = []
    for fused in (True, False):
        states = hidden.clone().requires_grad_()
        if fused:
            ce, kl = by_tokens(states, head, said, response, divergence, temperature, size=7)
        else:
            z = dense(head, states)
            ce = functional.cross_entropy(z, response)
            kl = PLAIN[divergence](z, said, temperature=temperature)
        (weights[0] * ce + weights[1] * kl).backward()
        found.append((ce.detach(), kl.detach(), states.grad))
    torch.testing.assert_close(found[0], found[1], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("divergence", PLAIN)
@pytest.mark.parametrize("k", [None, 2])
def test_gradients_equal_finite_differences(divergence, k):
    """gradcheck in float64 through scale and cap, both parts at once with the given weights."""
    head, hidden, teacher, response = made(3, 4, 6, dtype=torch.float64, scale=0.5, cap=4.0)
    if k is not None:
        top = dense(head, teacher).log_softmax(-1).topk(k)
        teacher = TopK(top.indices, top.values)

    def both(states):
        if k is None:
            ce, kl = scored(
                states, head, teacher, size=2, response=response, divergence=divergence, weights=(0.7, 1.3)
            )
        else:
            ce, kl = by_tokens(states, head, teacher, response, divergence, size=2)
        return 0.7 * ce + 1.3 * kl

    assert torch.autograd.gradcheck(both, [hidden.requires_grad_()])


def test_logits_of_bfloat16_weights_are_not_rounded_to_bfloat16():
    """Logits near 30, of 896 products each: rounded ones are off by over 0.05, ours by at most 0.0005."""
    head, hidden, _, _ = made(8, 896, 200, dtype=torch.bfloat16)
    exact = hidden.double() @ head.linear.weight.double().T
    assert (head.linear(hidden).double() - exact).abs().max().item() > 0.05
    assert (head.logits(hidden).double() - exact).abs().max().item() < 5e-4


def test_bfloat16_states_are_compared_in_float32():
    """Values are within 1e-4 of those with float32 weights; the gradient is rounded to bfloat16 once."""
    head, hidden, teacher, response = made(dtype=torch.bfloat16)
    states = hidden.clone().requires_grad_()
    ce, kl = scored(states, head, teacher, size=5, response=response)
    (ce + kl).backward()
    wide = Head(nn.Linear(12, 41, bias=False).requires_grad_(False))
    wide.linear.weight.data = head.linear.weight.float()
    ours = hidden.float().requires_grad_()
    z = dense(wide, ours)
    expected = functional.cross_entropy(z, response), functional.forward_kl(z, dense(wide, teacher.float()))
    sum(expected).backward()
    assert ce.dtype == kl.dtype == torch.float32 and states.grad.dtype == torch.bfloat16
    assert [ce.item(), kl.item()] == pytest.approx([one.item() for one in expected], rel=1e-4)
    torch.testing.assert_close(states.grad.float(), ours.grad, rtol=2**-6, atol=2**-6)


def test_a_hook_on_the_head_sees_every_product():
    """23 tokens in chunks of 5: the student's with gradients, the teacher's without."""
    head, hidden, teacher, _ = made()
    heard = {True: 0, False: 0}

    def hook(module, args):
        heard[torch.is_grad_enabled()] += len(args[0])

    head.linear.register_forward_pre_hook(hook)
    scored(hidden.requires_grad_(), head, teacher, size=5)
    assert heard == {True: 23, False: 23}


def test_a_part_of_weight_0_is_computed_without_a_gradient():
    """Its value is still reported in the curve."""
    head, hidden, teacher, response = made()
    both = scored(hidden, head, teacher, size=5, response=response)
    states = hidden.clone().requires_grad_()
    ce, kl = scored(states, head, teacher, size=5, response=response, weights=(0, 1))
    assert (ce.item(), kl.item()) == (both[0].item(), both[1].item())
    (5 * ce + kl).backward()
    alone = hidden.clone().requires_grad_()
    scored(alone, head, teacher, size=5)[1].backward()
    assert torch.equal(states.grad, alone.grad)
    assert scored(hidden, head, teacher, size=5)[0].item() == 0.0


def test_weights_that_differ_from_the_given_ones_are_refused():
    """One gradient was computed for both parts together."""
    head, hidden, teacher, response = made()
    ce, kl = scored(hidden.requires_grad_(), head, teacher, size=5, response=response, weights=(1, 2))
    with pytest.raises(RuntimeError, match=r"cross-entropy and divergence as \(1, 2\)"):
        (ce + kl).backward()


def test_remaining_mass_that_the_student_rules_out_stays_finite():
    """Logits are 400 nats apart where the teacher leaves a tenth to the remaining tokens."""
    head, hidden, _, response = made()
    said = TopK(response[:, None].int(), torch.full((23, 1), 0.9).log())
    states = (hidden * 0 + 100 * head.linear.weight[response]).requires_grad_()
    ce, kl = by_tokens(states, head, said, response, size=5)
    (ce + kl).backward()
    assert kl.isfinite() and states.grad.isfinite().all() and kl > 100


def test_no_tokens_give_zero():
    """As in a batch without rows of one kind."""
    head, hidden, teacher, response = made()
    states = hidden[:0].clone().requires_grad_()
    ce, kl = scored(states, head, teacher[:0], size=5, response=response[:0])
    (ce + kl).backward()
    assert (ce.item(), kl.item()) == (0.0, 0.0)


def test_no_states_have_an_empty_gradient():
    """As in a batch of which every token is compared with the teacher's hidden states."""
    head, hidden, _, _ = made()
    states, none = hidden[:0].clone().requires_grad_(), torch.empty(0, dtype=torch.long)
    tokens, rest = token_log_probs(head.linear, states, none, none, size=5, fixed=head)
    (tokens.sum() + rest.sum()).backward()
    assert states.grad.shape == (0, 12)


def test_logits_are_held_for_a_chunk_at_a_time():
    """64 tokens and a vocabulary of 512, four tokens at a time: no tensor is larger than the weight."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        size = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                Largest.size = max(Largest.size, out.numel())
            return out

    head, hidden, teacher, response = made(64, 12, 512)
    hidden.requires_grad_()
    with Largest():
        sum(scored(hidden, head, teacher, size=4, response=response)).backward()
    # The transposed weight has 12 · 512 elements.
    assert Largest.size == 12 * 512


@pytest.mark.parametrize(
    ("kind", "set_", "value"),
    [
        ("qwen3", None, None),
        ("gemma3_text", "final_logit_softcapping", 2.0),
        ("granite", "logits_scaling", 4.0),
        ("cohere", "logit_scale", 0.25),
    ],
)
def test_a_frozen_head_equals_the_models_head(tiny, kind, set_, value):
    """The logits of `model.head`, with the scaling and capping of every architecture that has them."""
    model = tiny(kind).requires_grad_(False)
    if set_ is not None:
        setattr(model.config, set_, value)
    found = frozen_head(model)
    states = torch.randn(5, 24, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(found.logits(states), plain_head(model, states), rtol=1e-6, atol=1e-6)
    assert (set_ is None) == ((found.scale, found.cap) == (1.0, None))


def test_a_head_that_is_trained_or_not_linear_uses_autograd(tiny):
    """As in stage 1, with quantisation or with an adapter on the head."""
    model = tiny(tie=False)
    assert frozen_head(model) is None
    model.requires_grad_(False)
    assert frozen_head(model) is not None

    class Other(nn.Linear):
        pass

    model.lm_head.__class__ = Other
    assert frozen_head(model) is None


@pytest.mark.parametrize("temperature", [0.0, -1.0])
def test_impossible_temperatures_are_refused_as_in_the_plain_form(temperature):
    """The messages are the same."""
    head, hidden, teacher, _ = made()
    with pytest.raises(ValueError, match=f"temperature is {temperature}; it must be a finite number"):
        scored(hidden, head, teacher, size=5, temperature=temperature)


@pytest.mark.parametrize("divergence", PLAIN)
@pytest.mark.parametrize("k", [None, 4])
def test_tokens_of_probability_zero_change_nothing(divergence, k):
    """Padded tokens have a bias of -inf: values and gradient equal those of a head without them."""
    head, hidden, teacher, response = made(bias=True)
    linear = nn.Linear(12, 44).requires_grad_(False)
    linear.weight.data = torch.cat([head.linear.weight, torch.ones(3, 12)])
    linear.bias.data = torch.cat([head.linear.bias, torch.full((3,), -torch.inf)])
    found = []
    for one in (head, Head(linear)):
        states = hidden.clone().requires_grad_()
        if k is None:
            ce, kl = scored(states, one, teacher, size=5, response=response, divergence=divergence)
        else:
            ce, kl = by_tokens(states, one, TopK.of(dense(head, teacher), k), response, divergence, size=5)
        (ce + kl).backward()
        found.append((ce.detach(), kl.detach(), states.grad))
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-5)
