"""Stage 2 with cache and checks on a tiny random model: the teacher's cost, and what is reported."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from isogloss.cli import main
from isogloss.config import load_config
from isogloss.data.chat import Encoded
from isogloss.errors import RunError
from isogloss.losses import functional
from isogloss.model.load import load_tokenizer
from isogloss.pipeline import training_rows
from isogloss.pipeline.folder import ProgressReporter, Run, open_run
from isogloss.pipeline.stages import StageCost, run_cache, run_distill
from isogloss.teacher.local import TokenMap
from isogloss.teacher.signals import Signal
from isogloss.train import stage2
from isogloss.train.batch import Sample, twins_of
from isogloss.train.stage2 import similarity_temperature

SMALL = (
    "data.english_items=24", "languages.targets=[sw,ur]", "languages.items={high: 6, middle: 6, low: 6}",
    "distill.adapter.ranks={root: 2, family: 1, language: 2}", "distill.epochs=1", "distill.batch_size=6",
    "distill.kl_weight=0.5", "distill.learning_rate=1e-4", "distill.max_prompt_length=5000", "dtype=float32",
    "distill.teacher_view=prompt", "distill.teacher_reads=[texts,twin,answer]",
)  # fmt: skip


class Heard(ProgressReporter):
    """Keeps the lines that a run reports."""

    def __init__(self):
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


def opened(folder: Path, base: Path, *more: str) -> Run:
    """Return a run whose stage 1 is done, with the random model as it is."""
    run = open_run(load_config(None, (*SMALL, f"run={folder}", f"model={base}", *more)), Heard())
    if not run.tuned.exists():
        shutil.copytree(base, run.tuned)
    return run


def stages(run: Run) -> dict[str, dict]:
    ledger = json.loads((run.folder / "ledger.json").read_text())
    return {stage["stage"]: stage for stage in ledger["stages"]}


@pytest.fixture(scope="module")
def filled(base, tmp_path_factory) -> tuple[Run, StageCost]:
    """Return a distilled run with its cache."""
    run = opened(tmp_path_factory.mktemp("runs") / "one", base)
    done = run_cache(run)
    run_distill(run)
    return run, done


def test_the_cache_is_filled_once_and_distillation_spends_nothing_on_the_teacher(filled):
    """6 rows in each of two languages, and English for a tenth of an epoch, rounded up."""
    run, done = filled
    rows = 6 + 6 + 2
    assert (done.teacher_calls, done.cached_hits) == (rows, 0)
    ledger = stages(run)
    assert ledger["cache"]["teacher_calls"] == rows
    assert ledger["cache"]["cache_bytes_written"] == sum(
        shard.stat().st_size for shard in run.signals.glob("*/*.safetensors")
    )
    spent = {name: ledger["distill"][name] for name in ("teacher_calls", "teacher_tokens", "cached_hits")}
    assert spent == {"teacher_calls": 0, "teacher_tokens": 0, "cached_hits": rows}
    assert ledger["distill"]["cache_bytes_written"] == 0
    assert run.signals == run.folder / "cache"


def test_in_the_english_view_one_pass_per_meaning_serves_all_languages(base, tmp_path):
    """No prompt is privileged: only the twin is used, for answers with equal tokens and for answer sets."""
    run = opened(tmp_path / "english", base, "distill.teacher_view=english", "distill.responses=reference")
    model, stage = run.reference_model(), StageCost("distill")
    rows = training_rows.rows_for(run, model, run.examples, run.tree, run.taught, stage)
    closed = [row for row in rows if row.options]
    assert {row.language for row in closed} == {"sw", "ur"}
    for row in closed:
        assert row.student.response in row.options
        assert row.teacher_prompt == row.twin_prompt
    run_distill(run)
    sets = {(row.twin_prompt, row.twin_options) for row in closed}
    assert len(sets) < len(closed)
    alone = {(row.teacher_prompt, row.student.response) for row in rows if not row.options}
    assert stages(run)["distill"]["teacher_calls"] == len(sets) + len(alone)


def test_a_second_distillation_of_the_same_data_costs_nothing_and_is_bit_identical(filled, base, tmp_path):
    """Another run folder uses the same cache by its setting."""
    run, _ = filled
    again = opened(tmp_path / "two", base, f"distill.cache={run.signals}")
    run_distill(again)
    assert stages(again)["distill"]["teacher_calls"] == 0
    ours, theirs = load_file(run.trained), load_file(again.trained)
    assert all((ours[name] == theirs[name]).all() for name in ours) and not (again.folder / "cache").exists()


def test_distillation_fills_the_cache_with_top_k_too(base, tmp_path):
    """Live and cached signals give bit-identical adapters."""
    first = opened(tmp_path / "one", base, "distill.signal=top_k", "distill.top_k=8")
    run_distill(first)
    assert stages(first)["distill"]["teacher_calls"] == 14
    second = opened(
        tmp_path / "two", base, "distill.signal=top_k", "distill.top_k=8", f"distill.cache={first.signals}"
    )
    run_distill(second)
    assert (stages(second)["distill"]["teacher_calls"], stages(second)["distill"]["cached_hits"]) == (0, 14)
    ours, theirs = load_file(first.trained), load_file(second.trained)
    assert all((ours[name] == theirs[name]).all() for name in ours)


def test_the_divergence_before_training_is_reported_per_language(filled):
    """One line with each language once; English has the teacher's prompt, so 0."""
    (line,) = [line for line in filled[0].reporter.lines if line.startswith("Divergence")]
    number = r"\d+\.\d{3}"
    assert re.fullmatch(
        f"Divergence from the teacher before training, nats per token: sw {number}, ur {number}, en 0.000",
        line,
    )


