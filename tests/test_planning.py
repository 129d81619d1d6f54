"""The preflight plan: bytes worked out by hand, FLOPs against torch's counter, advice that works."""

import copy
import json
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    Qwen2Config,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from isogloss.adapters.lora import TreeLora
from isogloss.cli import main
from isogloss.config import load_config
from isogloss.data.chat import Encoded, encode_prompt
from isogloss.data.examples import Turn
from isogloss.errors import ConfigError
from isogloss.evaluate.items import Item, SuiteData
from isogloss.model.cost import Meter, StageCost
from isogloss.model.load import load_tokenizer, skeleton
from isogloss.pipeline.folder import ProgressReporter, Run
from isogloss.plan import advice, evaluation, machine, memory, preflight, stages
from isogloss.plan.advice import _changes, advise
from isogloss.plan.machine import Machine, load_machine
from isogloss.plan.memory import Alive
from isogloss.plan.work import StagePlan, Work
from isogloss.teacher.cache import Cache
from isogloss.train.batch import Sample, collate, samples_of, twins_of
from isogloss.train.objective import Weights, batch_losses
from isogloss.train.order import row_order, training_order
from isogloss.train.stage2 import read_signals

SMALL = (
    "languages.targets=[sw, ur]", "languages.items={high: 8, middle: 8, low: 12}", "data.english_items=60",
    "evaluate.items=14", "evaluate.sentences=10", "tune.epochs=2", "distill.epochs=2",
    "distill.batch_size=8", "tune.batch_size=8",
)  # fmt: skip
BIG = Machine("big", 1, 64 << 30, 1e12, gpu=False, efficiency=0.5, process=0)


@pytest.fixture(scope="module")
def read(tmp_path_factory):
    """A small run whose rows are read once for all tests; the tests only change how it is trained."""
    folder = tmp_path_factory.mktemp("plan") / "run"
    work = Work(load_config(None, (*SMALL, "dtype=float32", f"run={folder}")), BIG)
    assert work.english and work.rows
    return work


def test_files_of_an_earlier_run_in_the_folder_are_ignored(tmp_path):
    """The folder has a finished run of German; the settings name other languages."""
    (tmp_path / "adapters").mkdir()
    state = {"rows": torch.zeros(1)}
    save_file(state, tmp_path / "adapters" / "tree.safetensors", {"families": '{"de": "Germanic"}'})
    work = Work(load_config(None, (*SMALL, "dtype=float32", f"run={tmp_path}")), BIG)
    assert "de" not in {row.language for row in work.rows} and "de" not in work.tree.families


def qwen3(**sizes) -> Qwen3ForCausalLM:
    config = Qwen3Config(**{
        "vocab_size": 300, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "tie_word_embeddings": True,
    } | sizes)  # fmt: skip
    config._attn_implementation = "eager"
    return Qwen3ForCausalLM(config)


# --- bytes


def test_live_bytes_match_a_hand_count():
    """Views and inputs are free, a result counts until it is deleted, and the peak is kept."""
    a = torch.empty(10, 100, device="meta")
    with Alive() as alive:
        b = a + 1
        c = b.T[:5]
        assert alive.now == 4000
        d = b * 2
        del b, c
        assert alive.now == 4000
        a.add_(1)
        del d
    assert (alive.now, alive.most) == (0, 8000)


def test_saved_tensors_of_a_layer_match_a_hand_count():
    """x·W and its square: the forward pass leaves the product and the sum, the backward pass W's gradient."""
    x = torch.empty(6, 10, device="meta")
    w = torch.empty(10, 20, device="meta", requires_grad=True)
    with Alive() as alive:
        product = x @ w
        loss = (product * product).sum()
        assert alive.now == 2 * 480 + 4 - 480  # product and sum are kept, not the square
        del product
        loss.backward()
    assert w.grad.untyped_storage().nbytes() == 800
    assert alive.now == 4 + 800


def test_parameter_bytes_match_a_hand_count():
    """Qwen 3 with two layers and tied embeddings; the numbers follow from the shapes of its matrices."""
    layer = 32 * 32 + 2 * 32 * 16 + 32 * 32 + 2 * 8 + 3 * 32 * 48 + 2 * 32
    with torch.device("meta"):
        model = qwen3()
    assert memory.parameter_bytes(model) == 4 * (300 * 32 + 2 * layer + 32)


