"""Losses: nats worked out by hand, a float64 reference of our own, and identities."""

import math

import pytest
import torch

from isogloss.distill.losses import cross_entropy, forward_kl, info_nce, jensen_shannon, reverse_kl

HALVES = torch.tensor([[0.5, 0.5]]).log()
NINE_TO_ONE = torch.tensor([[0.9, 0.1]]).log()
DIVERGENCES = [forward_kl, reverse_kl, jensen_shannon]
SIZES = [(1, 2), (7, 13), (41, 271)]


def kl64(p, q):
    """Σ p ln(p / q) over all tokens, in float64, from raw logits."""
    p, q = p.double(), q.double()
    p, q = p.exp() / p.exp().sum(-1, keepdim=True), q.exp() / q.exp().sum(-1, keepdim=True)
    return (p * (p / q).log()).sum()


def jsd64(student, teacher, beta):
    p, q = teacher.double().softmax(-1), student.double().softmax(-1)
    m = (beta * p + (1 - beta) * q).log()
    return beta * kl64(teacher, m) + (1 - beta) * kl64(student, m)


def pair(tokens, vocab, seed=0):
    made = torch.Generator().manual_seed(seed)
    return torch.randn(tokens, vocab, generator=made) * 3, torch.randn(tokens, vocab, generator=made) * 3


@pytest.mark.parametrize(
    ("student", "teacher", "nats"),
    [
        (NINE_TO_ONE, HALVES, 0.510826),  # ½ ln(½/0.9) + ½ ln(½/0.1)
        (HALVES, NINE_TO_ONE, 0.368064),  # 0.9 ln(0.9/½) + 0.1 ln(0.1/½): a swap fails
        (HALVES, HALVES, 0.0),
    ],
)
def test_forward_kl_matches_values_worked_out_by_hand(student, teacher, nats):
    """The teacher's probabilities weigh."""
    assert forward_kl(student, teacher).item() == pytest.approx(nats, abs=1e-6)


@pytest.mark.parametrize(
    ("student", "teacher", "nats"),
    [(NINE_TO_ONE, HALVES, 0.368064), (HALVES, NINE_TO_ONE, 0.510826), (HALVES, HALVES, 0.0)],
)
def test_reverse_kl_matches_values_worked_out_by_hand(student, teacher, nats):
    """The student's probabilities weigh."""
    assert reverse_kl(student, teacher).item() == pytest.approx(nats, abs=1e-6)


@pytest.mark.parametrize(
    ("student", "teacher", "beta", "nats"),
    [
        # m = (0.7, 0.3): ½ [½ ln(½/0.7) + ½ ln(½/0.3)] + ½ [0.9 ln(0.9/0.7) + 0.1 ln(0.1/0.3)]
        (NINE_TO_ONE, HALVES, 0.5, 0.101749),
        (HALVES, NINE_TO_ONE, 0.5, 0.101749),
        # m = (0.6, 0.4): ¾ [½ ln(½/0.6) + ½ ln(½/0.4)] + ¼ [0.9 ln(0.9/0.6) + 0.1 ln(0.1/0.4)]
        (NINE_TO_ONE, HALVES, 0.75, 0.071881),
        # m = (0.8, 0.2): ¾ [0.9 ln(0.9/0.8) + 0.1 ln(0.1/0.2)] + ¼ [½ ln(½/0.8) + ½ ln(½/0.2)]
        (HALVES, NINE_TO_ONE, 0.75, 0.083303),
    ],
)
def test_jensen_shannon_matches_values_worked_out_by_hand(student, teacher, beta, nats):
    """β weighs the teacher's side and the mixture alike."""
    assert jensen_shannon(student, teacher, beta=beta).item() == pytest.approx(nats, abs=1e-6)


def test_jensen_shannon_tends_to_the_two_divergences():
    """JSD / β → forward KL as β → 0, and JSD / (1 - β) → reverse KL as β → 1."""
    student, teacher = (x / 3 for x in pair(5, 11))
    small = jensen_shannon(student.double(), teacher.double(), beta=1e-3).item() / 1e-3
    large = jensen_shannon(student.double(), teacher.double(), beta=1 - 1e-3).item() / 1e-3
    assert small == pytest.approx(kl64(teacher, student).item(), rel=0.03)
    assert large == pytest.approx(kl64(student, teacher).item(), rel=0.03)


