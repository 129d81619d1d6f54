"""Signals: stored ones equal those of the live teacher."""

import json

import pytest
import torch
from safetensors.torch import load_file

from isogloss.data.chat import Encoded
from isogloss.losses.topk import TopK
from isogloss.model.cost import StageCost
from isogloss.model.decoder import head
from isogloss.teacher import reading
from isogloss.teacher.cache import Cache
from isogloss.teacher.reading import groups
from isogloss.teacher.rows import Row
from isogloss.teacher.signals import teacher_signals
from isogloss.train.batch import collate, samples_of
from isogloss.train.objective import Weights, batch_losses

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
    """Prompts and responses of different lengths, in order: the head of stored states gives the logits."""
    model = tiny(kind)
    found = teacher_signals(model, ROWS, layer=2, pad_id=0, batch=batch)
    for one, signal in zip(ROWS, found, strict=True):
        ids = torch.tensor([[*one.teacher_prompt, *one.student.response]])
        with torch.no_grad():
            live = model(input_ids=ids, use_cache=False).logits[0]
        expected = live[len(one.teacher_prompt) - 1 : -1]
        torch.testing.assert_close(head(model, signal.teacher), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layer", [1, 2])
def test_a_twin_is_the_mean_state_of_its_prompt(tiny, layer):
    """Over real tokens only, at the requested layer."""
    model = tiny()
    for one, signal in zip(ROWS, teacher_signals(model, ROWS, layer=layer, pad_id=0), strict=True):
        with torch.no_grad():
            states = model(input_ids=torch.tensor([one.twin_prompt]), output_hidden_states=True).hidden_states
        torch.testing.assert_close(signal.twin, states[layer][0].mean(0), rtol=1e-4, atol=1e-5)


def test_signals_have_no_gradient_and_their_own_memory(tiny):
    """A view would keep a whole batch of states in memory."""
    model = tiny().train()
    for signal in teacher_signals(model, ROWS, layer=1, pad_id=0):
        assert not signal.teacher.requires_grad and not signal.twin.requires_grad
        assert signal.teacher.untyped_storage().nbytes() == signal.teacher.nbytes
    assert not model.training


def test_equal_twins_are_computed_once(tiny):
    """Five rows of one example: five teacher prompts and one twin."""
    shared = [Row(r.id, r.language, 0, r.student, r.teacher_prompt, (7, 8, 9)) for r in ROWS]
    heard = []
    teacher_signals(tiny(), shared, layer=1, pad_id=0, progress=lambda done, of: heard.append((done, of)))
    assert heard == [(1, 6), (6, 6)]


def test_a_teacher_without_privilege_is_the_student(tiny, five, student):
    """With the student's own prompt and adapters off, the divergence is zero."""
    model = tiny()
    plain = [Row(r.id, r.language, r.meaning, r.student, r.student.prompt, r.twin_prompt) for r in ROWS]
    adapters = student(model, five)
    samples = samples_of(plain, teacher_signals(model, plain, layer=1, pad_id=0))
    with torch.no_grad():
        parts = batch_losses(adapters.model, collate(samples, 0), Weights(kl=1.0))
    assert parts["kl"].item() == pytest.approx(0.0, abs=1e-5)
    on = batch_losses(adapters.model, collate(samples, 0), Weights(kl=1.0), adapters)
    assert on["kl"].item() > 1.0


def shared_rows():
    """Return nine rows of two paths with texts of 12 and 9 tokens; six rows also have a task's 6 tokens."""
    made = torch.Generator().manual_seed(7)

    def ids(length):
        return tuple(torch.randint(5, 250, (length,), generator=made).tolist())

    texts = {"sw": ids(12), "ru": ids(9)}
    task = ids(6)
    rows = []
    for number in range(9):
        code = "sw" if number < 7 else "ru"
        privileged = texts[code] + (task if number < 6 else ()) + ids(3 + number)
        response = Encoded(ids(4), ids(1 + number % 3))
        rows.append(Row(f"{number}", code, number, response, privileged, ids(3)))
    return rows


@pytest.mark.parametrize("kind", ["qwen3", "llama", "mistral", "gemma3_text"])
@pytest.mark.parametrize("batch", [2, 64])
def test_sharing_a_prefix_changes_no_signal(tiny, kind, batch, monkeypatch):
    """In float32, also with a window shorter than a prompt; six rows share the texts and the task."""
    model, rows = tiny(kind), shared_rows()
    if getattr(model.config, "sliding_window", None):
        model.config.sliding_window = 8
    costs, found = (StageCost("plain"), StageCost("shared")), []
    for least, cost in zip((1000, 40), costs, strict=True):  # tokens that sharing must save
        monkeypatch.setattr(reading, "FORWARD", least)
        found.append(teacher_signals(model, rows, layer=1, pad_id=0, batch=batch, cost=cost))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(other.teacher, one.teacher, rtol=1e-4, atol=1e-4)
    assert costs[0].teacher_calls == costs[1].teacher_calls == 9
    # Six prompts begin with 12 + 6 equal tokens, which are saved five times.
    assert costs[0].teacher_tokens - costs[1].teacher_tokens == 5 * 18


def test_rows_are_grouped_by_the_prefix_of_their_prompts(monkeypatch):
    """A run of a path's rows, or its parts, whichever saves more tokens; never a prompt's last token."""
    monkeypatch.setattr(reading, "FORWARD", 0)
    prompts = [(1, 2, 3, 4, n) for n in range(4)] + [(1, 2, 9, 9, 9, n) for n in range(4)] + [(1, 2, 3, 4)]
    codes = ["sw"] * 9
    # All nine share 2 tokens: 16 saved. Four and five share 5 and 3: 15 + 12.
    assert groups(prompts, codes) == [([8, 0, 1, 2, 3], 3), ([4, 5, 6, 7], 5)]
    # Rows of different languages share nothing, whatever their IDs.
    assert groups(prompts[:4], ["sw", "sw", "sw", "ru"]) == [([3], 0), ([0, 1, 2], 4)]
    assert groups([(1, 2, 3)] * 4, ["sw"] * 4) == [([0, 1, 2, 3], 2)]
    # Five rows save 4 · 2 tokens, no more than a forward pass costs; six save 10.
    monkeypatch.setattr(reading, "FORWARD", 8)
    assert groups([(1, 2, 3)] * 5, ["sw"] * 5) == [([0, 1, 2, 3, 4], 0)]
    assert groups([(1, 2, 3)] * 6, ["sw"] * 6) == [([0, 1, 2, 3, 4, 5], 2)]
    monkeypatch.setattr(reading, "FORWARD", 1000)
    assert groups(prompts, codes) == [(list(range(9)), 0)]


@pytest.mark.parametrize("k", [4, 269])
def test_top_k_signals_are_the_live_teachers_likeliest_tokens(tiny, k):
    """IDs are exact, and log-probabilities are as precise as packing allows."""
    model = tiny()
    dense = teacher_signals(model, ROWS, layer=1, pad_id=0)
    found = teacher_signals(model, ROWS, layer=1, pad_id=0, kind="top_k", k=k)
    for one, other in zip(dense, found, strict=True):
        live = TopK.of(head(model, one.teacher), k)
        assert torch.equal(other.teacher.ids, live.ids)
        torch.testing.assert_close(other.teacher.logprobs, live.logprobs, rtol=0, atol=1e-3)
        assert torch.equal(other.twin, one.twin)


def test_losses_do_not_depend_on_the_kind_of_signal(tiny, five, student):
    """With all tokens kept, cross-entropy, divergence and gradients equal those from hidden states."""
    found = []
    for settings in ({}, {"kind": "top_k", "k": 269}):
        adapters = student(tiny(), five)
        adapters.off()
        signals = teacher_signals(adapters.model, ROWS, layer=1, pad_id=0, **settings)
        batch = collate(samples_of(ROWS, signals), 0)
        parts = batch_losses(adapters.model, batch, Weights(kl=1.0), adapters)
        (parts["ce"] + parts["kl"]).backward()
        gradients = torch.cat([p.grad.flatten() for p in adapters.parameters().values()])
        found.append((parts["ce"].detach(), parts["kl"].detach(), gradients))
    torch.testing.assert_close(found[1], found[0], rtol=1e-3, atol=1e-3)


# --- the cache


def cached(model, folder, rows, **settings):
    cost = StageCost("test")
    cache = Cache(folder, {"weights": "some"})
    return teacher_signals(model, rows, layer=1, pad_id=0, cache=cache, cost=cost, **settings), cost


def assert_same_signals(ours, theirs):
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one.twin, other.twin)
        if isinstance(one.teacher, TopK):
            assert torch.equal(one.teacher.ids, other.teacher.ids)
            assert torch.equal(one.teacher.logprobs, other.teacher.logprobs)
        else:
            assert torch.equal(one.teacher, other.teacher)