QWEN_7B = Qwen2Config(
    vocab_size=152_064, hidden_size=3584, intermediate_size=18_944, num_hidden_layers=28,
    num_attention_heads=28, num_key_value_heads=4, tie_word_embeddings=False,
)  # fmt: skip
LLAMA_8B = LlamaConfig(
    vocab_size=128_256, hidden_size=4096, intermediate_size=14_336, num_hidden_layers=32,
    num_attention_heads=32, num_key_value_heads=8, tie_word_embeddings=False,
)  # fmt: skip


@pytest.mark.parametrize(
    ("shapes", "count", "in_four_bit"),
    [
        # 28 layers of 233,046,016 weights in 4 + 8/64 + 32/16,384 bits each; embeddings, norms, biases stay.
        (QWEN_7B, 7_615_616_512, 3_366_194_944 + 2 * 1_090_328_064),
        # 32 layers of 218,103,808.
        (LLAMA_8B, 8_030_261_248, 3_600_416_768 + 2 * 1_050_939_392),
    ],
    ids=["Qwen2.5-7B", "Llama-3.1-8B"],
)
def test_billions_of_weights_are_counted_without_loading_any(tmp_path, shapes, count, in_four_bit):
    """The counts are the published ones, in bfloat16, in 4 bits and sharded."""
    shapes.save_pretrained(tmp_path)
    model = skeleton(str(tmp_path), dtype=torch.bfloat16).eval()
    assert memory.parameter_bytes(model) == 2 * count
    assert {p.device.type for p in model.parameters()} == {"meta"}
    assert memory.parameter_bytes(model, four_bit=True) == in_four_bit
    # Half of each layer, plus two whole ones: the current one and the next.
    layer = 2 * sum(p.numel() for p in model.model.layers[0].parameters())
    whole = 2 * count - len(model.model.layers) * layer
    in_halves = whole + len(model.model.layers) * layer // 2 + 2 * layer
    assert memory.parameter_bytes(model, parts=2) == in_halves


def test_the_adapters_are_counted_by_node(read):
    """Root 2, two families of 1, two languages of 3: rank 10 on seven modules in four of the six layers."""
    work = read.changed(["distill.adapter.ranks={root: 2, family: 1, language: 3}"])
    work.run = Run(work.config, ProgressReporter())
    sizes = 4 * (256 + 256) + 2 * (256 + 704) + (704 + 256)
    found = stages.distill_plan(work)
    assert found.memory["adapters"] == 4 * 10 * 4 * sizes
    assert found.memory["optimiser"] == 2 * found.memory["adapters"]
    # All rows once in bfloat16, plus each language's path of rank 2 + 1 + 3 in float32.
    cached = stages._cached(stages._read(work.rows, work.config.distill), work.config.distill, 256, 4)
    assert found.kept == (2 * 10 + 4 * 2 * 6) * 4 * sizes + cached


def test_a_step_on_the_meta_device_needs_the_memory_of_a_real_one(five, student):
    """The same counter on real tensors, losses and gradients included, differs only by some indices."""
    rows = [
        Sample(Encoded(tuple(range(5, 5 + p)), tuple(range(9, 9 + r))), code, n)
        for n, (p, r, code) in enumerate([(9, 4, "sw"), (7, 6, "ru"), (12, 3, "es")])
    ]
    adapters = student(qwen3(), five)
    with Alive() as alive:
        parts = batch_losses(adapters.model, collate(rows, 0), Weights(), adapters)
        sum(parts.values()).backward()
    with torch.device("meta"):
        other = student(qwen3(), five, filled=False)
    found = memory.step_bytes(other.model, rows, Weights(), other)
    assert found == pytest.approx(alive.most, rel=1e-2)
    assert found > 250_000


def test_a_later_micro_batch_begins_with_the_gradients_of_earlier_ones():
    """The gradients of all weights are there before the forward pass, and a new one is added to its own."""
    with torch.device("meta"):
        model = qwen3()
    rows = [Sample(Encoded(tuple(range(5, 45)), tuple(range(9, 49))))]
    first = memory.step_bytes(model, rows, Weights())
    later = memory.step_bytes(model, rows, Weights(), accumulated=True)
    assert first < later <= first + memory.parameter_bytes(model)
    assert all(p.grad is None for p in model.parameters())


