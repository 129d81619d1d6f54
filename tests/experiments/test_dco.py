"""Direct consistency optimisation: its loss by hand, its two answers, and log-odds as in transformers."""

import pytest
import torch

pytest.importorskip("trl", reason="the baselines need the extra isogloss[rl]")

from experiments.dco import Pair, dco_loss, log_odds, pair_of
from isogloss.data.chat import Encoded
from isogloss.data.examples import ParallelExample, Turn
from isogloss.teacher.rows import Row

EXAMPLE = ParallelExample(
    "1",
    "closed",
    {"en": Turn("Is it?", "yes"), "sw": Turn("Je?", "ndiyo")},
    options={"en": {"a": "yes", "b": "no"}, "sw": {"a": "ndiyo", "b": "la"}},
)
IDS = {"yes": (5, 9), "no": (6, 9), "ndiyo": (7, 8, 9), "la": (4, 9), "else": (3, 9)}


def row(response: str) -> Row:
    return Row("1/sw", "sw", 0, Encoded((1, 2), IDS[response]), (), (2, 3))


def test_the_loss_is_the_papers():
    """o_θ 1.0 and 0.5, o 0.2 and 0.4, β 2: |0.8 - 0.2| + |0.1 - 0.4|; zero at the optimum."""
    reference = torch.tensor([[0.2, 0.4]])
    assert dco_loss(torch.tensor([[1.0, 0.5]]), reference, beta=2.0).item() == pytest.approx(0.9)
    assert dco_loss(torch.tensor([[0.2 + 0.2, 0.4 + 0.4]]), reference, beta=2.0).item() == pytest.approx(0.0)


def test_the_two_answers_are_the_response_and_another_of_the_task():
    """In the language and in English; a response that is not one of the options makes no pair."""
    found = pair_of(row("ndiyo"), EXAMPLE, IDS.__getitem__, 0)
    assert found == Pair((((1, 2), (7, 8, 9)), ((1, 2), (4, 9)), ((2, 3), (5, 9)), ((2, 3), (6, 9))))
    assert pair_of(row("else"), EXAMPLE, IDS.__getitem__, 0) is None


def test_log_odds_are_those_of_whole_answers(tiny):
    """Compared with transformers' own loss on each answer alone, without padding."""
    model = tiny().eval()
    pair = pair_of(row("ndiyo"), EXAMPLE, IDS.__getitem__, 0)
    assert pair is not None

    def total(prompt, answer):
        ids = torch.tensor([[*prompt, *answer]])
        labels = torch.tensor([[-100] * len(prompt) + list(answer)])
        return -model(input_ids=ids, labels=labels).loss * len(answer)

    with torch.no_grad():
        own_a, own_b, twin_a, twin_b = (total(*text) for text in pair.texts)
        expected = torch.stack([own_a - own_b, twin_a - twin_b])[None]
        torch.testing.assert_close(log_odds(model, [pair], 0), expected, rtol=1e-4, atol=1e-4)
