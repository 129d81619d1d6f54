"""Prefix and embedding carriers: exact invariants of paths, equality with reading the texts themselves."""

import copy

import pytest
import torch
from peft import PeftModel

from isogloss.adapters.generate import complete
from isogloss.adapters.tree import build_tree
from isogloss.adapters.virtual import TreeEmbedding, TreePrefix
from isogloss.data.chat import Encoded
from isogloss.errors import ConfigError
from isogloss.evaluate.likelihood import _score
from isogloss.model.decoder import capture, last_hidden
from isogloss.teacher.signals import Signal
from isogloss.train.batch import Sample, collate, twins_of
from isogloss.train.objective import Weights, batch_losses

LANGUAGES = ["ru", "bg", "es", "fr", "sw"]
KINDS = [
    "llama", "qwen3", "gemma3_text", "mistral", "gpt2", "bloom", "xglm", "phi3", "mixtral", "qwen3_moe",
]  # fmt: skip
BOTH = [TreePrefix, TreeEmbedding]
IDS = torch.arange(5 * 7).view(5, 7) * 3 % 250 + 5
LENGTHS = {"root": 2, "family": 1, "language": 2}

every_model = pytest.mark.parametrize("kind", KINDS)
every_type = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
both = pytest.mark.parametrize("make", BOTH)


def logits(model, ids=IDS, mask=None):
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=mask, use_cache=False).logits


def gradients(carrier, languages, ids):
    with carrier.on(languages) as model:
        model(input_ids=ids, use_cache=False).logits.float().logsumexp(-1).square().sum().backward()
    return {name: p.grad.clone() for name, p in carrier.parameters().items()}


@every_type
@every_model
@both
def test_a_mixed_batch_equals_separate_batches(tiny, five, make, kind, dtype):
    """Five languages in one forward, or in five; English, whose path is shorter, beside a longer one."""
    carrier = make(tiny(kind, dtype=dtype), five)
    close = {"rtol": 1e-5, "atol": 2e-5} if dtype == torch.float32 else {"rtol": 0.02, "atol": 0.05}
    codes = [*LANGUAGES[:4], "en"]
    with carrier.on(codes) as model:
        mixed = logits(model)
    assert mixed.shape == (5, 7, 269)
    for number, code in enumerate(codes):
        with carrier.on([code]) as model:
            torch.testing.assert_close(mixed[number], logits(model, IDS[number : number + 1])[0], **close)


@every_type
@every_model
@both
def test_carriers_off_is_the_reference_model_to_the_bit(tiny, five, make, kind, dtype):
    """The model is not touched, and stays so after the carriers were on."""
    model = tiny(kind, dtype=dtype)
    before = logits(model)
    carrier = make(model, five)
    assert torch.equal(logits(carrier.model), before)
    with carrier.on(LANGUAGES):
        assert (logits(model) - before).abs().max() > 0.1
    assert torch.equal(logits(model), before)


@every_type
@every_model
@both
def test_gradients_off_the_path_are_exactly_zero(tiny, five, make, kind, dtype):
    """A batch of Spanish and Swahili moves the root, both families and both leaves, and nothing else."""
    carrier = make(tiny(kind, dtype=dtype), five)
    on = sorted({row for code in ("es", "sw") for node in five.path(code) for row in node.rows})
    off = sorted(set(range(five.rank)) - set(on))
    assert (len(on), len(off)) == (8, 7)
    for name, gradient in gradients(carrier, ["es", "sw", "es"], IDS[:3]).items():
        assert not gradient[off].any(), name
        assert gradient[on].flatten(1).any(1).all(), name


@every_model
@both
def test_generation_with_and_without_a_cache_agree(tiny, five, make, kind):
    """Behind a cache the positions are there already; without one they are put before every step."""
    carrier = make(tiny(kind), five)
    options = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS), "max_new_tokens": 5}
    with carrier.on(LANGUAGES) as model:
        cached, whole = (model.generate(**options, do_sample=False, use_cache=c) for c in (True, False))
    assert torch.equal(cached, whole)


@pytest.mark.parametrize("kind", ["qwen3", "gpt2", "bloom"])
@both
def test_prompts_of_different_lengths_generate_what_each_generates_alone(tiny, five, tokenizer, make, kind):
    """Left padding stands between virtual positions and text and counts for nothing."""
    model = tiny(kind)
    carrier = make(model, five)
    prompts, codes = [[9, 8, 7], [30, 31, 32, 33, 34, 35], [60, 61]], ["ru", "sw", "en"]
    options = {"carrier": carrier, "max_new_tokens": 5}
    together = complete(model, tokenizer, prompts, languages=codes, **options)
    for number, (prompt, code) in enumerate(zip(prompts, codes, strict=True)):
        alone = complete(model, tokenizer, [prompt], languages=[code], **options)[0]
        assert torch.equal(together[number, : len(alone)], alone)