def test_a_gpu_computes_the_logits_of_more_tokens_at_a_time(five, student, monkeypatch):
    """300 logits of one token at a time, or of all twelve tokens: eleven tokens more, in float32."""
    monkeypatch.setattr("isogloss.losses.fused.LOGITS", 300)
    monkeypatch.setattr("isogloss.losses.fused.LOGITS_GPU", 12 * 300)
    with torch.device("meta"):
        adapters = student(qwen3(), five, filled=False)
    rows = [Sample(Encoded((5, 6, 7), tuple(range(9, 21))), "sw", 0)]
    few, many = (memory.step_bytes(adapters.model, rows, Weights(), adapters, gpu=g) for g in (False, True))
    assert many - few >= 11 * 300 * 4


@pytest.mark.parametrize(
    ("kind", "numbers"),
    [
        ("gpt2", 2 * 3 * 24),  # one key head per query head
        ("qwen3", 2 * 3 * 2 * 6),  # two key heads for four query heads
        ("bloom", 2 * 3 * 24),
    ],
)
def test_cache_bytes_match_the_keys_and_values_of_the_model(tiny, kind, numbers):
    """Keys and values of three layers, for five rows of seven tokens, 4 bytes each."""
    config = tiny(kind).config
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    assert memory.cache_bytes(model, 5, 7) == numbers * 5 * 7 * 4


def test_sliding_window_layers_only_cache_their_window():
    """Of 100 tokens, one of the two layers keeps the last 15, as the next token is the window's sixteenth."""
    config = Gemma3TextConfig(
        vocab_size=300, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, sliding_window=16,
        layer_types=["sliding_attention", "full_attention"],
    )  # fmt: skip
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    assert memory.cache_bytes(model, 1, 100) == 2 * 8 * (15 + 100) * 4


def test_a_model_without_grouped_heads_is_planned(tmp_path):
    """GPT-2 has no setting for its key heads; all stages are planned and its defaults are explained."""
    words = load_tokenizer("demo")
    words.save_pretrained(tmp_path / "gpt2")
    GPT2Config(n_layer=2, n_head=2, n_embd=32, vocab_size=len(words)).save_pretrained(tmp_path / "gpt2")
    more = ("distill.adapter.target_modules=[c_attn]", f"run={tmp_path / 'run'}")
    found = preflight.plan(load_config(None, (*SMALL, f"model={tmp_path / 'gpt2'}", *more)), BIG)
    assert [stage.stage for stage in found.stages] == ["tune", "distill", "evaluate"]
    assert found.stages[2].memory["cache"] > 0 and "  tune.method lora: " in "\n".join(found.settings)


def test_a_plan_refuses_what_the_model_lacks(tiny, tokenizer, tmp_path):
    """`run` would refuse it, so the plan must not say that everything fits."""
    tiny("gpt2").save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    for override, says in (
        ("distill.adapter.target_modules=[q_proj]", "distill.adapter.target_modules: .* has no q_proj"),
        ("evaluate.layer=4", "evaluate.layer: .* has 3 decoder layers, not 4"),
    ):
        config = load_config(
            None, (*SMALL, f"model={tmp_path}", "distill.adapter.target_modules=[c_attn]", override)
        )
        with pytest.raises(ConfigError, match=says):
            preflight.plan(config, BIG)


def test_a_sample_of_english_rows_represents_all(read, monkeypatch):
    """A third of the rows, of all lengths: as many rows and nearly as many tokens, in the longest too."""
    lengths = sorted(len(row.prompt) + len(row.response) for row in read.english)
    work = read.changed([])
    del work.__dict__["english"]
    monkeypatch.setattr("isogloss.plan.work.SAMPLE", 20)
    found = sorted(len(row.prompt) + len(row.response) for row in work.english)
    assert len(found) == len(lengths)
    assert found[-1] >= 0.9 * lengths[-1]  # the longest in characters has not quite the most tokens
    assert sum(found) == pytest.approx(sum(lengths), rel=0.05)


