"""Self-checks: each passes on a correct setup and catches the fault that it is for."""

from types import SimpleNamespace

import pytest
import torch

from isogloss.data import chat
from isogloss.data.chat import Encoded
from isogloss.model import readout
from isogloss.model.readout import Readout
from isogloss.teacher.rows import Row
from isogloss.teacher.signals import teacher_signals
from isogloss.train.batch import collate, samples_of
from isogloss.train.checks import PathsOnly, check_teacher, divergence_by_language
from isogloss.train.objective import Weights, batch_losses

OPTIONS = {"pad_id": 0, "layer": 1, "kind": "hidden", "k": 4}


def row(number, code):
    made = torch.Generator().manual_seed(number)

    def ids(length):
        return tuple(torch.randint(5, 250, (length,), generator=made).tolist())

    return Row(f"{number}/{code}", code, number, Encoded(ids(3 + number), ids(2)), ids(9), ids(4))


ROWS = [row(number, code) for number, code in enumerate(("sw", "ru", "en", "sw", "es", "fr"))]


@pytest.mark.parametrize("kind", ["hidden", "top_k"])
@pytest.mark.parametrize("architecture", ["qwen3", "gemma3_text"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_aligned_teacher_passes_and_nothing_is_left_behind(tiny, five, student, kind, architecture, dtype):
    """Adapters are off afterwards, and every module is in its place."""
    adapters = student(tiny(architecture, dtype=dtype), five)
    before = [name for name, _ in adapters.model.named_modules()]
    check_teacher(adapters, ROWS, **(OPTIONS | {"kind": kind}))
    assert [name for name, _ in adapters.model.named_modules()] == before
    assert all(layer.disable_adapters for layer in adapters.layers())


def test_a_teacher_one_position_late_is_caught(tiny, five, student, monkeypatch):
    """The classic bug: every response token is scored by the state that has already read it."""

    def late(starts, lengths, width):
        return chat.response_positions(starts, lengths, width) + 1

    monkeypatch.setattr("isogloss.teacher.reading.response_positions", late)
    with pytest.raises(RuntimeError, match=r"self-check: teacher and student differ by"):
        check_teacher(student(tiny(), five), ROWS, **OPTIONS)


def test_a_teacher_in_training_mode_is_caught(tiny, five, student, monkeypatch):
    """Dropout would make teacher and student differ by noise."""
    adapters = student(tiny(), five)
    adapters.model.train()
    monkeypatch.setattr(adapters.model, "eval", lambda: adapters.model)
    with pytest.raises(RuntimeError, match=r"self-check: the teacher is in training mode"):
        check_teacher(adapters, ROWS, **OPTIONS)


def test_noise_in_the_teacher_is_caught(tiny, five, student):
    """Two passes over the same rows differ, whatever the model's mode is."""
    adapters = student(tiny(), five)
    layer = adapters.model.get_base_model().model.layers[0]
    layer.register_forward_hook(lambda module, inputs, output: output + 1e-3 * torch.randn_like(output))
    with pytest.raises(RuntimeError, match=r"self-check: two teacher forwards on the same batch differ"):
        check_teacher(adapters, ROWS, **OPTIONS)


def test_adapters_that_are_never_off_are_caught(tiny, five, student, monkeypatch):
    """A teacher with adapters is not the reference model."""
    adapters = student(tiny(), five)
    adapters.set_path(["sw"] * 4)
    monkeypatch.setattr(adapters, "off", lambda: None)
    with pytest.raises(RuntimeError, match=r"self-check: with adapters off the model is not the reference"):
        check_teacher(adapters, [r for r in ROWS if r.language != "en"], **OPTIONS)


def checker(adapters, languages):
    found = PathsOnly(adapters, {"fr"})  # from before training
    found.on_train_begin(SimpleNamespace(world_size=1), SimpleNamespace(global_step=0), None)
    found.read.update(languages)
    return found


def move(adapters, name):
    for p in adapters.node_parameters(adapters.tree.by_name[name]).values():
        p += 1.0


def test_a_node_off_the_paths_that_changes_is_caught(tiny, five, student):
    """It is caught at the first step that changes anything."""
    adapters = student(tiny(), five)
    check = checker(adapters, ["sw"])
    check.on_step_end(None, None, None)
    move(adapters, "sw")
    move(adapters, "ru")
    with pytest.raises(RuntimeError) as caught:
        check.on_step_end(None, None, None)
    assert str(caught.value) == "self-check: ru has changed, but no row read so far uses it"


def test_nodes_on_the_paths_may_change(tiny, five, student):
    """After the first change nothing is compared any more."""
    adapters = student(tiny(), five)
    check = checker(adapters, ["sw"])
    move(adapters, "root")
    move(adapters, "sw")
    check.on_step_end(None, None, None)
    move(adapters, "ru")
    check.on_step_end(None, None, None)
    assert check.before == {}


def test_a_first_step_that_gives_nan_is_caught(tiny, five, student):
    """NaN differs from itself, so it would pass for a legitimate change."""
    adapters = student(tiny(), five)
    check = checker(adapters, ["sw"])
    for p in adapters.node_parameters(adapters.tree.by_name["sw"]).values():
        p += float("nan")
    with pytest.raises(RuntimeError) as caught:
        check.on_step_end(None, None, None)
    assert str(caught.value) == "self-check: the first step has made sw nan or infinite"


def test_a_resumed_run_is_not_compared(tiny, five, student):
    """The optimiser's moments also move nodes that no row uses."""
    check = PathsOnly(student(tiny(), five), set())
    check.on_train_begin(SimpleNamespace(world_size=1), SimpleNamespace(global_step=3), None)
    assert check.before == {}


def test_divergences_before_training_are_means_over_each_languages_tokens(tiny, five, student):
    """Equal to the loss on each language's rows alone; English is compared on its own prompt."""
    adapters = student(tiny(), five)
    adapters.off()
    samples = samples_of(ROWS, teacher_signals(adapters.model, ROWS, layer=1, pad_id=0))
    found = divergence_by_language(adapters, samples, Weights(), 0)
    # The loss's temperature does not change the unit.
    assert divergence_by_language(adapters, samples, Weights(temperature=2.0), 0) == found
    assert list(found) == ["sw", "ru", "en", "es", "fr"]
    with torch.no_grad():
        alone = batch_losses(adapters.model, collate([samples[0], samples[3]], 0), Weights(kl=1.0), adapters)
        english = batch_losses(adapters.model, collate([samples[2]], 0), Weights(), adapters)
    assert found["sw"] == pytest.approx(float(alone["kl"]) / 4, rel=1e-4)
    assert found["en"] == pytest.approx(float(english["replay"]) / 2, rel=1e-4)


@pytest.mark.parametrize("kind", ["hidden", "top_k"])
@pytest.mark.parametrize("wrong", [Readout(scale=2.0), Readout(cap=1.0), Readout(scale=0.5)])
def test_logits_that_differ_from_the_models_are_caught(tiny, five, student, monkeypatch, kind, wrong):
    """Teacher and student would share the fault and agree; the model's own forward pass does not have it."""
    adapters = student(tiny(), five)
    monkeypatch.setitem(readout._seen, adapters.model.get_base_model(), wrong)
    expected = r"^self-check: the teacher's distribution is off by \d\.\d+ nats per token from the model's"
    with pytest.raises(RuntimeError, match=expected):
        check_teacher(adapters, ROWS, **(OPTIONS | {"kind": kind}))


def test_a_student_one_position_off_is_caught(tiny, five, student, monkeypatch):
    """The teacher is off by the same position, so that both agree."""

    def late(starts, lengths, width):
        return chat.response_positions(starts, lengths, width) - 1

    monkeypatch.setattr("isogloss.teacher.reading.response_positions", late)
    monkeypatch.setattr("isogloss.train.batch.response_positions", late)
    with pytest.raises(RuntimeError, match=r"^self-check: the cross-entropy is off by \d+\.\d+ nats per"):
        check_teacher(student(tiny(), five), ROWS, **OPTIONS)
