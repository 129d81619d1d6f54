"""Losses: nats worked out by hand, an independent float64 reference, and identities."""

import math
from itertools import pairwise

import pytest
import torch

from isogloss.losses.functional import (
    cross_entropy,
    forward_kl,
    jensen_shannon,
    reverse_kl,
    similarity,
    temperature_of,
)
from isogloss.losses.topk import TopK

HALVES = torch.tensor([[0.5, 0.5]]).log()
NINE_TO_ONE = torch.tensor([[0.9, 0.1]]).log()
DIVERGENCES = [forward_kl, reverse_kl, jensen_shannon]
SIZES = [(1, 2), (7, 13), (41, 271)]


def kl64(p, q):
    """Compute Σ p ln(p / q) over all tokens in float64, from raw logits."""
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
    """Weighted by the teacher's probabilities."""
    assert forward_kl(student, teacher).item() == pytest.approx(nats, abs=1e-6)


@pytest.mark.parametrize(
    ("student", "teacher", "nats"),
    [(NINE_TO_ONE, HALVES, 0.368064), (HALVES, NINE_TO_ONE, 0.510826), (HALVES, HALVES, 0.0)],
)
def test_reverse_kl_matches_values_worked_out_by_hand(student, teacher, nats):
    """Weighted by the student's probabilities."""
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
    """β weights both the teacher's side and the mixture."""
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
    """The value does not include the teacher's entropy."""
    student = pair(7, 13)[0].requires_grad_()
    value = loss(student, student.detach(), temperature=temperature)
    value.backward()
    assert value.item() == pytest.approx(0.0, abs=1e-5)
    assert student.grad.abs().max().item() == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("loss", DIVERGENCES)
def test_no_tokens_give_zero(loss):
    """A step without response tokens does not give NaN."""
    assert loss(torch.zeros(0, 5), torch.zeros(0, 5)).item() == 0.0
    assert cross_entropy(torch.zeros(0, 5), torch.zeros(0, dtype=torch.long)).item() == 0.0


@pytest.mark.parametrize(("tokens", "vocab"), SIZES)
@pytest.mark.parametrize("temperature", [0.7, 1.0, 2.0])
def test_divergences_match_float64(tokens, vocab, temperature):
    """Sums over tokens, times the squared temperature."""
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
    """Half-precision logits give the result of their float32 copies."""
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
    """τ · (q - p), in float64, as the loss is multiplied by τ²."""
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
    """(1 - β) · q · (ln q/m - KL(q ‖ m)), in float64; the gradient through m cancels."""
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
    with pytest.raises(ValueError) as caught:
        loss(HALVES, HALVES, temperature=temperature)
    assert str(caught.value) == f"temperature is {temperature}; it must be a finite number above 0"


@pytest.mark.parametrize("beta", [0.0, 1.0, -0.1, 1.5, math.nan])
def test_an_impossible_beta_is_refused(beta):
    """At the ends the divergence is zero; the two limits have their own functions."""
    with pytest.raises(ValueError) as caught:
        jensen_shannon(HALVES, HALVES, beta=beta)
    assert str(caught.value) == (
        f"beta is {beta}; it must lie between 0 and 1; at the ends use forward_kl or reverse_kl"
    )


def test_cross_entropy_matches_a_table_worked_out_by_hand():
    """-ln 0.9 - ln 0.5, summed over tokens."""
    student = torch.cat([NINE_TO_ONE, HALVES])
    value = cross_entropy(student, torch.tensor([0, 1])).item()
    assert value == pytest.approx(0.105361 + 0.693147, abs=1e-6)


def naive_similarity(student, twins, own, temperature):
    def near(x, y):
        x, y = x.double(), y.double()
        return math.exp(float(x @ y / (x.norm() * y.norm())) / temperature)

    def kl(wanted, found):
        shares = zip((w / sum(wanted) for w in wanted), (f / sum(found) for f in found), strict=True)
        return sum(p * math.log(p / q) for p, q in shares)

    total = 0.0
    for row, number in zip(student, own, strict=True):
        twin = twins[number]
        total += kl([near(twin, other) for other in twins], [near(row, other) for other in twins])
        total += kl([near(twin, twins[n]) for n in own], [near(twin, other) for other in student])
    return total / 2