# --- FLOPs


def counted(run) -> float:
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def test_flops_of_stage_1_match_torchs_counter(read):
    """All steps of full tuning of the embedded model are counted, with twelve rows in batches of four."""
    work = read.changed(["tune.batch_size=4", "tune.epochs=1"])
    work.__dict__["english"] = read.english[:12]
    found = stages.tune_plan(work)
    config = skeleton("demo", dtype=torch.float32).config
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    lengths = [len(row.prompt) + len(row.response) for row in work.english]
    order = row_order(
        ["en"] * 12, 12, balance=1.0, batch=4, alike=lengths, seed=work.config.seed
    )  # fmt: skip

    def steps():
        for start in (0, 4, 8):
            batch = collate([Sample(work.english[n]) for n in order[start : start + 4]], 0)
            batch_losses(model, batch, Weights())["ce"].backward()

    assert found.flops == pytest.approx(counted(steps), rel=0.05)
    assert found.tokens_forwarded == sum(lengths)


def test_selection_by_difficulty_reads_each_example_with_and_without_its_instruction(read, monkeypatch):
    """Twice as many examples are scored as kept; the head reads each response twice."""
    monkeypatch.setattr(stages, "_reading", lambda model, texts, heads=(): float(sum(heads)))
    plans = []
    for keep in ("1", "0.5"):
        work = read.changed([f"tune.selection.keep={keep}"])
        work.__dict__["english"], work.scored = read.english[:12], 24
        plans.append(stages.tune_plan(work))
    answers = sum(len(row.response) for row in read.english[:12])
    prompts = sum(len(row.prompt) for row in read.english[:12])
    bare = 12 * len(encode_prompt(read.tokenizer, ""))
    assert plans[1].flops - plans[0].flops == pytest.approx(2 * 2 * answers)
    assert plans[1].tokens_forwarded - plans[0].tokens_forwarded == 2 * (prompts + bare + 2 * answers)


@pytest.mark.parametrize("view", ["prompt", "english"])
def test_flops_of_stage_2_match_torchs_counter(read, tmp_path, view):
    """The teacher reads every row, twin and instruction, then the student takes every step with the
    divergence. With the `english` view, the teacher also reads the options of closed tasks."""
    settings = [
        "distill.kl_weight=1.0",
        "distill.similarity_weight=1.0",
        "distill.similarity_layer=3",
        "distill.batch_size=8",
        "distill.epochs=1",
    ]
    work = read.changed([*settings, f"distill.teacher_view={view}"])
    work.run = Run(work.config, ProgressReporter())
    del work.__dict__["rows"]
    assert any(row.options for row in work.rows) == (view == "english")
    found = stages.distill_plan(work)
    config = skeleton("demo", dtype=torch.float32).config
    real = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    adapters = TreeLora(
        real, work.tree, targets=work.config.distill.adapter.target_modules, scaling=2.0, layers=4
    )  # fmt: skip
    order = training_order(work.rows, work.config.distill, work.config.seed)
    adapters.off()
    cost, weights = StageCost("distill"), Weights(1.0, 1.0, 1.0, layer=3)

    def everything():
        signals = read_signals(
            real, work.rows, work.config.distill, pad_id=0, cost=cost, bar=silent, cache=Cache(tmp_path, {})
        )
        samples = samples_of(work.rows, signals)
        twins = twins_of(samples)
        for start in range(0, len(order), 8):
            batch = collate([samples[n] for n in order[start : start + 8]], 0)
            parts = batch_losses(adapters.model, batch, weights, adapters, twins)
            sum(parts.values()).backward()
            cost.tokens_backpropagated += int(batch.mask.sum())
            adapters.off()

    assert found.flops == pytest.approx(counted(everything), rel=0.05)
    assert found.tokens_backpropagated == cost.tokens_backpropagated
    assert found.tokens_forwarded == cost.teacher_tokens + cost.tokens_backpropagated
    cached = stages._cached(stages._read(work.rows, work.config.distill), work.config.distill, 256, 4)
    assert cached == pytest.approx(cost.cache_bytes_written, rel=0.02)