@pytest.mark.parametrize("loss", DIVERGENCES)
@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_equal_inputs_give_zero_and_no_gradient(loss, temperature):
    """Not the teacher's entropy, and nothing that pulls."""
    student = pair(7, 13)[0].requires_grad_()
    value = loss(student, student.detach(), temperature=temperature)
    value.backward()
    assert value.item() == pytest.approx(0.0, abs=1e-5)
    assert student.grad.abs().max().item() == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("loss", DIVERGENCES)
def test_no_tokens_give_zero(loss):
    """A step without response tokens is no NaN."""
    assert loss(torch.zeros(0, 5), torch.zeros(0, 5)).item() == 0.0
    assert cross_entropy(torch.zeros(0, 5), torch.zeros(0, dtype=torch.long)).item() == 0.0


@pytest.mark.parametrize(("tokens", "vocab"), SIZES)
@pytest.mark.parametrize("temperature", [0.7, 1.0, 2.0])
def test_divergences_match_float64(tokens, vocab, temperature):
    """Sums over tokens, multiplied by the temperature's square."""
    student, teacher = pair(tokens, vocab)
    s, t, square = student / temperature, teacher / temperature, temperature**2
    expected = {
        forward_kl: kl64(t, s) * square,
        reverse_kl: kl64(s, t) * square,
        jensen_shannon: jsd64(s, t, 0.5) * square,
    }
    for loss, value in expected.items():
        assert loss(student, teacher, temperature=temperature).item() == pytest.approx(value.item(), rel=1e-5)


@pytest.mark.parametrize("loss", DIVERGENCES)
def test_bfloat16_logits_are_compared_in_float32(loss):
    """The softmax of half-precision logits is that of their values."""
    student, teacher = (x.bfloat16() for x in pair(7, 271))
    assert loss(student, teacher).dtype == torch.float32
    assert loss(student, teacher).item() == loss(student.float(), teacher.float()).item()


