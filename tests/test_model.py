"""What is needed from any decoder: its layers, its hidden states, its head."""

from contextlib import ExitStack

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from isogloss.data.chat import pad
from isogloss.errors import ConfigError
from isogloss.losses.fused import frozen_head
from isogloss.model.decoder import capture, head, last_hidden, layers_of, mean_pool, readout, states_up_to
from isogloss.model.load import check_logits, load_model, load_tokenizer, pick_dtype
from isogloss.model.readout import Readout

IDS, MASK = pad([[5, 6, 7, 8], [9, 10]], 0)
SCALED = {
    "gemma2": ({"final_logit_softcapping": 3.0}, Readout(1.0, 3.0)),
    "gemma4_text": ({"final_logit_softcapping": 5.0}, Readout(1.0, 5.0)),
    "nanochat": ({"final_logit_softcapping": 2.0}, Readout(1.0, 2.0)),
    "recurrent_gemma": ({"logits_soft_cap": 2.0, "lru_width": 24}, Readout(1.0, 2.0)),
    "granite": ({"logits_scaling": 8.0}, Readout(0.125)),
    "hyperclovax": ({"logits_scaling": 0.125}, Readout(0.125)),
    "cohere": ({"logit_scale": 0.0625}, Readout(0.0625)),
    "cohere2_moe": ({"logit_scale": 0.25, "num_experts": 2, "num_experts_per_tok": 1}, Readout(0.25)),
    "falcon_h1": (
        {
            "lm_head_multiplier": 0.0195, "mamba_d_ssm": 24, "mamba_n_heads": 4, "mamba_d_head": 6,
            "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_chunk_size": 8,
        },
        Readout(0.0195),
    ),
    "minicpm3": (
        {
            "dim_model_base": 8, "q_lora_rank": 16, "kv_lora_rank": 8, "qk_nope_head_dim": 6,
            "qk_rope_head_dim": 6, "v_head_dim": 6, "num_key_value_heads": 4,
        },
        Readout(1 / 3),
    ),
    "llama4_text": ({"num_local_experts": 2, "intermediate_size_mlp": 40}, Readout()),
    "opt": ({"ffn_dim": 40, "word_embed_proj_dim": 16}, Readout()),
    "gptj": ({"rotary_dim": 4}, Readout()),  # its head has a bias
}  # fmt: skip
"""By architecture: settings of what it does after its head, and the expected readout."""


@pytest.fixture
def scaled():
    def make(kind):
        sizes = {
            "vocab_size": 61, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6, "initializer_range": 0.3,
            "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2,
        }  # fmt: skip
        torch.manual_seed(0)
        config = AutoConfig.for_model(kind, **(sizes | SCALED[kind][0]))
        return AutoModelForCausalLM.from_config(config).eval()

    return make


@torch.no_grad()
@pytest.mark.parametrize("kind", ["qwen3", "llama", "mistral", "gemma3_text"])
@pytest.mark.parametrize("tie", [True, False])
def test_the_head_of_the_last_hidden_states_gives_the_models_logits(tiny, kind, tie):
    """They are bit-identical, as the operations are the same."""
    model = tiny(kind, tie=tie)
    expected = model(input_ids=IDS, attention_mask=MASK, use_cache=False).logits
    assert torch.equal(head(model, last_hidden(model, IDS, MASK).flatten(0, 1)), expected.flatten(0, 1))


@pytest.mark.parametrize("kind", list(SCALED))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_head_scales_and_caps_like_its_architecture(scaled, kind, dtype):
    """Scale and cap are measured, not read from a setting; the frozen head of the losses and the check of the
    loaded weights agree."""
    model = scaled(kind).to(dtype).requires_grad_(False)
    found = readout(model)
    assert found.cap == SCALED[kind][1].cap
    assert found.scale == pytest.approx(SCALED[kind][1].scale, rel=1e-6)
    expected = model(input_ids=IDS, attention_mask=MASK, use_cache=False).logits.flatten(0, 1).float()
    states = last_hidden(model, IDS, MASK).flatten(0, 1)
    near = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 2e-2}
    torch.testing.assert_close(head(model, states).float(), expected, **near)
    fixed = frozen_head(model)
    assert fixed is not None
    torch.testing.assert_close(fixed.logits(states).float(), expected, **near)
    check_logits(model, "it")