def test_a_model_that_reads_one_answer_per_row_is_planned_without_options(read, monkeypatch):
    """With recurrent layers, rows with options only learn their own answer."""

    def never(*given):
        raise AssertionError("several answers in one row")

    for place in ("train.objective", "plan.memory"):
        monkeypatch.setattr(f"isogloss.{place}.branched_hidden", never)
    monkeypatch.setattr(stages, "attends_alone", lambda model: False)
    work = read.changed(["distill.kl_weight=1.0", "distill.teacher_view=english"])
    work.run = Run(work.config, ProgressReporter())
    del work.__dict__["rows"]
    assert any(row.options for row in work.rows)
    order = training_order(work.rows, work.config.distill, work.config.seed)
    tokens = sum(work.rows[n].student.tokens for n in order)
    assert stages.distill_plan(work).tokens_backpropagated == tokens


@contextmanager
def silent(what):
    yield lambda done, of: None


def test_a_generated_answer_matches_a_hand_count():
    """A prompt of 40 tokens and five new ones: 44 are read, each attends to all before it, and the head runs
    five times."""
    meter = Meter(qwen3(), 0.0)
    evaluation._generated(meter, 40, 5)
    assert (meter.forward_tokens, meter.forward_heads) == (44, 5)
    assert meter.forward_pairs == 1600 + 41 + 42 + 43 + 44


# --- machines, advice, command


def test_time_is_flops_over_the_speed_that_the_machine_reaches():
    """1e15 FLOPs on two devices of 100 TFLOP/s at 40 % efficiency: 12.5 seconds."""
    machine = Machine("two", 2, 1 << 30, 1e14, gpu=True, efficiency=0.4)
    found = preflight.Plan(machine, [StagePlan("tune", flops=1e15)], [])
    assert found.seconds(found.stages[0]) == pytest.approx(12.5)
    assert found.seconds(StagePlan("evaluate", flops=1e15)) == pytest.approx(25)  # one process evaluates


def test_a_cpu_machine_does_not_get_this_computers_gpu_dtype(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    assert Machine("one", 1, 1 << 30, 1e12, gpu=False).dtype("auto") == torch.float32


def test_a_machine_file_loads(tmp_path):
    """It gives GiB, TFLOP/s, devices, and the dtype that `auto` means there."""
    file = tmp_path / "a100.yaml"
    file.write_text("devices: 4\nmemory_gib: 80\ntflops: 2e2\n")
    found = load_machine(file)
    assert (found.name, found.devices, found.memory, found.rate) == ("a100", 4, 80 << 30, 2e14)
    assert found.dtype("auto") == torch.bfloat16
    assert found.dtype("float32") == torch.float32


@pytest.mark.parametrize(("limit", "most"), [("1073741824\n", 1 << 30), ("max\n", None), (None, None)])
def test_a_container_has_no_more_memory_than_its_limit(limit, most, tmp_path, monkeypatch):
    """Without a limit, it has that of the machine."""
    if limit is not None:
        (tmp_path / "memory.max").write_text(limit)
    monkeypatch.setattr(machine, "LIMIT", tmp_path / "memory.max")
    monkeypatch.setattr(machine, "measured_rate", lambda dtype: 1e12)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert machine.this_machine().memory == (most or machine.psutil.virtual_memory().total)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", ": memory_gib is missing; it must be a number above 0"),
        ("memory_gib: 80\ntflops: 1\ngpus: 2\n", ":3: gpus is not a setting; did you mean gpu?"),
        ("memory_gib: 80\ntflops: fast\n", ':2: tflops is "fast"; it must be a number above 0'),
        ("- 1\n", ":1: not a mapping; write settings as name: value"),
        ("a: [", ":1: not YAML (expected the node content, but found '<stream end>'); "),
    ],
)
def test_an_invalid_machine_file_is_a_one_line_error(tmp_path, text, says):
    """It names the file, the line, and what would be right."""
    file = tmp_path / "machine.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as error:
        load_machine(file)
    assert str(error.value).split("\n")[0].startswith(f"{file}{says}")


def test_a_missing_machine_file_is_named():
    with pytest.raises(ConfigError) as error:
        load_machine(Path("gone.yaml"))
    assert str(error.value) == (
        "--machine gone.yaml: there is no such file; name a YAML file with devices, memory_gib, tflops, "
        "efficiency, gpu"
    )