@pytest.mark.parametrize("own", [[0, 1, 2, 3, 4], [4, 1, 4, 2, 1], [3, 3, 3, 3, 3], [0]])
@pytest.mark.parametrize("temperature", [0.05, 0.5])
def test_similarity_matches_a_naive_loop(own, temperature):
    """Rows are compared with all twins, in the batch or not; rows of one meaning have equal shares."""
    student, twins = pair(5, 6, seed=3)
    value = similarity(student[: len(own)], twins, torch.tensor(own), temperature=temperature).item()
    expected = naive_similarity(student[: len(own)], twins, own, temperature)
    assert value == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_similarity_matches_values_worked_out_by_hand():
    """Swapped orthogonal twins, τ = 1: (e - 1) / (e + 1) per row and way, or (e - 1) / (e + 2) with three."""
    eye, own = torch.eye(2), torch.tensor([0, 1])
    assert similarity(eye.flip(0), eye, own, temperature=1.0).item() == pytest.approx(2 * 0.462117, abs=1e-5)
    # A third twin outside the batch, orthogonal to both.
    three = torch.eye(3)
    value = similarity(three[:2].flip(0), three, own, temperature=1.0).item()
    assert value == pytest.approx(0.364175 + 0.462117, abs=1e-5)


def test_the_temperature_gives_the_wanted_perplexity():
    """Measured from all 6,000 twins, though the search itself starts from a quarter of them."""
    twins = torch.randn(6000, 8, generator=torch.Generator().manual_seed(0))
    temperature = temperature_of(twins, 10.0)
    units = torch.nn.functional.normalize(twins, dim=-1)
    named = []
    for some in units.split(1000):
        p = (some @ units.T / temperature).softmax(-1)
        named.append(torch.special.entr(p).sum(-1).exp())
    assert torch.cat(named).mean().item() == pytest.approx(10, rel=0.05)


def test_rows_in_the_direction_of_their_twins_get_no_gradient():
    """However similar two twins are, and however long the states are."""
    twins = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]])
    student = (3 * twins).requires_grad_()
    value = similarity(student, twins, torch.arange(3), temperature=0.05)
    value.backward()
    assert value.item() == pytest.approx(0.0, abs=1e-6)
    assert student.grad.abs().max().item() == pytest.approx(0.0, abs=1e-6)


def test_similarity_ignores_vector_length():
    """It uses cosines."""
    student, twins = pair(4, 6)
    own = torch.arange(4)
    assert similarity(10 * student, twins / 10, own, temperature=0.05).item() == pytest.approx(
        similarity(student, twins, own, temperature=0.05).item(), rel=1e-5
    )


# --- the top-k tokens and the remaining mass


def bucketed64(student, teacher, k):
    """Return the float64 probabilities of both over the teacher's top k and the rest, by a plain loop."""
    p, q = teacher.double().softmax(-1), student.double().softmax(-1)
    ours, theirs = [], []
    for row in range(len(p)):
        kept = p[row].topk(k).indices.tolist()
        others = [v for v in range(p.shape[1]) if v not in kept]
        theirs.append([*p[row, kept].tolist(), sum(p[row, others].tolist())])
        ours.append([*q[row, kept].tolist(), sum(q[row, others].tolist())])
    return torch.tensor(theirs, dtype=torch.float64), torch.tensor(ours, dtype=torch.float64)


def tabled(student, teacher, k, beta=0.5):
    p, q = bucketed64(student, teacher, k)
    m = beta * p + (1 - beta) * q
    return {
        forward_kl: (p * (p / q).log()).sum().item(),
        reverse_kl: (q * (q / p).log()).sum().item(),
        jensen_shannon: (beta * p * (p / m).log() + (1 - beta) * q * (q / m).log()).sum().item(),
    }


