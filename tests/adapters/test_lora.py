"""Tree LoRA: exact properties of paths, and equality with PEFT's LoRA."""

import copy
import json
import re

import numpy as np
import pytest
import torch
from peft import PeftModel

from isogloss.adapters.lora import TreeLora, nearest_of_rank
from isogloss.adapters.routing import Routing
from isogloss.adapters.tree import build_tree
from isogloss.data.chat import Encoded
from isogloss.errors import ConfigError
from isogloss.model.decoder import last_hidden
from isogloss.teacher.signals import Signal
from isogloss.train.batch import Sample, collate, twins_of
from isogloss.train.objective import Weights, batch_losses

LANGUAGES = ["ru", "bg", "es", "fr", "sw"]
KINDS = [
    "llama", "qwen3", "gemma3_text", "mistral", "gpt2", "bloom", "xglm", "phi3", "mixtral", "qwen3_moe",
]  # fmt: skip
IDS = torch.arange(5 * 7).view(5, 7) * 3 % 250 + 5
RANKS = {"root": 2, "family": 1, "language": 2}


def logits(model, ids=IDS):
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False).logits


def gradients(adapters, languages, ids=IDS):
    adapters.model.zero_grad()
    with adapters.on(languages):
        model = adapters.model
        model(input_ids=ids, use_cache=False).logits.float().logsumexp(-1).square().sum().backward()
    return {name: p.grad.clone() for name, p in adapters.parameters().items()}