def test_the_readout_is_measured_without_weights_or_changes_to_the_model(scaled):
    """It also works on the meta device and fires no hooks."""
    model = scaled("granite")
    heard = []
    for module in model.modules():
        module.register_forward_hook(lambda *_: heard.append(1))
    before = {name: (type(m), id(m), dict(vars(m))) for name, m in model.named_modules()}
    assert readout(model) == readout(model.to("meta")) == Readout(0.125)
    after = {name: (type(m), id(m), dict(vars(m))) for name, m in model.named_modules()}
    assert not heard and before.keys() == after.keys()
    assert all(before[name][:2] == after[name][:2] for name in before)
    with torch.device("meta"):
        assert readout(AutoModelForCausalLM.from_config(model.config)) == Readout(0.125)


@pytest.mark.parametrize("kind", ["bert", "ernie"])
def test_unsupported_logits_are_refused(kind):
    """These models have a layer between the last hidden states and the head."""
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 40}
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(kind, vocab_size=61, is_decoder=True, **sizes)
    )
    with pytest.raises(ConfigError) as caught:
        readout(model)
    assert str(caught.value) == (
        f"model: {type(model).__name__} computes its logits from its last states in an unsupported way "
        "(scaling and capping are supported); use another base"
    )


@pytest.mark.parametrize("fault", [lambda z: z * 1.5, lambda z: z + 3 * (z > 0), lambda z: z[..., :-1]])
def test_logits_that_differ_from_the_models_own_are_refused(tiny, fault):
    """The check decides, even if the measured readout looked right."""
    model = tiny()
    assert readout(model) == Readout()
    own = model.forward

    def forward(*args, **kwargs):
        output = own(*args, **kwargs)
        output.logits = fault(output.logits)
        return output

    check_logits(model, "x")
    model.forward = forward
    with pytest.raises(ConfigError) as caught:
        check_logits(model, "x")
    assert str(caught.value) == (
        "model: x (Qwen3ForCausalLM) computes its logits from its last states in an unsupported way; "
        "use another base"
    )


@torch.no_grad()
@pytest.mark.parametrize("kind", ["qwen3", "llama", "mistral", "gemma3_text"])
@pytest.mark.parametrize("layer", [1, 2])
def test_a_captured_layer_equals_the_hidden_state_of_transformers(tiny, five, student, kind, layer):
    """Layer 1 is the first block's output, with or without adapters."""
    model = tiny(kind)
    expected = model(input_ids=IDS, attention_mask=MASK, output_hidden_states=True).hidden_states[layer]
    for one in (model, student(model, five).model):
        with capture(one, layer) as states:
            last_hidden(one, IDS, MASK)
        assert len(states) == 1 and torch.equal(states[0], expected)
    last_hidden(model, IDS, MASK)
    assert len(states) == 1


def test_a_model_without_the_expected_layers_is_refused(tiny):
    """The message gives the expected number."""
    model = tiny()
    model.config.num_hidden_layers = 7
    with pytest.raises(ConfigError) as caught:
        layers_of(model)
    assert str(caught.value) == "no list of 7 decoder layers was found in Qwen3ForCausalLM"


def test_mean_pooling_ignores_padding_and_uses_float32():
    """The means are (1 + 3) / 2 and 5; a row without tokens is zero, not NaN."""
    hidden = torch.tensor([[[1.0], [3.0]], [[5.0], [9.0]], [[4.0], [4.0]]], dtype=torch.bfloat16)
    found = mean_pool(hidden, torch.tensor([[1, 1], [1, 0], [0, 0]]))
    assert found.dtype == torch.float32
    assert found.tolist() == [[2.0], [5.0], [0.0]]


