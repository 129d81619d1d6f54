"""`refuse_misfit` rejects adapters that do not fit the model, from its configuration alone."""

import pytest
import torch

from isogloss.adapters.fit import refuse_misfit
from isogloss.config import load_config, with_overrides
from isogloss.errors import ConfigError
from isogloss.model.decoder import last_hidden
from isogloss.pipeline.folder import ProgressReporter, Run


def settings(tiny, folder, kind, *overrides):
    """Save a model configuration without weights, so that no model could be loaded from the folder."""
    tiny(kind).config.save_pretrained(folder)
    return load_config(None, [f"model={folder}", *overrides])


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        (
            "gpt2",
            "has no q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj; "
            "it has c_attn, c_proj, c_fc",
        ),
        (
            "phi3",
            "has no q_proj, k_proj, v_proj, gate_proj, up_proj; "
            "it has o_proj, qkv_proj, gate_up_proj, down_proj",
        ),
    ],
)
def test_missing_target_modules_are_refused(tiny, tmp_path, kind, says):
    """One missing module is enough: adapters on the remaining ones would be another method."""
    with pytest.raises(ConfigError) as caught:
        refuse_misfit(settings(tiny, tmp_path, kind))
    assert str(caught.value) == f"distill.adapter.target_modules: {tmp_path} {says}"


def test_adapters_on_experts_are_refused(tiny, tmp_path):
    """PEFT would add every language's rows to the experts' shared parameter; layer 0 has no experts."""
    config = settings(tiny, tmp_path, "qwen3_moe", "distill.adapter.target_modules=[q_proj, down_proj]")
    text = (tmp_path / "config.json").read_text()
    assert text.count('"mlp_only_layers": []') == 1
    (tmp_path / "config.json").write_text(text.replace('"mlp_only_layers": []', '"mlp_only_layers": [0]'))
    with pytest.raises(ConfigError) as caught:
        refuse_misfit(config)
    assert str(caught.value) == (
        "distill.adapter.target_modules: PEFT would add all languages' rows to the parameter "
        "model.layers.1.mlp.experts.down_proj; name linear layers outside experts and routers"
    )
    with pytest.raises(
        ConfigError, match=r"^distill.adapter.target_modules: Cannot convert PEFT target\(s\) gate_proj"
    ):
        refuse_misfit(with_overrides(config, ["distill.adapter.target_modules=[gate_proj]"]))


def test_adapters_on_a_shared_expert_are_refused(tiny, tmp_path):
    """Qwen2-MoE's shared expert is a linear layer, but receives the tokens of all batch rows in one axis."""
    config = settings(tiny, tmp_path, "qwen2_moe")
    with pytest.raises(ConfigError) as caught:
        refuse_misfit(with_overrides(config, ["distill.adapter.target_modules=[q_proj, up_proj]"]))
    assert str(caught.value) == (
        "distill.adapter.target_modules: a module with 24 input features receives tokens without a batch "
        "dimension, as routers and experts do; name linear layers outside them"
    )
    refuse_misfit(with_overrides(config, ["distill.adapter.target_modules=[q_proj, o_proj]"]))


def test_adapters_on_more_layers_than_the_model_has_are_refused(tiny, tmp_path):
    """The model has three layers."""
    refuse_misfit(settings(tiny, tmp_path, "llama", "distill.adapter.layers=3"))
    with pytest.raises(ConfigError) as caught:
        refuse_misfit(settings(tiny, tmp_path, "llama", "distill.adapter.layers=4"))
    assert str(caught.value) == f"distill.adapter.layers: {tmp_path} has 3 decoder layers, not 4"


@pytest.mark.parametrize("name", ["distill.similarity_layer", "evaluate.layer"])
def test_a_layer_above_the_last_one_is_refused(tiny, tmp_path, name):
    """The last layer itself is accepted."""
    refuse_misfit(settings(tiny, tmp_path, "qwen3", "distill.adapter.layers=3", f"{name}=3"))
    with pytest.raises(ConfigError) as caught:
        refuse_misfit(settings(tiny, tmp_path, "qwen3", "distill.adapter.layers=3", f"{name}=99"))
    assert str(caught.value) == f"{name}: {tmp_path} has 3 decoder layers, not 99"


@pytest.mark.parametrize(("kind", "modules"), [("gpt2", "c_attn"), ("qwen3_moe", "q_proj, o_proj")])
def test_modules_that_the_model_has_are_accepted(tiny, five, tmp_path, kind, modules):
    """Adapters on them change the hidden states."""
    config = settings(tiny, tmp_path, kind, f"distill.adapter.target_modules=[{modules}]")
    refuse_misfit(config)
    made = Run(config, ProgressReporter()).student(tiny(kind), trained=False, tree=five)
    ids = torch.tensor([[9, 8, 7]])
    states = []
    for rows in (0.0, 1.0):
        for p in made.parameters().values():
            torch.nn.init.constant_(p, rows)
        made.set_path(["sw"])
        states.append(last_hidden(made.model, ids, torch.ones_like(ids)))
    assert states[0].shape == (1, 3, 24) and not torch.equal(*states)