def rows_of(name, tensor, rows):
    return tensor[list(rows)] if "lora_A" in name else tensor[:, list(rows)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_mixed_batch_equals_separate_batches(tiny, five, student, kind):
    """One forward pass over five languages equals five separate ones."""
    adapters = student(tiny(kind), five)
    with adapters.on(LANGUAGES) as model:
        mixed = logits(model)
    for number, code in enumerate(LANGUAGES):
        with adapters.on([code]) as model:
            torch.testing.assert_close(
                mixed[number : number + 1], logits(model, IDS[number : number + 1]), rtol=1e-5, atol=2e-5
            )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens", [1, 7, 40])
@pytest.mark.parametrize("languages", [[*LANGUAGES, "en"], ["sw"] * 6])
def test_inference_matches_training(tiny, five, student, languages, tokens, dtype):
    """Rows are masked without gradients and gathered with them; outputs differ by rounding only."""
    adapters = student(tiny(dtype=dtype), five)
    ids = torch.arange(6 * tokens).view(6, tokens) * 3 % 250 + 5
    with adapters.on(languages) as model:
        learning = model(input_ids=ids, use_cache=False).logits.detach()
    with torch.no_grad(), adapters.on(languages):
        answering = logits(adapters.model, ids)
    plain = logits(adapters.model, ids)
    apart, changed = ((one - learning).float().norm() for one in (answering, plain))
    assert apart < (1e-4 if dtype == torch.float32 else 0.1) * changed


def test_every_language_uses_its_own_rows(tiny, five, student):
    """The same token IDs give six different outputs along six paths."""
    adapters = student(tiny(), five)
    with adapters.on([*LANGUAGES, "en"]) as model:
        out = logits(model, IDS[:1].expand(6, -1))
    assert min((out[i] - out[j]).abs().max() for i in range(6) for j in range(i)) > 1e-2


def test_the_gradient_of_shared_rows_is_deterministic():
    """Five languages add to the root's rows in a fixed order, even with two threads."""
    routing = Routing(build_tree(LANGUAGES, ranks={"root": 8, "family": 4, "language": 4}))
    routing.set(LANGUAGES * 8, torch.device("cpu"))
    torch.manual_seed(0)
    weight, slope = torch.randn(routing.tree.rank, 704), torch.randn(40, 16, 704)

    def gradient():
        leaf = weight.clone().requires_grad_(True)
        (routing.gather(leaf, torch.float32, scaled=True) * slope).sum().backward()
        return leaf.grad

    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        first = gradient()
        assert all(torch.equal(gradient(), first) for _ in range(300))
    finally:
        torch.set_num_threads(threads)


def test_gathered_rows_are_cached_without_gradients_and_never_stale():
    """Row 0 is the root, 1 and 2 are leaves; a changed weight, a new path or gradients bypass the cache."""
    routing = Routing(build_tree(["es", "sw"], ranks={"root": 1, "family": 0, "language": 1}))
    weight = torch.nn.Parameter(torch.tensor([[1.0], [2.0], [3.0]]))
    routing.set(["es", "sw", "es"], torch.device("cpu"))
    with torch.no_grad():
        first = routing.gather(weight, torch.float32)
        assert first.tolist() == [[[1], [2]], [[1], [3]], [[1], [2]]]
        assert routing.gather(weight, torch.float32) is first
        assert routing.gather(weight, torch.bfloat16).dtype == torch.bfloat16
        weight[2] = 4.0
        assert routing.gather(weight, torch.float32).tolist() == [[[1], [2]], [[1], [4]], [[1], [2]]]
        routing.set(["sw"], torch.device("cpu"))
        assert routing.gather(weight, torch.float32).tolist() == [[[1], [4]]]
    assert routing.gather(weight, torch.float32).requires_grad
    routing.clear()
    with torch.no_grad(), pytest.raises(RuntimeError, match="no path is set"):
        routing.gather(weight, torch.float32)


@pytest.mark.parametrize("kind", ["qwen3", "gpt2", "qwen3_moe"])
def test_a_path_can_be_kept_over_two_steps(tiny, five, student, kind):
    """The second step neither reuses the graph of the first nor reads stale rows."""
    found = []
    for again in (False, True):
        adapters = student(tiny(kind), five)
        optimiser = torch.optim.SGD(adapters.parameters().values(), lr=0.1)
        adapters.set_path(LANGUAGES)
        for step in range(2):
            if step and again:
                adapters.set_path(LANGUAGES)
            optimiser.zero_grad()
            last_hidden(adapters.model, IDS, torch.ones_like(IDS)).square().mean().backward()
            optimiser.step()
        found.append(adapters.state())
    for name, ours in found[0].items():
        torch.testing.assert_close(ours, found[1][name], rtol=1e-5, atol=1e-7)
    assert not torch.equal(ours, student(tiny(kind), five).state()[name])


def test_one_backward_over_two_forwards_sums_their_gradients(tiny, five, student):
    adapters, other = student(tiny(), five), student(tiny(), five)
    mask = torch.ones_like(IDS)
    with adapters.on(LANGUAGES) as model:
        (last_hidden(model, IDS, mask).square().sum() + last_hidden(model, IDS + 1, mask).sum()).backward()
    with other.on(LANGUAGES) as model:
        last_hidden(model, IDS, mask).square().sum().backward()
    with other.on(LANGUAGES) as model:
        last_hidden(model, IDS + 1, mask).sum().backward()
    for name, p in adapters.parameters().items():
        torch.testing.assert_close(p.grad, other.parameters()[name].grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_adapters_off_is_bit_identical_to_the_reference_model(tiny, five, student, kind, dtype):
    """Nothing is added, not even zero, also after the adapters were on."""
    model = tiny(kind, dtype=dtype)
    before = logits(model)
    adapters = student(model, five)
    assert torch.equal(logits(adapters.model), before)
    with adapters.on(LANGUAGES):
        assert not torch.equal(logits(adapters.model), before)
    assert torch.equal(logits(adapters.model), before)


def test_adapters_are_off_after_an_error(tiny, five, student):
    """A failed forward pass does not leave a path set."""
    model = tiny()
    before = logits(model)
    adapters = student(model, five)
    with pytest.raises(IndexError), adapters.on(["sw"]):
        logits(adapters.model, torch.tensor([[9999]]))
    assert torch.equal(logits(adapters.model), before)


def test_new_adapters_change_nothing(tiny, five, student):
    """lora_B starts at zero, so training starts at the reference model."""
    model = tiny()
    before = logits(model)
    with student(model, five, filled=False).on(LANGUAGES) as on:
        torch.testing.assert_close(logits(on), before, rtol=0, atol=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_off_the_path_are_exactly_zero(tiny, five, student, kind, dtype):
    """Spanish and Swahili rows only give gradients to the root, both families and both leaves."""
    adapters = student(tiny(kind, dtype=dtype), five)
    on = {row for code in ("es", "sw") for node in five.path(code) for row in node.rows}
    off = sorted(set(range(five.rank)) - on)
    assert len(on) == 8 and len(off) == 7  # of 2 + 3 · 1 + 5 · 2
    for name, gradient in gradients(adapters, ["es", "sw", "es"], IDS[:3]).items():
        assert torch.equal(rows_of(name, gradient, off), torch.zeros_like(rows_of(name, gradient, off))), name
        assert all(rows_of(name, gradient, [row]).any() for row in on), name


def test_only_adapters_are_trained(tiny, five, student):
    """The base weights are frozen, and the adapters are float32 over a bfloat16 model."""
    adapters = student(tiny(dtype=torch.bfloat16), five)
    learning = {name for name, p in adapters.model.named_parameters() if p.requires_grad}
    assert learning == set(adapters.parameters())
    assert {p.dtype for p in adapters.parameters().values()} == {torch.float32}


def test_nodes_off_the_path_stay_bit_identical(tiny, five, student):
    """AdamW without weight decay moves only the nodes on the paths of the batch."""
    adapters = student(tiny(), five)
    optimiser = torch.optim.AdamW(list(adapters.parameters().values()), lr=0.01, weight_decay=0.0)
    before = copy.deepcopy({n.name: adapters.node_parameters(n) for n in five.nodes})
    gradients(adapters, ["es", "sw"], IDS[:2])
    optimiser.step()
    moved = {
        node.name
        for node in five.nodes
        if any(not torch.equal(v, before[node.name][k]) for k, v in adapters.node_parameters(node).items())
    }
    assert moved == {n.name for code in ("es", "sw") for n in five.path(code)}


def test_english_uses_only_the_roots_rows(tiny, five, student):
    """Beside longer paths, English is padded with rows that have no effect."""
    adapters = student(tiny(), five)
    with adapters.on(["ru", "en"]) as model:
        mixed = logits(model, IDS[:2])[1]
    for node in five.nodes[1:]:
        for tensor in adapters.node_parameters(node).values():
            tensor.fill_(1e6)
    with adapters.on(["en"]) as model:
        torch.testing.assert_close(logits(model, IDS[1:2])[0], mixed, rtol=1e-5, atol=2e-5)
    root = set(five.nodes[0].rows)
    for name, gradient in gradients(adapters, ["en"], IDS[:1]).items():
        off = sorted(set(range(five.rank)) - root)
        assert torch.equal(rows_of(name, gradient, off), torch.zeros_like(rows_of(name, gradient, off))), name


def test_english_is_the_reference_model_when_the_root_is_empty(tiny, student):
    """In a flat tree English has no rows, and its padding gets no gradient."""
    tree = build_tree(("es", "sw"), families="flat", ranks=RANKS)
    model = tiny()
    before = logits(model)
    adapters = student(model, tree)
    with adapters.on(["en"] * 5) as on:
        torch.testing.assert_close(logits(on), before, rtol=0, atol=0)
    assert not any(g.any() for g in gradients(adapters, ["en"] * 5).values())


@pytest.mark.parametrize("kind", KINDS)
def test_an_exported_language_is_an_ordinary_peft_adapter(tiny, five, student, tmp_path, kind):
    """`PeftModel.from_pretrained` gives the same greedy responses and the same logits, also when merged."""
    adapters = student(tiny(kind), five)
    for code in ("ru", "sw"):
        adapters.export(code, tmp_path / code, base_model="../../tuned")
        settings = json.loads((tmp_path / code / "adapter_config.json").read_text())
        assert (settings["r"], settings["lora_alpha"]) == (5, 10.0)
        loaded = PeftModel.from_pretrained(tiny(kind), str(tmp_path / code)).eval()
        options = {"max_new_tokens": 6, "do_sample": False, "attention_mask": torch.ones_like(IDS)}
        with adapters.on([code] * 5) as model:
            on = logits(model)
            assert (on - logits(loaded)).abs().max() <= 1e-4
            assert torch.equal(
                model.generate(input_ids=IDS, **options), loaded.generate(input_ids=IDS, **options)
            )
        assert (on - logits(loaded.merge_and_unload())).abs().max() <= 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_an_exported_language_over_a_bfloat16_model_differs_by_rounding(tiny, five, student, tmp_path, kind):
    """PEFT computes adapters in float32: the difference is below a twelfth of the adapter's effect."""
    model = tiny(kind, dtype=torch.bfloat16)
    off = logits(model)
    adapters = student(model, five)
    adapters.export("sw", tmp_path, base_model="../../tuned")
    loaded = PeftModel.from_pretrained(tiny(kind, dtype=torch.bfloat16), str(tmp_path)).eval()
    with adapters.on(["sw"] * 5) as model:
        on = logits(model)
    assert (on - logits(loaded)).float().norm() < (on - off).float().norm() / 12


@pytest.mark.parametrize(
    ("kind", "targets"),
    [
        ("llama", ("q_proj", "down_proj")), ("phi3", ("qkv_proj",)), ("bloom", ("dense_h_to_4h",)),
        ("gpt2", ("c_attn",)),
        ("xglm", ("fc1",)), ("mixtral", ("q_proj", "o_proj")),
    ],
)  # fmt: skip
def test_adapters_of_the_lowest_layers_leave_the_others_alone(tiny, five, tmp_path, kind, targets):
    """Two of three layers have adapters, whatever the architecture calls its layers; so has the export."""
    adapters = TreeLora(tiny(kind), five, targets=targets, scaling=2.0, layers=2)
    numbers = [re.findall(r"\.(?:layers|h)\.(\d+)\.", name) for name in adapters.parameters()]
    assert sorted(numbers) == sorted([["0"], ["1"]] * 2 * len(targets))
    for name, p in adapters.parameters().items():
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.1)
    adapters.export("sw", tmp_path, base_model="../../tuned")
    loaded = PeftModel.from_pretrained(tiny(kind), str(tmp_path)).eval()
    with adapters.on(["sw"] * 5) as model:
        on = logits(model)
    torch.testing.assert_close(on, logits(loaded), rtol=0, atol=1e-4)
    assert (on - logits(tiny(kind))).abs().max() > 0.1


def test_an_adapter_on_a_parameter_is_refused(tiny, five):
    """PEFT would add the rows of all languages to a router's weight, in every layer."""
    with pytest.raises(ConfigError) as caught:
        TreeLora(tiny("qwen3_moe"), five, targets=("q_proj", "gate"), scaling=2.0, layers=2)
    assert str(caught.value) == (
        "distill.adapter.target_modules: PEFT would add all languages' rows to the parameter "
        "model.layers.0.mlp.gate.weight; name linear layers outside experts and routers"
    )


def test_an_adapter_on_a_module_without_a_batch_dimension_is_refused(tiny, five):
    """The path of each token would be unknown."""
    adapters = TreeLora(tiny("qwen2_moe"), five, targets=("shared_expert_gate",), scaling=2.0)
    with adapters.on(LANGUAGES), pytest.raises(ConfigError) as caught:
        logits(adapters.model)
    assert str(caught.value) == (
        "distill.adapter.target_modules: a module with 24 input features receives tokens without a batch "
        "dimension, as routers and experts do; name linear layers outside them"
    )


def test_a_refit_to_a_smaller_rank_is_the_best_approximation(tiny, five, student, tmp_path):
    """Each product equals numpy's truncated SVD; at full rank nothing is lost."""
    adapters = student(tiny(), five)
    full = adapters.path_state("sw")
    for rank in (1, 3, 5):
        fitted = nearest_of_rank(full, rank)
        assert fitted.keys() == full.keys()
        for name in (name for name in full if "lora_A" in name):
            other = name.replace("lora_A", "lora_B")
            left, values, right = np.linalg.svd((full[other] @ full[name]).numpy(), full_matrices=False)
            expected = left[:, :rank] * values[:rank] @ right[:rank]
            assert fitted[name].shape[0] == fitted[other].shape[1] == rank
            np.testing.assert_allclose((fitted[other] @ fitted[name]).numpy(), expected, atol=1e-5)
    assert adapters.export("sw", tmp_path, "base", max_rank=3) == 3
    loaded = PeftModel.from_pretrained(tiny(), str(tmp_path))
    assert loaded.peft_config["default"].r == 3


def test_a_mixed_batch_generates_what_each_language_generates(tiny, five, student):
    """Paths also hold in the one-token steps with the KV cache."""
    adapters = student(tiny(), five)
    options = {"max_new_tokens": 6, "do_sample": False}
    with adapters.on(LANGUAGES) as model:
        mixed = model.generate(input_ids=IDS, attention_mask=torch.ones_like(IDS), **options)
    for number, code in enumerate(LANGUAGES):
        ids = IDS[number : number + 1]
        with adapters.on([code]) as model:
            alone = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **options)
        assert torch.equal(mixed[number : number + 1], alone)


def test_a_saved_state_loads_into_new_adapters(tiny, five, student):
    """The round trip is exact."""
    first, second = student(tiny(), five, seed=1), student(tiny(), five, seed=2)
    with first.on(LANGUAGES) as model:
        before = logits(model)
    second.load_state({name: tensor.clone() for name, tensor in first.state().items()})
    with second.on(LANGUAGES) as model:
        assert torch.equal(logits(model), before)


def test_a_state_of_other_modules_is_refused(tiny, five, student):
    """One missing tensor is enough."""
    adapters = student(tiny(), five)
    state = dict(adapters.state())
    state.popitem()
    with pytest.raises(ValueError, match="these adapters belong to a model or tree with different shapes"):
        adapters.load_state(state)


def test_a_state_of_another_tree_is_refused(tiny, five, student):
    """Same modules but other ranks: one row is not broadcast into all fifteen."""
    adapters = student(tiny(), five)
    other = student(tiny(), build_tree(("sw",), ranks={"root": 1, "family": 0, "language": 0}))
    with pytest.raises(ValueError, match="these adapters belong to a model or tree with different shapes"):
        adapters.load_state(other.state())


def test_a_forward_pass_without_a_path_is_refused(tiny, five, student):
    """Enabling PEFT's layers by hand is not enough."""
    adapters = student(tiny(), five)
    for layer in adapters.layers():
        layer._disable_adapters = False
    with pytest.raises(RuntimeError) as caught:
        logits(adapters.model)
    assert str(caught.value) == "no path is set; wrap the forward pass in adapters.on(languages)"


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_gives_the_same_gradients(tiny, five, student, reentrant):
    """The recomputation uses the path of its forward pass, and the hidden-state term keeps its gradient."""

    def run(checkpointing):
        adapters = student(tiny(), five)
        model = adapters.model
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
            model.enable_input_require_grads()
        model.train()
        torch.manual_seed(0)
        samples = [
            Sample(
                Encoded(tuple(row[:4]), tuple(row[4:])), code, n, Signal(torch.randn(3, 24), torch.randn(24))
            )
            for n, (row, code) in enumerate(zip(IDS.tolist(), LANGUAGES, strict=True))
        ]
        weights, twins = Weights(1.0, 1.0, 1.0, layer=2), twins_of(samples)
        parts = batch_losses(model, collate(samples, 0), weights, adapters, twins)
        sum(parts.values()).backward()
        hidden = {n: p.grad.clone() for n, p in adapters.parameters().items()}
        assert set(parts) == {"ce", "kl", "similarity"}
        return hidden

    plain, recomputed = run(False), run(True)
    for name, gradient in plain.items():
        torch.testing.assert_close(recomputed[name], gradient, rtol=1e-5, atol=1e-5)