def test_the_advised_settings_make_it_fit(read):
    """With the advised settings it fits, and with the original ones it does not."""
    work = read.changed([])
    needs = stages.distill_plan(work)
    less = stages.distill_plan(work.changed(["distill.gradient_accumulation_steps=4"]))
    assert less.memory_bytes < needs.memory_bytes
    tight = Machine("tight", 1, less.memory_bytes, 1e12, gpu=False, process=0)
    work.machine = tight
    advice = advise(work, needs)
    assert "set distill.gradient_accumulation_steps=4 (" in advice and "no setting" not in advice


def test_weights_in_half_or_four_bits_are_advised_where_they_help(read):
    """Full fine-tuning keeps its weights in float32."""
    work = read.changed(["dtype=float32"])
    work.machine = Machine("gpu", 1, 64 << 30, 1e12, gpu=True, process=0)
    found = {stage: _changes(work, stage) for stage in ("tune", "distill", "evaluate")}
    assert {stage: ("dtype=bfloat16",) in found[stage] for stage in found} == {
        "tune": False,
        "distill": True,
        "evaluate": True,
    }
    assert ("four_bit=true",) in found["evaluate"] and ("four_bit=true",) not in found["tune"]
    assert ("dtype=bfloat16",) in _changes(read.changed(["dtype=float32", "tune.method=lora"]), "tune")


@pytest.mark.parametrize("stage", ["tune", "distill"])
@pytest.mark.parametrize(("devices", "parts"), [(1, [2, 4, 8, 24]), (4, [2, 3, 6]), (8, [3]), (24, [])])
def test_advised_micro_batches_divide_evenly_over_the_devices(read, stage, devices, parts):
    """Training refuses any other number of micro-batches for 24 rows."""
    work = read.changed([f"{stage}.batch_size=24"])
    work.machine = Machine("some", devices, 64 << 30, 1e12, gpu=False, process=0)
    name = f"{stage}.gradient_accumulation_steps="
    advised = {
        int(one.removeprefix(name))
        for changes in _changes(work, stage)
        for one in changes
        if one.startswith(name)
    }
    assert sorted(advised) == parts


@pytest.mark.parametrize("stage", ["tune", "distill"])
def test_sharding_is_advised_if_the_model_only_fits_on_several_devices(read, stage):
    """Each then holds the trained weights, its part of the layers and two whole layers."""
    work = read.changed([] if stage == "tune" else ["tune.method=lora", "dtype=bfloat16"])
    plan = stages.tune_plan if stage == "tune" else stages.distill_plan
    work.machine = Machine("eight", 8, 64 << 30, 1e12, gpu=False, process=0)
    least = plan(work.changed(["tune.method=lora", "shard=true", f"{stage}.gradient_accumulation_steps=4"]))
    work.machine = Machine("eight", 8, least.memory_bytes, 1e12, gpu=False, process=0)
    assert " shard=true" in advise(work, plan(work))
    whole = work.changed(["compile=true"])  # which needs whole layers
    whole.machine = work.machine
    assert "shard" not in advise(whole, plan(whole))


def test_the_advice_says_if_no_setting_makes_it_fit(read):
    """The device is smaller than the weights."""
    work = read.changed(["tune.batch_size=2", "tune.method=lora"])
    work.machine = Machine("none", 1, 1 << 20, 1e12, gpu=False, process=0)
    advice = advise(work, stages.tune_plan(work))
    assert "no setting makes it fit" in advice and "a device of 1 GiB would be enough" in advice


def test_gradient_checkpointing_needs_less_memory(read):
    """Only the inputs of the layers are kept for the backward pass."""
    work = read.changed([])
    kept = stages.distill_plan(work).memory["activations"]
    again = read.changed(["distill.gradient_checkpointing=true"])
    assert stages.distill_plan(again).memory["activations"] < 0.8 * kept


def test_devices_share_the_rows_of_a_step(read):
    """Eight rows on four devices are two each: fewer activations, as many tokens."""
    one, four = read.changed([]), read.changed([])
    four.machine = Machine("four", 4, 64 << 30, 1e12, gpu=False, efficiency=0.5, process=0)
    alone, shared = stages.distill_plan(one), stages.distill_plan(four)
    assert shared.memory["activations"] < alone.memory["activations"]
    assert shared.tokens_backpropagated == alone.tokens_backpropagated


