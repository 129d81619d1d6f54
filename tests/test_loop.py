"""`examples/loop.py` and the package are the same method: equal rows, equal losses at every step."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from isogloss.adapters.lora import TreeLora
from isogloss.adapters.tree import build_tree
from isogloss.config import dump_config, load_config
from isogloss.data.sources import parallel_examples
from isogloss.teacher.rows import TeacherView, build_rows
from isogloss.teacher.signals import teacher_signals
from isogloss.teacher.texts import node_texts
from isogloss.train.batch import Ordered, samples_of
from isogloss.train.objective import Weights
from isogloss.train.stage2 import layer_of, similarity_temperature
from isogloss.train.trainer import ResponseTrainer, Watch, train, training_arguments

FILE = Path(__file__).parents[1] / "examples" / "loop.py"
STEPS = 5
RANKS = {"root": 8, "family": 4, "language": 4}


@pytest.fixture(scope="module")
def loop():
    spec = importlib.util.spec_from_file_location("loop", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def run(tiny, tokenizer, tmp_path_factory):
    """A run folder as after stage 1: settings and a tuned model (random here)."""
    folder = tmp_path_factory.mktemp("run")
    overrides = (
        "dtype=float32",
        "languages.targets=[sw, ur]",
        "languages.items={high: 8, middle: 8, low: 10}",
        "distill.batch_size=4",
        "distill.max_prompt_length=2000",
        "distill.kl_weight=0.5",
        "distill.similarity_decay=1.0",
    )
    (folder / "config.yaml").write_text(dump_config(load_config(overrides=overrides)))
    tiny().save_pretrained(folder / "tuned")
    tokenizer.save_pretrained(folder / "tuned")
    return folder


def package_rows(config, tokenizer):
    examples = parallel_examples(config, None, ["sw"])
    english = {e.id: e.turns["en"].response for e in examples}
    tree = build_tree(["sw"], families="flat", ranks=RANKS)
    rows = build_rows(
        {"sw": examples[:10]},
        tokenizer,
        tree,
        TeacherView(node_texts(config)),
        english=english,
        responses="reference",
        limit=2000,
    )
    return rows, tree


def test_the_loop_builds_the_rows_of_the_package(loop, run, tokenizer):
    """The same prompts, teacher prompts, twins and responses, ID by ID."""
    config = load_config(run / "config.yaml")
    ours = [tuple(map(tuple, row)) for row in loop.read_rows(config, tokenizer, "sw")]
    theirs = [
        (
            r.student.prompt,
            r.teacher_prompt,
            r.twin_prompt,
            r.student.response,
            r.student.instruction_mask,
            r.twin_mask,
        )
        for r in package_rows(config, tokenizer)[0]
    ]
    assert len(ours) == 10
    assert ours == theirs


def test_the_loop_has_the_losses_of_the_package_at_every_step(loop, run, tokenizer, tmp_path, capsys):
    """From the same rows and initial weights, so the optimiser steps are the same too."""
    flat = loop.distill(run, "sw", STEPS)
    printed = capsys.readouterr().out.splitlines()
    config = load_config(run / "config.yaml")
    rows, tree = package_rows(config, tokenizer)
    model = AutoModelForCausalLM.from_pretrained(run / "tuned")
    layer = layer_of(model, config.distill)
    signals = teacher_signals(model, rows, layer=layer, pad_id=0)
    samples = samples_of(rows, signals)
    torch.manual_seed(config.seed)
    adapters = TreeLora(model, tree, targets=config.distill.adapter.target_modules, scaling=2.0, layers=layer)
    trainer = ResponseTrainer(
        model=adapters.model,
        adapters=adapters,
        args=training_arguments(
            tmp_path / "work",
            steps=STEPS,
            batch_size=4,
            gradient_accumulation_steps=1,
            learning_rate=config.distill.learning_rate,
            weight_decay=0.0,
            seed=0,
            bf16=False,
            save_every=50,
        ),
        train_dataset=Ordered(samples, loop.order_of(10, STEPS * 4, 0)),
        weights=Weights(
            1.0,
            0.5,
            config.distill.similarity_weight,
            layer=layer,
            similarity_temperature=similarity_temperature(samples, config.distill),
            similarity_decay=config.distill.similarity_decay,
        ),
        pad_id=0,
    )
    curve = tmp_path / "curve.jsonl"
    train(trainer, Watch(curve, "distill", 1, lambda done, of: None), tmp_path / "work")
    for ours, line in zip(flat, curve.read_text().splitlines(), strict=True):
        theirs = json.loads(line)
        assert ours == pytest.approx({name: theirs[name] for name in ours}, abs=1e-4)
    assert len(printed) == STEPS and printed[0].startswith(f"step 1: loss {flat[0]['loss']:.4f}  ce ")
    assert flat[-1]["loss"] != pytest.approx(flat[0]["loss"], abs=0.01)


def test_the_order_uses_every_row_before_repeating_one(loop):
    """Seven draws from three rows: two full passes and one more row."""
    order = loop.order_of(3, 7, 0)
    assert sorted(order[:3]) == sorted(order[3:6]) == [0, 1, 2]
    assert len(order) == 7


def test_the_loop_runs_as_a_command(run):
    """It prints one line per step."""
    command = [sys.executable, str(FILE), str(run), "--language", "sw", "--steps", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert [line.split(":")[0] for line in done.stdout.splitlines()] == ["step 1", "step 2"]