def test_padding_goes_to_the_requested_side():
    """It goes right for training and left for generation."""
    ids, mask = pad([[7], [8, 9]], 0, "left")
    assert (ids.tolist(), mask.tolist()) == ([[0, 7], [8, 9]], [[0, 1], [1, 1]])
    ids, mask = pad([[7], [8, 9]], 0)
    assert (ids.tolist(), mask.tolist()) == ([[7, 0], [8, 9]], [[1, 0], [1, 1]])


@pytest.mark.parametrize(("name", "dtype"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)])
def test_a_named_dtype_is_used(name, dtype):
    assert pick_dtype(name) == dtype


@pytest.mark.parametrize(("bf16", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_auto_is_bfloat16_if_the_cpu_supports_it(monkeypatch, bf16, dtype):
    """Otherwise it is float32, as bfloat16 would be slower."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bf16)
    assert pick_dtype("auto") == dtype


def test_a_saved_model_and_tokenizer_load(tiny, tokenizer, tmp_path):
    """They load in the requested dtype, in evaluation mode, with the chat template."""
    tiny().save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model, loaded = load_model(str(tmp_path), torch.bfloat16), load_tokenizer(str(tmp_path))
    assert model.dtype == torch.bfloat16 and not model.training
    assert loaded.chat_template == tokenizer.chat_template
    assert loaded("Jambo, dünya")["input_ids"] == tokenizer("Jambo, dünya")["input_ids"]


@pytest.mark.parametrize("load", [load_tokenizer, lambda name: load_model(name, torch.float32)])
def test_a_folder_without_a_model_is_refused(tmp_path, load):
    """The message says what the folder should contain."""
    with pytest.raises(ConfigError) as caught:
        load(str(tmp_path))
    assert str(caught.value) == (
        f"model: {tmp_path} has no config.json; name a folder that save_pretrained wrote"
    )


def test_sharding_needs_several_processes(base, monkeypatch):
    """The error says how to start several, and is raised before the weights are read."""
    monkeypatch.setattr("isogloss.model.load.load_weights", None)
    with pytest.raises(ConfigError, match=r"^shard: needs several processes; start with `accelerate launch`"):
        load_model(str(base), torch.float32, shard=True)


@pytest.mark.parametrize("kind", ["qwen3", "gemma3_text", "gpt2"])
def test_a_forward_pass_stops_at_the_highest_requested_layer(tiny, five, student, kind):
    """The hidden states are bit-identical to a full pass; no layer above runs or gets gradients."""
    model = tiny(kind)
    adapters = student(model, five)
    adapters.set_path(["sw", "ru"])
    run = []
    for number, layer in enumerate(layers_of(model), 1):
        layer.register_forward_hook(lambda *_, number=number: run.append(number))
    with ExitStack() as stack:
        whole = {layer: stack.enter_context(capture(adapters.model, layer)) for layer in (1, 2)}
        last_hidden(adapters.model, IDS, MASK)
    assert run == [1, 2, 3]
    run.clear()
    found = states_up_to(adapters.model, IDS, MASK, (2, 1))
    assert run == [1, 2]
    assert all(torch.equal(found[layer], whole[layer][0]) for layer in (1, 2))
    found[2].sum().backward()
    learned = {name for name, p in adapters.parameters().items() if p.grad is not None and p.grad.any()}
    assert any(".1." in name for name in learned) and not any(".2." in name for name in learned)
    run.clear()
    assert torch.equal(
        states_up_to(adapters.model, IDS, MASK, (3,))[3], states_up_to(adapters.model, IDS, MASK, (1, 3))[3]
    )
    last_hidden(adapters.model, IDS, MASK)
    assert run == [1, 2, 3] * 3


@pytest.mark.parametrize("layer", [0, 4])
def test_a_layer_that_does_not_exist_is_refused(tiny, layer):
    """The error gives the valid range; 0 is not the last layer."""
    with pytest.raises(ConfigError) as caught, capture(tiny(), layer):
        pass
    assert str(caught.value) == f"there is no decoder layer {layer}; the first is 1 and the last 3"