@pytest.mark.parametrize("settings", [{}, {"kind": "top_k", "k": 4}])
def test_a_second_pass_costs_nothing_and_is_bit_identical(tiny, tmp_path, settings):
    """So is one without a cache."""
    model, rows = tiny(), shared_rows()
    first, spent = cached(model, tmp_path, rows, **settings)
    second, again = cached(model, tmp_path, rows, **settings)
    assert (spent.teacher_calls, spent.cached_hits) == (9, 0)
    assert spent.teacher_tokens > 0 and spent.cache_bytes_written > 0
    assert (again.teacher_calls, again.teacher_tokens, again.cached_hits) == (0, 0, 9)
    assert (again.cache_bytes_written, again.flops) == (0, 0)
    assert_same_signals(first, second)
    assert_same_signals(first, teacher_signals(model, rows, layer=1, pad_id=0, **settings))


def test_kinds_and_k_are_cached_separately(tiny, tmp_path):
    """Twins do not depend on the teacher's kind."""
    model, rows = tiny(), shared_rows()
    cached(model, tmp_path, rows)
    top, cost = cached(model, tmp_path, rows, kind="top_k", k=4)
    assert cost.teacher_calls == 9 and top[0].teacher.ids.shape[1] == 4
    assert cached(model, tmp_path, rows, kind="top_k", k=3)[1].teacher_calls == 9
    assert len(list(tmp_path.glob("*/*.safetensors"))) == 4
    for manifest in tmp_path.glob("*/manifest.json"):
        assert json.loads(manifest.read_text())["weights"] == "some"


