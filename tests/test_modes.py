"""Attention that a decoder has for a while: what is learned through it, what it keeps, what stays."""

from contextlib import nullcontext

import pytest
import torch

from isogloss.data.chat import pad
from isogloss.errors import ConfigError
from isogloss.model.attention import LONG, check_compiler, fused_attention, thrifty_attention
from isogloss.model.decoder import last_hidden


def learned(model, ids, mask, context=nullcontext):
    """Gradients of all parameters, and bytes kept for backward beside them."""
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    model.zero_grad()
    with context(model), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = last_hidden(model, ids, mask).square().mean()
        size = sum(t.untyped_storage().nbytes() for at, t in kept.items() if at not in parameters)
        loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}, size


def texts(tokens):
    """Two, the second padded."""
    return pad([list(range(5, 5 + tokens)), list(range(5, 5 + tokens // 2))], 0)


@pytest.mark.parametrize("kind", ["qwen3", "llama", "gemma3_text", "mistral", "mixtral", "phi3", "gpt2"])
def test_attention_that_keeps_less_learns_the_same(tiny, kind):
    """Hardly any of its probabilities is kept: 2 rows of 4 heads of 128 x 128 in float32 in three layers."""
    model = tiny(kind)
    model.set_attn_implementation("eager")
    expected, before = learned(model, *texts(LONG))
    found, after = learned(model, *texts(LONG), thrifty_attention)
    assert found.keys() == expected.keys()
    for name in found:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=1e-7)
    assert before - after > 0.85 * 3 * 2 * 4 * LONG * LONG * 4
    assert model.config._attn_implementation == "eager"


def test_short_texts_keep_all(tiny):
    """One token less than is long."""
    model = tiny()
    model.set_attn_implementation("eager")
    sizes = [learned(model, *texts(LONG - 1), context)[1] for context in (nullcontext, thrifty_attention)]
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize(("kind", "how"), [("qwen3", "sdpa"), ("bloom", "eager")])
def test_other_attention_stays(tiny, kind, how):
    """A fused kernel, and an architecture that has but its own."""
    model = tiny(kind)
    model.set_attn_implementation(how)
    with thrifty_attention(model):
        assert model.config._attn_implementation == how


def test_what_only_reads_in_between_reads_fused(tiny):
    """As measuring during training does; after an error too all is as before."""
    model = tiny()
    model.set_attn_implementation("eager")
    with pytest.raises(ZeroDivisionError), thrifty_attention(model):
        with fused_attention(model):
            assert model.config._attn_implementation == "sdpa"
        assert model.config._attn_implementation == "recomputed"
        raise ZeroDivisionError
    assert model.config._attn_implementation == "eager"


def test_compiling_without_a_compiler_is_refused(monkeypatch, tmp_path):
    """Before hours are spent; a GPU's code needs none of them."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", (None, "no-such-compiler"))
    with pytest.raises(ConfigError) as caught:
        check_compiler()
    assert str(caught.value) == (
        "compile is true and there is no C++ compiler (no-such-compiler); install one, name yours in the "
        "environment variable CXX, or set compile: false"
    )
    found = tmp_path / "mine"
    found.touch(0o755)
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", (None, str(found)))
    check_compiler()
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", (None, "no-such-compiler"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    check_compiler()