def test_the_command_prints_a_plan_and_writes_nothing(tmp_path, monkeypatch, capsys):
    """JSON is available, the exit code is 1 if it does not fit, and no run folder is created."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("isogloss.plan.preflight.advise", lambda work, stage: f"{stage.stage} is too large")
    (tmp_path / "tiny.yaml").write_text("memory_gib: 0.01\ntflops: 1\n")
    overrides = [word for one in SMALL for word in ("--set", one)]
    with pytest.raises(SystemExit) as stopped:
        main(["plan", "--machine", "tiny.yaml", "--json", *overrides, "--set", "compile=true"])
    assert stopped.value.code == 1
    said = json.loads(capsys.readouterr().out)
    assert [stage["stage"] for stage in said["stages"]] == ["tune", "distill", "evaluate"]
    assert not said["fits"] and said["advice"] == [
        "tune is too large", "distill is too large", "evaluate is too large"
    ]  # fmt: skip
    assert said["notes"] == ["compile: uses less memory than planned; compilation time is not counted"]
    (tmp_path / "large.yaml").write_text("memory_gib: 64\ntflops: 1\ngpu: false\n")
    with pytest.raises(SystemExit) as stopped:
        main(["plan", "--machine", "large.yaml", *overrides])
    assert stopped.value.code == 0
    assert "It fits." in capsys.readouterr().out
    assert sorted(p.name for p in tmp_path.iterdir()) == ["large.yaml", "tiny.yaml"]


def test_a_folder_with_only_a_config_is_planned_with_a_note(tmp_path):
    """It has no tokenizer, so the embedded one counts the tokens, and the note says so."""
    qwen3().config.save_pretrained(tmp_path)
    work = Work(load_config(None, (*SMALL, f"model={tmp_path}")), BIG)
    assert work.notes == [f"{tmp_path} has no tokenizer: tokens are counted with the embedded one"]
    assert memory.parameter_bytes(work.model(torch.float32)) == memory.parameter_bytes(qwen3())


def test_an_evaluation_answers_every_wording_up_to_its_limit(read, monkeypatch):
    """It has two languages and English, before and after, and an English paraphrase before."""
    texts = {code: Turn(f"{code} question") for code in (*read.run.measured, "en")}
    items = tuple(
        Item(str(n), "task", texts, longest=longest, paraphrases=more)
        for n, (longest, more) in enumerate([(None, ("in other words",)), (100, ())])
    )
    suite = SuiteData("demo", "1", "dev", items, {})
    monkeypatch.setattr(evaluation, "load_suite", lambda *given: suite)
    work = read.changed(["evaluate.suites=[demo]", "evaluate.max_new_tokens=10"])
    found = evaluation.evaluate_plan(work)
    assert found.tokens_generated == 2 * len(texts) * (10 + 100) + 10


@pytest.mark.parametrize(
    ("gold", "likelihood", "generated", "scored"),
    [("no", "[]", 3, 0), (None, "[]", 6, 0), ("no", "[demo]", 0, 3 + 6)],
)
def test_a_closed_answer_is_as_long_as_its_option(read, monkeypatch, gold, likelihood, generated, scored):
    """With an unknown answer, as the longest option; scored by likelihood, all options are read."""
    item = Item("1", "task", {"en": Turn("Is it?")}, options={"en": {"no": "ab", "yes": "abcde"}}, gold=gold)
    monkeypatch.setattr(evaluation, "load_suite", lambda *given: SuiteData("demo", "1", "dev", (item,), {}))
    monkeypatch.setattr(evaluation, "encode_prompt", lambda tokenizer, text: [0] * 7)
    monkeypatch.setattr("isogloss.plan.work.encode_response", lambda tokenizer, text: [0] * (len(text) + 1))
    work = read.changed(
        ["evaluate.suites=[demo]", "evaluate.max_new_tokens=10", f"evaluate.likelihood={likelihood}"]
    )
    found = evaluation.evaluate_plan(work)
    assert found.tokens_generated == 2 * generated
    assert found.tokens_forwarded == 2 * (7 + max(0, generated - 1) + scored)
    monkeypatch.setattr(evaluation, "keeps_keys_alone", lambda model: False)
    again = 7 if scored else 0  # a recurrent model reads the prompt with each of both options
    assert evaluation.evaluate_plan(work).tokens_forwarded == found.tokens_forwarded + 2 * again


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (["four_bit=true"], "four_bit: needs a GPU, and big has none; leave it out there"),
        (
            ["shard=true", "tune.method=lora"],
            "shard: needs several devices, and big has one; leave it out there",
        ),
    ],
    ids=["four_bit", "shard"],
)
def test_settings_that_the_machine_does_not_support_give_a_note(settings, says, monkeypatch):
    """`run` would refuse them there."""
    for stage in ("tune", "distill", "evaluate"):
        monkeypatch.setitem(advice.STAGES, stage, lambda work, name=stage: StagePlan(name))
    config = load_config(None, (*SMALL, "dtype=float32", *settings))
    assert says in preflight.plan(config, BIG).notes


def test_english_answers_that_the_model_gives_are_noted(monkeypatch):
    """With `responses: teacher` it answers every item, otherwise those without an English response."""
    for stage in ("tune", "distill", "evaluate"):
        monkeypatch.setitem(advice.STAGES, stage, lambda work, name=stage: StagePlan(name))
    config = load_config(None, (*SMALL, "dtype=float32"))
    assert preflight.plan(config, BIG).notes == []
    items = len(Run(config, ProgressReporter()).examples)
    taught = load_config(None, (*SMALL, "dtype=float32", "distill.responses=teacher"))
    assert preflight.plan(taught, BIG).notes == [
        f"English answers: the model generates up to {items:,} of them, which are not counted"
    ]


def test_options_that_are_scored_are_held_one_at_a_time(read, monkeypatch):
    """Forty need the memory of two of the same length."""
    monkeypatch.setattr(evaluation, "encode_prompt", lambda tokenizer, text: [0] * 7)
    monkeypatch.setattr("isogloss.plan.work.encode_response", lambda tokenizer, text: [0] * (len(text) + 1))
    work = read.changed(["evaluate.suites=[demo]", "evaluate.likelihood=[demo]"])
    needs = []
    for count in (2, 40):
        options = {"en": {str(n): "abcde" for n in range(count)}}
        item = Item("1", "task", {"en": Turn("Is it?")}, options=options, gold="0")
        suite = SuiteData("demo", "1", "dev", (item,), {})
        monkeypatch.setattr(evaluation, "load_suite", lambda *given, suite=suite: suite)
        needs.append(evaluation.evaluate_plan(work).memory)
    assert needs[0] == needs[1]


def test_a_suite_with_long_prompts_does_not_lower_the_plan(read, monkeypatch):
    """Its batches have fewer rows, those of the other suites do not."""
    monkeypatch.setattr(evaluation, "encode_prompt", lambda tokenizer, text: [0] * len(text))
    options = {"en": {"0": "abcdefgh" * 4, "1": "b"}}
    suites = {
        name: SuiteData("demo", "1", "dev", (Item("1", "t", {"en": Turn(text)}, options=options),), {})
        for name, text in (("demo", "Is it?"), ("parallel", "Is it? " * 100))
    }
    monkeypatch.setattr(evaluation, "load_suite", lambda name, *given: suites[name])
    work = read.changed(["evaluate.suites=[demo]", "evaluate.likelihood=[demo]"])
    both = copy.copy(work)
    evaluate = work.config.evaluate.model_copy(update={"suites": ("demo", "parallel")})
    both.config = work.config.model_copy(update={"evaluate": evaluate})
    one, two = (evaluation.evaluate_plan(each).memory["activations"] for each in (work, both))
    assert two >= one


def test_a_batch_that_cannot_be_divided_over_the_devices_gives_a_note(read):
    """Training would refuse it."""
    few = Machine("some", 16, 64 << 30, 1e12, gpu=False, process=0)
    notes = preflight.plan(load_config(None, (*SMALL, "dtype=float32")), few).notes
    says = "tune.batch_size: 8 rows cannot be divided over 16 devices and 1 micro-batches; use a multiple of"
    assert f"{says} 16" in notes