@pytest.mark.parametrize("loss", DIVERGENCES)
def test_logits_far_apart_give_finite_values_and_gradients(loss):
    """A probability of exp(-1000) is zero, not NaN."""
    student = torch.tensor([[1000.0, 0.0, -1000.0]], requires_grad=True)
    value = loss(student, torch.tensor([[-1000.0, 0.0, 1000.0]]))
    value.backward()
    assert value.isfinite() and student.grad.isfinite().all()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_forward_kl_has_the_closed_forms_gradient(temperature):
    """τ · (q - p), in float64, for a loss that was multiplied by τ²."""
    student, teacher = pair(7, 13)
    student.requires_grad_()
    forward_kl(student, teacher, temperature=temperature).backward()
    q, p = ((x.detach().double() / temperature).softmax(-1) for x in (student, teacher))
    torch.testing.assert_close(student.grad.double(), temperature * (q - p), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_reverse_kl_has_the_closed_forms_gradient(temperature):
    """τ · q · (ln q/p - KL(q ‖ p)), in float64."""
    student, teacher = pair(7, 13)
    student.requires_grad_()
    reverse_kl(student, teacher, temperature=temperature).backward()
    q, p = ((x.detach().double() / temperature).log_softmax(-1) for x in (student, teacher))
    gap = q - p
    expected = temperature * q.exp() * (gap - (q.exp() * gap).sum(-1, keepdim=True))
    torch.testing.assert_close(student.grad.double(), expected, rtol=1e-4, atol=1e-5)


def test_jensen_shannon_has_the_closed_forms_gradient():
    """(1 - β) · q · (ln q/m - KL(q ‖ m)), in float64: what m changes cancels."""
    student, teacher = pair(7, 13)
    student.requires_grad_()
    jensen_shannon(student, teacher, beta=0.3).backward()
    q, p = (x.detach().double().softmax(-1) for x in (student, teacher))
    gap = (q / (0.3 * p + 0.7 * q)).log()
    expected = 0.7 * q * (gap - (q * gap).sum(-1, keepdim=True))
    torch.testing.assert_close(student.grad.double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("loss", DIVERGENCES)
@pytest.mark.parametrize("temperature", [0.0, -1.0, math.inf, math.nan])
def test_an_impossible_temperature_is_refused(loss, temperature):
    """The message says what it is and what it may be."""
    with pytest.raises(ValueError) as caught:
        loss(HALVES, HALVES, temperature=temperature)
    assert str(caught.value) == f"temperature is {temperature}; it must be a finite number above 0"


@pytest.mark.parametrize("beta", [0.0, 1.0, -0.1, 1.5, math.nan])
def test_an_impossible_beta_is_refused(beta):
    """At the ends the divergence is zero; the two limits have names of their own."""
    with pytest.raises(ValueError) as caught:
        jensen_shannon(HALVES, HALVES, beta=beta)
    assert str(caught.value) == (
        f"beta is {beta}; it must lie between 0 and 1; at the ends use forward_kl or reverse_kl"
    )


def test_cross_entropy_matches_a_table_worked_out_by_hand():
    """-ln 0.9 - ln 0.5: a sum over tokens."""
    student = torch.cat([NINE_TO_ONE, HALVES])
    value = cross_entropy(student, torch.tensor([0, 1])).item()
    assert value == pytest.approx(0.105361 + 0.693147, abs=1e-6)


def naive_info_nce(student, twins, own, temperature):
    def near(i, j):
        s, e = student[i].double(), twins[j].double()
        return float(s @ e / (s.norm() * e.norm())) / temperature

    rows, total = range(len(student)), 0.0
    for i in rows:
        total += math.log(sum(math.exp(near(i, j)) for j in range(len(twins)))) - near(i, own[i])
        rivals = [k for k in rows if k == i or own[k] != own[i]]
        total += math.log(sum(math.exp(near(k, own[i])) for k in rivals)) - near(i, own[i])
    return total / 2


@pytest.mark.parametrize("own", [[0, 1, 2, 3, 4], [4, 1, 4, 2, 1], [3, 3, 3, 3, 3], [0]])
@pytest.mark.parametrize("temperature", [0.05, 0.5])
def test_info_nce_matches_a_naive_loop(own, temperature):
    """Every twin is a negative, in the batch or not; rows of one meaning are none of each other."""
    student, twins = pair(5, 6, seed=3)
    value = info_nce(student[: len(own)], twins, torch.tensor(own), temperature=temperature).item()
    expected = naive_info_nce(student[: len(own)], twins, own, temperature)
    assert value == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_info_nce_matches_values_worked_out_by_hand():
    """Orthogonal twins at τ = 1: each row and column costs ln(1 + e⁻¹); swapped ones ln(1 + e)."""
    eye, own = torch.eye(2), torch.tensor([0, 1])
    assert info_nce(eye, eye, own, temperature=1.0).item() == pytest.approx(2 * 0.313262, abs=1e-5)
    assert info_nce(eye, eye.flip(0), own, temperature=1.0).item() == pytest.approx(2 * 1.313262, abs=1e-5)
    # A third twin outside the batch, orthogonal to both: ln(1 + 2e⁻¹) there, ln(1 + e⁻¹) back.
    three = torch.eye(3)
    value = info_nce(three[:2], three, own, temperature=1.0).item()
    assert value == pytest.approx(0.551445 + 0.313262, abs=1e-5)


def test_rows_that_all_mean_the_same_cost_nothing():
    """Without a negative there is nothing to tell apart, and no gradient that is not a number."""
    student, twins = pair(3, 6)
    student.requires_grad_()
    value = info_nce(student, twins[:1], torch.zeros(3, dtype=torch.long))
    value.backward()
    assert value.item() == pytest.approx(0.0, abs=1e-6)
    assert torch.equal(student.grad, torch.zeros_like(student))


def test_info_nce_does_not_see_length():
    """Cosines: a state ten times as long says the same."""
    student, twins = pair(4, 6)
    own = torch.arange(4)
    assert info_nce(10 * student, twins / 10, own).item() == pytest.approx(
        info_nce(student, twins, own).item(), rel=1e-5
    )