def test_a_killed_pass_resumes_where_it_was(tiny, tmp_path, monkeypatch):
    """Killed between two batches: only the rest is computed, and all signals are bit-identical."""
    monkeypatch.setattr(reading, "SHARD", 1)
    model, rows = tiny(), shared_rows()
    whole, _ = cached(model, tmp_path / "whole", rows, batch=2)

    def kill(done, of):
        if done >= 9 + 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached(model, tmp_path / "broken", rows, batch=2, progress=kill)
    found, cost = cached(model, tmp_path / "broken", rows, batch=2)
    assert 0 < cost.teacher_calls < 9 and cost.teacher_calls + cost.cached_hits == 9
    assert_same_signals(whole, found)


def test_only_rows_with_new_content_are_computed(tiny, tmp_path):
    """Other IDs and names of the rows change nothing."""
    rows = shared_rows()
    _, cost = cached(tiny(), tmp_path, [*rows[:3], *rows[:3]])
    assert cost.teacher_calls == 3
    renamed = [Row(f"x{r.id}", r.language, 0, r.student, r.teacher_prompt, r.twin_prompt) for r in rows]
    _, cost = cached(tiny(), tmp_path, renamed)
    assert (cost.teacher_calls, cost.cached_hits) == (6, 3)


@pytest.mark.parametrize("k", [8, 32])
def test_a_stored_pair_takes_four_bytes(tiny, tmp_path, k):
    """128 bytes per token at k = 32, besides 36 bytes per row and a header."""
    rows = shared_rows()
    cached(tiny(), tmp_path, rows, kind="top_k", k=k)
    tokens = sum(len(row.student.response) for row in rows)
    sizes = [
        {name: tensor.nbytes for name, tensor in load_file(shard).items()}
        for shard in tmp_path.glob("*/*.safetensors")
    ]
    assert {"keys": 9 * 32, "lengths": 9 * 4, "values": tokens * 4 * k} in sizes
