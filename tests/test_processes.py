"""Two processes over gloo, started by a launcher: together they learn what one learns alone."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import several
import torch
from safetensors.torch import load_file

SMALL = (
    "data.english_items=24",
    "tune.batch_size=4",
    "tune.epochs=1",
    "languages.targets=[sw,ur]",
    "languages.items={high: 6, middle: 6, low: 6}",
    "distill.adapter.ranks={root: 2, family: 1, language: 2}",
    "distill.epochs=2",
    "distill.batch_size=6",
    "distill.kl_weight=0.5",
    "distill.learning_rate=1e-4",
    "distill.max_prompt_length=5000",
    "dtype=float32",
    "distill.similarity_weight=0",
    "evaluate.items=7",
    "evaluate.sentences=4",
    "evaluate.max_new_tokens=2",
    "distill.teacher_view=prompt",
    "distill.teacher_reads=[texts,twin,answer]",
)


def two(*command: str, code: int = 0) -> subprocess.CompletedProcess:
    """Run a Python command in two processes, each on one thread; they must exit with this code."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [sys.executable, *launcher, *command],
        text=True,
        capture_output=True,
        check=False,
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == code, done.stderr[-3000:]
    return done


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory) -> Path:
    """Both stages trained by one process, by two, and by two that are killed and resume."""
    folder = tmp_path_factory.mktemp("several")
    several.prepare(folder, tiny())
    jobs = []
    for stage in (1, 2):
        several.job(folder, f"one-{stage}", stage=stage)
        jobs += [
            {"name": f"two-{stage}", "stage": stage},
            {"name": f"parts-{stage}", "stage": stage, "accumulate": 2},
        ]
    jobs.append({"name": "sharded-2", "stage": 2, "accumulate": 2, "shard": True})
    script = str(Path(several.__file__))
    jobs.append({"name": "killed", "stage": 2, "hidden": 0.5, "stop": 3})
    two(script, str(folder), json.dumps(jobs), code=1)
    two(
        script, str(folder), json.dumps([{"name": n, "stage": 2, "hidden": 0.5} for n in ("killed", "whole")])
    )
    return folder


def found(folder: Path, name: str) -> dict:
    return torch.load(folder / name / "found.pt", weights_only=True)


@pytest.mark.parametrize(
    ("way", "stage"), [("two", 1), ("two", 2), ("parts", 1), ("parts", 2), ("sharded", 2)]
)
def test_two_processes_have_the_gradients_of_one(trained, way, stage):
    """Responses have 1 to 9 tokens: a step is normalised by all its tokens, whichever process reads them."""
    ours, theirs = found(trained, f"{way}-{stage}"), found(trained, f"one-{stage}")
    for mine, its in zip(ours["gradients"], theirs["gradients"], strict=True):
        assert mine.keys() == its.keys()
        for name, gradient in its.items():
            torch.testing.assert_close(mine[name], gradient, rtol=5e-4, atol=2e-6)
    for name, weight in theirs["weights"].items():
        torch.testing.assert_close(ours["weights"][name], weight, rtol=0, atol=2e-5)


@pytest.mark.parametrize("stage", [1, 2])
def test_counts_and_curves_cover_all_processes(trained, stage):
    """This covers tokens, FLOPs (except for padding) and every part of the loss."""
    ours, theirs = (json.loads((trained / f"{n}-{stage}/counts.json").read_text()) for n in ("two", "one"))
    assert (ours["tokens"], ours["responses"]) == (theirs["tokens"], theirs["responses"])
    assert ours["flops"] == pytest.approx(theirs["flops"], rel=0.15)
    curves = [(trained / f"{n}-{stage}/curve.jsonl").read_text().splitlines() for n in ("two", "one")]
    for mine, its in zip(*curves, strict=True):
        assert json.loads(mine) == pytest.approx(json.loads(its), abs=5e-5)


def test_two_killed_processes_resume_to_the_same_weights(trained):
    """Killed at step 3 of 5 and resumed from step 2's checkpoint: bit-identical to an uninterrupted run."""
    ours, theirs = found(trained, "killed"), found(trained, "whole")
    assert len(ours["gradients"]) == 3
    assert all(torch.equal(ours["weights"][name], weight) for name, weight in theirs["weights"].items())
    counts = [json.loads((trained / n / "counts.json").read_text()) for n in ("killed", "whole")]
    assert counts[0] == counts[1]
    assert (trained / "killed/curve.jsonl").read_text() == (trained / "whole/curve.jsonl").read_text()


def test_a_checkpoint_has_trained_weights_only(trained):
    """It has the adapters and their optimiser state."""
    # Two are kept in case one is damaged; both contain the same tensors.
    saved, _ = sorted((trained / "killed/work").glob("checkpoint-*/model.safetensors"))
    state = load_file(saved)
    assert state and all("lora_" in name for name in state)
    moments = torch.load(saved.with_name("optimizer.pt"), weights_only=True)["state"]
    assert len(moments) == len(state)


SHARDED = (
    "tune.method=lora",
    "distill.responses=teacher",
    "distill.max_new_tokens=9",
    "distill.gradient_checkpointing=true",
    "languages.items={high: 8, middle: 8, low: 8}",
)
"""With these, the model writes answers before stage 2."""


@pytest.mark.parametrize(
    "how", [pytest.param((), marks=pytest.mark.slow, id="whole"), pytest.param(SHARDED, id="sharded")]
)
def test_a_whole_run_works_with_two_processes(base, tmp_path, how):
    """It has both stages, evaluation and report; the ledger has the tokens of a run by one process."""
    stages = []
    for folder, start in ((tmp_path / "one", None), (tmp_path / "two", two)):
        sets = [f"--set={one}" for one in (*SMALL, *how, f"run={folder}", f"model={base}")]
        if how and start is two:
            sets.append("--set=shard=true")
        if start is None:
            command = [sys.executable, "-m", "isogloss", "run", *sets]
            subprocess.run(command, check=True, capture_output=True, timeout=300)
        else:
            said = start("-m", "isogloss", "run", *sets).stdout
            assert said.count("Report: ") == 1  # only one process reports
        ledger = json.loads((folder / "ledger.json").read_text())
        stages.append({stage["stage"]: stage for stage in ledger["stages"]})
    one, both = stages
    for stage in ("tune", "distill"):
        for name in ("tokens_backpropagated", "teacher_calls"):
            assert both[stage][name] == one[stage][name], (stage, name)
        # Each process reads the node texts at the start of prompts.
        assert (
            one[stage]["tokens_forwarded"]
            <= both[stage]["tokens_forwarded"]
            < 1.1 * one[stage]["tokens_forwarded"]
        )
        assert both[stage]["device_seconds"] == pytest.approx(2 * both[stage]["seconds"], abs=0.5)
    curves = [(tmp_path / n / "curves.jsonl").read_text().splitlines() for n in ("two", "one")]
    for mine, its in zip(*curves, strict=True):
        assert json.loads(mine) == pytest.approx(json.loads(its), abs=2e-3)
    assert (tmp_path / "two/report.html").exists()
