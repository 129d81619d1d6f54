"""Signals: what is stored is what the teacher says live."""

import pytest
import torch

from isogloss.data.chat import Encoded
from isogloss.distill.rows import Row
from isogloss.distill.signal import hidden_signals
from isogloss.distill.trainer import Weights, batch_losses, collate, samples_of
from isogloss.model import head

SIZES = [(9, 3, 4, 2), (2, 1, 1, 5), (17, 6, 3, 2), (4, 2, 7, 3), (11, 5, 2, 1)]


def row(number, privileged, prompt, response, twin):
    made = torch.Generator().manual_seed(number)

    def ids(length):
        return tuple(torch.randint(5, 250, (length,), generator=made).tolist())

    return Row(f"{number}", "sw", number, Encoded(ids(prompt), ids(response)), ids(privileged), ids(twin))


ROWS = [row(number, *sizes) for number, sizes in enumerate(SIZES)]


@pytest.mark.parametrize("kind", ["qwen3", "llama", "mistral", "gemma3_text"])
@pytest.mark.parametrize("batch", [2, 64])
def test_a_stored_signal_is_the_live_teachers_logits(tiny, kind, batch):
    """Prompts and responses of mixed lengths, in their order: the head of the states is what was said."""
    model = tiny(kind)
    found = hidden_signals(model, ROWS, layer=2, pad_id=0, batch=batch)
    for one, signal in zip(ROWS, found, strict=True):
        ids = torch.tensor([[*one.teacher_prompt, *one.student.response]])
        with torch.no_grad():
            live = model(input_ids=ids, use_cache=False).logits[0]
        expected = live[len(one.teacher_prompt) - 1 : -1]
        torch.testing.assert_close(head(model, signal.teacher), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layer", [1, 2])
def test_a_twin_is_the_mean_state_of_its_prompt(tiny, layer):
    """Over real tokens only, at the layer that was asked for."""
    model = tiny()
    for one, signal in zip(ROWS, hidden_signals(model, ROWS, layer=layer, pad_id=0), strict=True):
        with torch.no_grad():
            states = model(input_ids=torch.tensor([one.twin_prompt]), output_hidden_states=True).hidden_states
        torch.testing.assert_close(signal.twin, states[layer][0].mean(0), rtol=1e-4, atol=1e-5)


def test_signals_carry_no_gradient_and_their_own_memory(tiny):
    """A view would keep a whole batch of states alive."""
    model = tiny().train()
    for signal in hidden_signals(model, ROWS, layer=1, pad_id=0):
        assert not signal.teacher.requires_grad and not signal.twin.requires_grad
        assert signal.teacher.untyped_storage().nbytes() == signal.teacher.nbytes
    assert not model.training


def test_equal_twins_are_read_once(tiny):
    """Five rows of one example: five teacher prompts and one twin."""
    shared = [Row(r.id, r.language, 0, r.student, r.teacher_prompt, (7, 8, 9)) for r in ROWS]
    heard = []
    hidden_signals(tiny(), shared, layer=1, pad_id=0, progress=lambda done, of: heard.append((done, of)))
    assert heard == [(1, 6), (6, 6)]


def test_a_teacher_without_privilege_is_the_student(tiny, five, student):
    """Reading the student's own prompt, with carriers off, the divergence is zero."""
    model = tiny()
    plain = [Row(r.id, r.language, r.meaning, r.student, r.student.prompt, r.twin_prompt) for r in ROWS]
    carrier = student(model, five)
    samples = samples_of(plain, hidden_signals(model, plain, layer=1, pad_id=0))
    with torch.no_grad():
        parts = batch_losses(carrier.model, collate(samples, 0), Weights(kl=1.0))
    assert parts["kl"].item() == pytest.approx(0.0, abs=1e-5)
    on = batch_losses(carrier.model, collate(samples, 0), Weights(kl=1.0), carrier)
    assert on["kl"].item() > 1.0
