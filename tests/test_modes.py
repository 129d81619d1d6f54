"""Temporary attention implementations: the same gradients, less memory, and the original restored."""

from contextlib import nullcontext

import pytest
import torch

from isogloss.data.chat import pad
from isogloss.errors import ConfigError
from isogloss.model.attention import LONG, check_compiler, fused_attention, thrifty_attention
from isogloss.model.decoder import last_hidden


def learned(model, ids, mask, context=nullcontext):
    """Return the gradients of all parameters, and the bytes kept for the backward pass besides parameters."""
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
    """Return the IDs and mask of two texts, the second one padded."""
    return pad([list(range(5, 5 + tokens)), list(range(5, 5 + tokens // 2))], 0)


@pytest.mark.parametrize("kind", ["qwen3", "llama", "gemma3_text", "mistral", "mixtral", "phi3", "gpt2"])
def test_thrifty_attention_gives_the_same_gradients_with_less_memory(tiny, kind):
    """Hardly any of the probabilities are kept: 2 rows, 4 heads, 128 x 128, in float32 in three layers."""
    model = tiny(kind)
    model.set_attn_implementation("eager")
    expected, before = learned(model, *texts(LONG))
    found, after = learned(model, *texts(LONG), thrifty_attention)
    assert found.keys() == expected.keys()
    for name in found:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=1e-7)
    assert before - after > 0.85 * 3 * 2 * 4 * LONG * LONG * 4
    assert model.config._attn_implementation == "eager"


def test_short_texts_keep_all_probabilities(tiny):
    """The text is one token shorter than LONG."""
    model = tiny()
    model.set_attn_implementation("eager")
    sizes = [learned(model, *texts(LONG - 1), context)[1] for context in (nullcontext, thrifty_attention)]
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize(("kind", "how"), [("qwen3", "sdpa"), ("bloom", "eager")])
def test_other_attention_is_not_replaced(tiny, kind, how):
    """These are a fused kernel, and an architecture with only its own implementation."""
    model = tiny(kind)
    model.set_attn_implementation(how)
    with thrifty_attention(model):
        assert model.config._attn_implementation == how


def test_fused_attention_can_be_used_within_thrifty_attention(tiny):
    """Measuring during training does this; even after an error, the original is restored."""
    model = tiny()
    model.set_attn_implementation("eager")
    with pytest.raises(ZeroDivisionError), thrifty_attention(model):
        with fused_attention(model):
            assert model.config._attn_implementation == "sdpa"
        assert model.config._attn_implementation == "recomputed"
        raise ZeroDivisionError
    assert model.config._attn_implementation == "eager"


def test_compiling_without_a_compiler_is_refused(monkeypatch, tmp_path):
    """A GPU needs no C++ compiler."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", (None, "no-such-compiler"))
    with pytest.raises(ConfigError) as caught:
        check_compiler()
    assert str(caught.value) == (
        "compile is true, but no C++ compiler was found (no-such-compiler); install one, name yours in the "
        "environment variable CXX, or set compile: false"
    )
    found = tmp_path / "mine"
    found.touch(0o755)
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", (None, str(found)))
    check_compiler()
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", (None, "no-such-compiler"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    check_compiler()