def test_checks_can_be_disabled(base, tmp_path):
    """No divergence is reported then."""
    run = opened(tmp_path / "run", base, "distill.checks=false")
    run_distill(run)
    assert [line for line in run.reporter.lines if line.startswith("Divergence")] == []


def test_the_prompts_of_a_row_are_shown_as_encoded(filled, capsys):
    """With control tokens, for teacher and student; the response tokens are the same, each in brackets."""
    run, _ = filled
    example = next(e for e in run.examples if "sw" in e.turns)
    turn = example.turns["sw"]
    with pytest.raises(SystemExit) as ended:
        main(["teacher-prompt", str(run.folder), "--language", "swh", "--id", example.id])
    assert ended.value.code == 0
    teacher, student = capsys.readouterr().out.split("Student: ")
    row, reader = training_rows.row_of(run, "sw", example.id)
    assert reader is None
    length = len(row.student.response)
    assert teacher.startswith(f"Teacher: {len(row.teacher_prompt)} tokens, then {length} of the response\n")
    assert student.startswith(f"{len(row.student.prompt)} tokens, then {length} of the response\n")
    asked = f"<|user|>{turn.instruction}<|end|><|assistant|>"
    marked = "".join(f"⟦{letter}⟧" for letter in turn.response) + "⟦<|end|>⟧"
    if turn.response.isascii():
        assert student.split("\n", 1)[1].strip() == asked + marked
        assert teacher.strip().endswith(asked + marked)
    assert f"English: {example.turns['en'].instruction}" in teacher
    assert "English:" not in student


def test_an_unknown_row_is_refused(filled):
    """An unknown language, with the available ones, and an unknown ID."""
    run, _ = filled
    with pytest.raises(RunError) as caught:
        training_rows.row_of(run, "fr", "1")
    assert str(caught.value) == f"fr is not taught in {run.folder}; it has sw, ur"
    with pytest.raises(RunError, match=r"--id nothing: no example in sw has this id; "):
        training_rows.row_of(run, "sw", "nothing")


def test_filling_a_full_cache_costs_nothing(filled):
    """The ledger's stage keeps the earlier cost."""
    run, _ = filled
    done = run_cache(run)
    assert (done.teacher_calls, done.teacher_tokens, done.cached_hits) == (0, 0, 14)
    assert done.cache_bytes_written == 0
    assert stages(run)["cache"]["teacher_calls"] == 14