@every_model
@both
def test_begun_from_texts_is_reading_the_texts(tiny, five, make, kind):
    """Root, family and leaf texts before the prompt: same logits, whatever the model does with positions."""
    model = tiny(kind)
    texts = dict(zip((node.name for node in five.path("es")), ([11, 12], [13], [14, 15]), strict=True))
    read = torch.cat([torch.tensor([[11, 12, 13, 14, 15]]).expand(5, -1), IDS], 1)
    wanted = logits(model, read)[:, 5:]
    carrier = make(model, five)
    carrier.start("text", texts)
    with carrier.on(["es"]) as student:
        torch.testing.assert_close(logits(student), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings(
    "ignore:Position ids are not supported"
)  # PEFT's own generation calls its forward so
@every_model
@both
def test_an_exported_language_is_pefts_own(tiny, five, make, kind, tmp_path):
    """`PeftModel.from_pretrained` gives the same logits and the same greedy answers."""
    carrier = make(tiny(kind), five)
    assert carrier.export("sw", tmp_path, "../../tuned") == 5
    loaded = PeftModel.from_pretrained(tiny(kind), str(tmp_path)).eval()
    ones = torch.ones_like(IDS)
    options = {"input_ids": IDS, "attention_mask": ones, "max_new_tokens": 5, "do_sample": False}
    with carrier.on(["sw"] * 5) as model:
        assert (logits(model) - logits(loaded, mask=ones)[:, -7:]).abs().max() <= 1e-4
        assert torch.equal(model.generate(**options), loaded.generate(**options))


@both
def test_a_text_is_cut_or_repeated_to_the_nodes_length(tiny, make):
    """Five ids give their first three; two are read again from the first."""
    tree = build_tree(("es",), ranks={"root": 3, "family": 0, "language": 3})
    carriers = [make(tiny(), tree) for _ in range(2)]
    carriers[0].start("text", {"root": [7, 8, 9, 10, 11], "es": [20, 21]})
    carriers[1].start("text", {"root": [7, 8, 9], "es": [20, 21, 20]})
    for name, rows in carriers[0].state().items():
        assert torch.equal(rows, carriers[1].state()[name])


@both
def test_a_child_may_begin_as_its_parent(tiny, make):
    """The root reads its text; below it rows are its own, repeated."""
    tree = build_tree(("es",), ranks={"root": 2, "family": 1, "language": 3})
    carrier = make(tiny(), tree)
    carrier.start("parent", {"root": [7, 8], "es": [20, 21]})
    for rows in carrier.state().values():
        assert torch.equal(rows[2], rows[0])
        assert torch.equal(rows[3:], rows[[2, 2, 2]])


@both
def test_random_rows_differ_and_are_drawn_from_the_seed(tiny, five, make):
    """A node without a text stays random too."""
    states = []
    for seed in (1, 1, 2):
        model = tiny()
        torch.manual_seed(seed)
        carrier = make(model, five)
        carrier.start("text", {})
        states.append(next(iter(carrier.state().values())))
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])
    assert len(states[0].flatten(1).unique(dim=0)) == five.rank


