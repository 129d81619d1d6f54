"""Counted FLOPs against torch's own counter."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.utils.flop_counter import FlopCounterMode
from transformers import Qwen3Config, Qwen3ForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

from isogloss.adapters.decode import decode
from isogloss.adapters.lora import TreeLora
from isogloss.adapters.tree import build_tree
from isogloss.data.chat import pad
from isogloss.model.cost import Meter
from isogloss.model.decoder import states_up_to

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def model() -> Qwen3ForCausalLM:
    """Return the demo's shape with two layers, so wide that uncounted operations hardly matter."""
    config = Qwen3Config(
        vocab_size=2_000, hidden_size=256, intermediate_size=704, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=4, head_dim=64, tie_word_embeddings=True,
    )  # fmt: skip
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    return Qwen3ForCausalLM(config)


def counted(run) -> float:
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def test_a_training_step_of_a_lora_is_counted():
    """It is the forward and backward pass of a PEFT model, with the head at every position."""
    ids = torch.randint(2_000, (4, 48))
    peft = get_peft_model(model(), LoraConfig(r=16, target_modules=list(TARGETS), task_type="CAUSAL_LM"))
    meter = Meter(peft)

    def step() -> None:
        peft(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids, use_cache=False).loss.backward()

    with meter.counting():
        expected = counted(step)
    assert meter.flops == pytest.approx(expected, rel=0.05)
    assert meter.forward_tokens == meter.backward_tokens == 4 * 48


def test_a_token_uses_some_experts_of_a_mixture():
    """Two of eight routed experts per layer, as transformers' loop over experts computes them."""
    config = Qwen3MoeConfig(
        vocab_size=2_000, hidden_size=256, moe_intermediate_size=352, num_hidden_layers=2, num_experts=8,
        num_experts_per_tok=2, num_attention_heads=4, num_key_value_heads=4, head_dim=64,
    )  # fmt: skip
    config._attn_implementation, config._experts_implementation = "eager", "eager"
    mixture, ids = Qwen3MoeForCausalLM(config), torch.randint(2_000, (4, 48))
    meter = Meter(mixture)
    with meter.counting(), torch.no_grad():
        expected = counted(lambda: mixture(input_ids=ids, use_cache=False))
    assert meter.flops == pytest.approx(expected, rel=0.05)


def test_without_gradients_only_a_forward_pass_is_counted():
    """Calls outside `counting` are not counted."""
    ids = torch.randint(2_000, (4, 48))
    plain = model()
    meter = Meter(plain)
    plain(input_ids=ids)
    with meter.counting(), torch.no_grad():
        expected = counted(lambda: plain(input_ids=ids, use_cache=False))
    assert meter.flops == pytest.approx(expected, rel=0.05)
    assert (meter.forward_tokens, meter.backward_tokens) == (4 * 48, 0)


def test_generation_with_a_cache_is_counted():
    """The prompt is read once, then one token per step that attends to all earlier ones."""
    plain = model()
    plain.generation_config.eos_token_id = None
    meter = Meter(plain)
    prompts = [list(range(10, 50)), list(range(30, 50))]

    def draw() -> None:
        ids, mask = pad(prompts, 0, "left")
        decode(plain, ids, mask, ends=(), pad=0, max_new_tokens=6)

    with meter.counting(), torch.no_grad():
        expected = counted(draw)
    assert meter.flops == pytest.approx(expected, rel=0.05)
    assert meter.forward_tokens == 2 * (40 + 5)
    assert meter.generated == 2 * 6


def test_only_the_path_of_a_token_in_the_tree_is_counted():
    """The meter is given a path's share of the tree; torch counts what the path's layers really multiply."""
    tree = build_tree(["sw", "es", "ur"], ranks={"root": 8, "family": 4, "language": 4})
    adapters = TreeLora(model(), tree, targets=TARGETS, scaling=2.0)
    meter = Meter(adapters.model, tree.path_rank() / tree.rank)
    ids = torch.randint(2_000, (3, 48))

    def step() -> None:
        adapters.set_path(["sw", "es", "ur"])
        adapters.model(input_ids=ids, labels=ids, use_cache=False).loss.backward()

    with meter.counting():
        expected = counted(step)
    assert meter.flops == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("layer", [1, 2])
def test_layers_above_the_requested_one_are_not_counted(layer):
    """Their weights, adapters and attention do not count; the tokens still count as read."""
    tree = build_tree(["sw", "es", "ur"], ranks={"root": 8, "family": 4, "language": 4})
    adapters = TreeLora(model(), tree, targets=TARGETS, scaling=2.0)
    meter = Meter(adapters.model, tree.path_rank() / tree.rank)
    ids = torch.randint(2_000, (3, 48))

    def read() -> None:
        adapters.set_path(["sw"] * 3)
        states_up_to(adapters.model, ids, torch.ones_like(ids), [layer])

    with meter.counting(), torch.no_grad():
        expected = counted(read)
    assert meter.flops == pytest.approx(expected, rel=0.05)
    assert meter.tokens == meter.forward_tokens == 3 * 48
    with meter.counting(), torch.no_grad():
        before = meter.flops
        expected = counted(lambda: adapters.model(input_ids=ids, use_cache=False))
    assert meter.flops - before == pytest.approx(expected, rel=0.05)  # a full forward pass counts in full