@pytest.fixture(scope="module")
def other_cut(tiny, tokenizer, tmp_path_factory) -> Path:
    """Return a random model whose tokenizer merges four pairs of letters."""
    folder = tmp_path_factory.mktemp("other")
    tiny("qwen3", seed=5).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    file = folder / "tokenizer.json"
    made = json.loads(file.read_text("utf-8"))
    for pair in ("an", "in", "ki", "wa"):
        made["model"]["vocab"][pair] = len(made["model"]["vocab"])
        made["model"]["merges"].append(list(pair))
    file.write_text(json.dumps(made), "utf-8")
    return folder


def test_another_teacher_is_used_where_tokens_agree_and_called_once(other_cut, base, tmp_path):
    """It scores 12 rows, the model itself 2 in English; a second run calls neither and is bit-identical."""
    teacher = f"distill.teacher={{type: model, path: '{other_cut}', top_k: 8}}"
    first = opened(tmp_path / "one", base, teacher)
    translation = TokenMap(first.tokenizer, load_tokenizer(str(other_cut)))
    assert translation.covered(tuple(first.tokenizer("kisu")["input_ids"])).tolist() == [
        False, False, True, True
    ]  # fmt: skip
    run_distill(first)
    assert stages(first)["distill"]["teacher_calls"] == 14
    second = opened(tmp_path / "two", base, teacher, f"distill.cache={first.signals}")
    run_distill(second)
    assert (stages(second)["distill"]["teacher_calls"], stages(second)["distill"]["cached_hits"]) == (0, 14)
    ours, theirs = load_file(first.trained), load_file(second.trained)
    assert all((ours[name] == theirs[name]).all() for name in ours)
    plain = opened(tmp_path / "three", base)
    run_distill(plain)
    itself = load_file(plain.trained)
    assert not all((ours[name] == itself[name]).all() for name in ours)


@pytest.mark.parametrize("signal", ["hidden", "top_k"])
def test_each_signal_passes_the_checks(base, tmp_path, signal):
    """With the divergence on and all self-checks, a run ends with its adapters."""
    run = opened(tmp_path / "run", base, f"distill.signal={signal}")
    run_distill(run)
    assert run.trained.exists()
    assert any(line.startswith("Divergence") for line in run.reporter.lines)


def test_the_temperature_is_chosen_over_all_twins():
    """A target over fewer twins would have a lower perplexity at the same temperature."""
    made = torch.randn(2500, 8, generator=torch.Generator().manual_seed(0))
    samples = [Sample(Encoded((5,), (6,)), "sw", n, Signal(None, twin)) for n, twin in enumerate(made)]
    temperature = similarity_temperature(samples, load_config(None, ["model=demo"]).distill)
    assert functional.perplexity(twins_of(samples).vectors, temperature) == pytest.approx(10, rel=0.05)


def test_a_configured_temperature_is_taken_with_fewer_twins_than_can_be_compared():
    """With three twins, no target is neither one-hot nor uniform."""
    samples = [Sample(Encoded((5,), (6,)), "sw", n, Signal(None, torch.eye(3)[n])) for n in range(3)]
    settings = load_config(None, ["model=demo", "distill.similarity_temperature=0.3"]).distill
    assert similarity_temperature(samples, settings) == 0.3


def test_how_a_teacher_is_called_does_not_restart_training():
    """Its scores are the same with another time limit, but not from another model."""

    def scores_by(*changed):
        server = "distill.teacher={type: server, url: 'http://127.0.0.1:1/v1', model: m}"
        config = load_config(None, ["model=demo", "distill.kl_weight=1", server, *changed])
        return stage2.scores_by(config.distill.teacher)

    assert scores_by() == scores_by("distill.teacher.timeout=9", "distill.teacher.concurrency=2")
    assert scores_by() != scores_by("distill.teacher.model=other")


def test_answer_sets_without_a_divergence_are_reported(base, tmp_path, monkeypatch):
    """A model that cannot read several answers in one row learns such rows from their responses alone."""
    monkeypatch.setattr("isogloss.teacher.signals.branches_fit", lambda model: False)
    run = opened(tmp_path / "run", base, "distill.teacher_view=english", "distill.checks=false")
    run_distill(run)
    assert [line for line in run.reporter.lines if line.startswith("Warning")] == [
        "Warning: 10 rows with answer options are trained without the divergence (kl_weight), as the model "
        "cannot read several answers in one row; set distill.teacher_view=prompt to have it"
    ]