@pytest.mark.parametrize(
    ("loss", "nats", "turned"),
    [
        # Teacher 0.6 and 0.4 in two, student 0.2 and 0.8 in two: 0.6 ln 3 + 0.4 ln ½; 0.2 ln ⅓ + 0.8 ln 2
        (forward_kl, 0.381909, 0.334795),
        (reverse_kl, 0.334795, 0.381909),
    ],
)
def test_top_1_and_the_rest_match_values_worked_out_by_hand(loss, nats, turned):
    """The student's other tokens are one outcome, however their mass is split; the direction matters."""
    student, ids = torch.tensor([[0.2, 0.7, 0.1]]).log(), torch.tensor([[0]], dtype=torch.int32)
    teacher = TopK(ids, torch.tensor([[0.6]]).log())
    assert loss(student, teacher).item() == pytest.approx(nats, abs=1e-6)
    teacher, student = TopK(ids, torch.tensor([[0.2]]).log()), torch.tensor([[0.6, 0.1, 0.3]]).log()
    assert loss(student, teacher).item() == pytest.approx(turned, abs=1e-6)


@pytest.mark.parametrize("loss", DIVERGENCES)
@pytest.mark.parametrize(("tokens", "vocab", "k"), [(1, 3, 1), (7, 13, 5), (9, 271, 32)])
def test_top_k_divergences_match_float64(loss, tokens, vocab, k):
    """The reference is a loop over tokens and outcomes in float64."""
    student, teacher = pair(tokens, vocab)
    value = loss(student, TopK.of(teacher, k)).item()
    assert value == pytest.approx(tabled(student, teacher, k)[loss], rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("loss", DIVERGENCES)
@pytest.mark.parametrize("temperature", [0.7, 1.0, 2.0])
def test_all_tokens_kept_equal_the_dense_divergence_and_its_gradient(loss, temperature):
    """k = V, at any temperature, to 1e-6."""
    student, teacher = (x / 3 for x in pair(7, 31))
    found = []
    for said in (teacher, TopK.of(teacher, 31)):
        ours = student.clone().requires_grad_()
        value = loss(ours, said, temperature=temperature)
        value.backward()
        found.append((value.detach(), ours.grad))
    torch.testing.assert_close(found[1], found[0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("loss", DIVERGENCES)
@pytest.mark.parametrize("k", [1, 4, 12, 13])
def test_equal_inputs_give_zero_on_top_k_as_well(loss, k):
    """There is no gradient either."""
    student = (pair(7, 13)[0] / 3).requires_grad_()
    value = loss(student, TopK.of(student.detach(), k))
    value.backward()
    assert value.item() == pytest.approx(0.0, abs=1e-5)
    assert student.grad.abs().max().item() == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("loss", DIVERGENCES)
def test_fewer_outcomes_never_increase_the_divergence(loss):
    """This is the data processing inequality; k = V - 1 is already exact."""
    student, teacher = pair(7, 13)
    values = [loss(student, TopK.of(teacher, k)).item() for k in range(1, 13)]
    dense = loss(student, teacher).item()
    assert all(a < b + 1e-4 for a, b in pairwise(values))
    assert values[-1] == pytest.approx(dense, rel=1e-5)
    assert values[0] < dense - 0.1


@pytest.mark.parametrize("loss", DIVERGENCES)
@pytest.mark.parametrize("k", [None, 1, 3, 5])
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_gradients_equal_finite_differences(loss, k, temperature):
    """gradcheck in float64, dense and on k of five tokens."""
    student, teacher = (x.double() / 3 for x in pair(3, 5))
    if k is not None:
        top = teacher.log_softmax(-1).topk(k)
        teacher = TopK(top.indices, top.values)
    assert torch.autograd.gradcheck(
        lambda s: loss(s, teacher, temperature=temperature), [student.requires_grad_()]
    )


@pytest.mark.parametrize("loss", DIVERGENCES)
@pytest.mark.parametrize("kept", [False, True])
def test_masks_work_as_indices(loss, kept):
    """Tokens left out by a mask add nothing to the sum and get no gradient."""
    student, teacher = pair(7, 13)
    mask = torch.tensor([True, False, True, True, False, False, True])
    said = TopK.of(teacher, 4) if kept else teacher
    student.requires_grad_()
    value = loss(student[mask], said[mask])
    value.backward()
    one_by_one = sum(loss(student[i : i + 1], said[i : i + 1]) for i in (0, 2, 3, 6))
    assert value.item() == pytest.approx(one_by_one.item(), rel=1e-6)
    assert torch.equal(student.grad[~mask], torch.zeros(3, 13))


@pytest.mark.parametrize("loss", DIVERGENCES)
@pytest.mark.parametrize("temperature", [0.5, 4.0])
def test_top_k_at_another_temperature_adds_the_divergence_among_the_kept_tokens(loss, temperature):
    """That is the dense divergence of the two sides' logits of those tokens alone, in any order."""
    student, teacher = pair(3, 13)
    said = TopK.of(teacher, 4)
    kept = (x.gather(1, said.ids.long()) for x in (student, teacher))
    expected = loss(student, said) + loss(*kept, temperature=temperature)
    torch.testing.assert_close(loss(student, said, temperature=temperature), expected)


def test_a_temperature_passes_on_ratios_of_a_nearly_one_hot_top_k_teacher():
    """By hand: p ∝ (1, e⁻⁸, e⁻¹²) is (1, e⁻², e⁻³) at temperature 4; the student swaps the last two."""
    teacher = torch.tensor([[0.0, -8.0, -12.0, -40.0]])
    student = torch.tensor([[0.0, -12.0, -8.0, -40.0]])
    said = TopK.of(teacher, 3)
    assert forward_kl(student, said).item() < 0.002
    whole = 1 + math.exp(-2) + math.exp(-3)
    expected = 16 * (math.exp(-2) - math.exp(-3)) / whole
    more = forward_kl(student, said, temperature=4.0) - forward_kl(student, said)
    assert more.item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("loss", DIVERGENCES)
def test_a_certain_teacher_and_a_sure_but_wrong_student_stay_finite(loss):
    """Neither a remaining mass of zero nor a student's probability of exp(-200) gives NaN."""
    student = torch.tensor([[200.0, 0.0, 0.0, 0.0]], requires_grad=True)
    value = loss(student, TopK.of(torch.tensor([[0.0, 200.0, 1.0, 0.0]]), 2))
    value.backward()
    assert value.isfinite() and student.grad.isfinite().all()


# --- tokens of probability zero


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_tokens_of_probability_zero_change_nothing(divergence):
    """Padded tokens have the logit -inf on both sides: value and gradients equal those without them."""
    student, teacher = pair(5, 9)
    ruled_out = torch.full((5, 3), -math.inf)
    longer = torch.cat([student, ruled_out], 1).requires_grad_()
    plain = student.clone().requires_grad_()
    found = divergence(longer, torch.cat([teacher, ruled_out], 1))
    expected = divergence(plain, teacher)
    torch.testing.assert_close(found, expected)
    found.backward()
    expected.backward()
    torch.testing.assert_close(longer.grad, torch.cat([plain.grad, torch.zeros(5, 3)], 1))
    kept = TopK.of(torch.cat([teacher, ruled_out], 1), 4)
    torch.testing.assert_close(divergence(longer, kept), divergence(plain, kept))


def test_a_token_that_only_the_teacher_can_produce_gives_no_nan():
    """Its loss is huge instead."""
    found = forward_kl(torch.tensor([[0.0, -math.inf]]), torch.tensor([[0.0, 0.0]]))
    assert found > 1e20