@both
def test_captured_layers_and_last_states_are_of_the_tokens_alone(tiny, five, make):
    """Seven positions in, seven out: at a layer and at the end they are those behind the virtual ones."""
    model = tiny()
    carrier = make(model, five)
    carrier.start("text", {node.name: [20 + node.start, 21 + node.start] for node in five.nodes})
    family, leaf = five.path("sw")[1:]
    before = torch.tensor([[20, 21, 20 + family.start, 20 + leaf.start, 21 + leaf.start]])
    read = torch.cat([before.expand(5, -1), IDS], 1)
    with torch.no_grad(), capture(model, 2) as wanted:
        end = last_hidden(model, read, torch.ones_like(read))
    with carrier.on(["sw"] * 5) as student, torch.no_grad(), capture(student, 2) as found:
        last = last_hidden(student, IDS, torch.ones_like(IDS))
    torch.testing.assert_close(found[0], wanted[0][:, 5:], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(last, end[:, 5:], rtol=1e-4, atol=1e-4)


@both
def test_losses_of_a_mixed_batch_are_the_sum_of_its_rows(tiny, five, make):
    """Response positions stay where they are, beside padding and beside English, which has a shorter path."""
    model = tiny()
    carrier = make(model, five)
    made = torch.Generator().manual_seed(0)
    samples = []
    for number, (code, prompt, response) in enumerate([("ru", 3, 2), ("sw", 6, 1), ("en", 2, 4)]):
        ids = torch.randint(5, 250, (prompt + response,), generator=made).tolist()
        signal = Signal(torch.randn(response, 24, generator=made), torch.randn(24, generator=made))
        samples.append(Sample(Encoded(tuple(ids[:prompt]), tuple(ids[prompt:])), code, number, signal))
    weights = Weights(1.0, 1.0, 0.0, 1.0, layer=2)
    whole = batch_losses(model, collate(samples, 0), weights, carrier)
    alone = [batch_losses(model, collate([one], 0), weights, carrier) for one in samples]
    for name in ("ce", "kl", "retain"):
        total = sum(parts[name] for parts in alone if name in parts)
        torch.testing.assert_close(whole[name], total, rtol=1e-4, atol=1e-4)
    hidden = batch_losses(
        model, collate(samples, 0), Weights(hidden=1.0, layer=2), carrier, twins_of(samples)
    )
    hidden["hidden"].backward()
    assert all(p.grad[0].any() for n, p in carrier.parameters().items() if not n.endswith("_2"))


@both
def test_options_are_scored_behind_the_virtual_positions(tiny, five, make):
    """A cache that is cropped between options gives what one forward over prompt and option gives."""
    model = tiny()
    carrier = make(model, five)
    prompts, options = [[9, 8, 7], [30, 31, 32, 33]], [[[40, 1], [41, 42, 1]], [[50, 51, 1], [52, 1]]]
    carrier.set_path(["ru", "sw"])
    with torch.no_grad():
        scores = _score(model, prompts, options, 0)
    for number, code in enumerate(["ru", "sw"]):
        for place, option in enumerate(options[number]):
            read = torch.tensor([[*prompts[number], *option]])
            with carrier.on([code]) as student:
                told = logits(student, read)[0].log_softmax(-1)
            begins = len(prompts[number]) - 1
            wanted = sum(told[begins + n, token].item() for n, token in enumerate(option))
            assert scores[number][place] == pytest.approx(wanted, abs=1e-3)


@both
def test_a_larger_tree_takes_over_every_row_and_learns_the_new_ones_alone(tiny, five, make):
    """Portuguese joins: one optimiser step later every old language answers as before, to the bit."""
    first = make(tiny(), five)
    with first.on(LANGUAGES) as model:
        before = logits(model)
    families = five.families
    grown = build_tree((*LANGUAGES, "pt"), families=families | {"pt": families["es"]}, ranks=LENGTHS)
    second = make(tiny(), grown)
    second.load_nodes(first.state(), five)
    new = [node for node in grown.nodes if node.name not in five.by_name]
    assert [node.name for node in new] == ["pt"]
    second.start("parent", {}, new)
    family = grown.path("pt")[1]
    for rows in second.state().values():
        assert torch.equal(rows[new[0].start], rows[family.start])
    second.learn_only(new)
    optimiser = torch.optim.AdamW(list(second.parameters().values()), lr=0.1, weight_decay=0.0)
    began = copy.deepcopy(second.node_parameters(new[0]))
    gradients(second, ["pt", "es"], IDS[:2])
    optimiser.step()
    assert all(not torch.equal(rows, began[name]) for name, rows in second.node_parameters(new[0]).items())
    with second.on(LANGUAGES) as model:
        assert torch.equal(logits(model), before)


@both
def test_a_saved_state_loads_into_new_carriers(tiny, five, make):
    """The round trip is exact; a state of another tree is refused."""
    first, second = make(tiny(), five), make(tiny(), five)
    with first.on(LANGUAGES) as model:
        before = logits(model)
    second.load_state({name: tensor.clone() for name, tensor in first.state().items()})
    with second.on(LANGUAGES) as model:
        assert torch.equal(logits(model), before)
    other = make(tiny(), build_tree(("sw",), ranks={"root": 1, "family": 0, "language": 0}))
    with pytest.raises(ValueError, match="these carriers belong to a model or tree of another shape"):
        first.load_state(other.state())


@both
def test_a_path_without_positions_is_the_reference_model_to_the_bit(tiny, make):
    """English in a flat set has nothing before it."""
    tree = build_tree(("es", "sw"), families="flat", ranks=LENGTHS)
    model = tiny()
    before = logits(model)
    carrier = make(model, tree)
    with carrier.on(["es"] * 2) as student:
        logits(student, IDS[:2, :3])
    with carrier.on(["en"] * 5) as student:
        assert torch.equal(logits(student), before)


@both
def test_a_path_for_other_rows_is_refused(tiny, five, make):
    """Two languages for five rows is a mistake of the caller's."""
    carrier = make(tiny(), five)
    with (
        pytest.raises(RuntimeError, match="a path is set for 2 rows and 5 are read"),
        carrier.on(["es", "sw"]),
    ):
        logits(carrier.model)


def test_gradient_checkpointing_gives_the_same_gradients_to_soft_tokens(tiny, five):
    """The recomputation begins behind the embeddings, so nothing of the path is read twice."""
    found = []
    for checkpointing in (False, True):
        carrier = TreeEmbedding(tiny(), five)
        if checkpointing:
            carrier.model.gradient_checkpointing_enable({"use_reentrant": False})
        carrier.model.train()
        torch.manual_seed(0)
        carrier.load_state({"embedding": torch.randn(five.rank, 24)})
        found.append(gradients(carrier, LANGUAGES, IDS)["embedding"])
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-5)


def test_a_prefix_for_a_layer_without_keys_is_refused(five):
    """A state-space model has none."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        "mamba", vocab_size=269, hidden_size=24, num_hidden_layers=2, state_size=4, intermediate_size=48
    )
    with pytest.raises(ConfigError) as caught:
        TreePrefix(AutoModelForCausalLM.from_config(config), five)
    assert str(caught.value) == (
        "distill.adapter.type: prefix needs keys and values in every layer, and layer 1 of MambaModel has "
        "none; take lora or embedding"
    )
