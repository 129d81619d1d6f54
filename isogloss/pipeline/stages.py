"""The whole job: English tuning → distillation into the tree → evaluation → report.

Each stage leaves its result in the run folder, whole, and is skipped when it is already there; so
running again resumes, or says that the run is complete.
"""

import json
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import PreTrainedModel

from isogloss import processes
from isogloss.adapters.base import Carrier
from isogloss.adapters.tree import Tree
from isogloss.config import Config
from isogloss.data import selection
from isogloss.data.counting import unchanging
from isogloss.data.sources import divisions
from isogloss.data.templates import template_name
from isogloss.errors import DataError
from isogloss.files import (
    naming,
    read_json,
    replacing,
    write_json,
)
from isogloss.languages import SOURCE
from isogloss.model.cost import TEACHER, Stage, spending
from isogloss.model.fingerprint import fingerprint
from isogloss.model.load import (
    load_model,
    pad_id,
)
from isogloss.pipeline.checks import leaks
from isogloss.pipeline.evaluation import run_evaluate, scores_of_run, unscored
from isogloss.pipeline.families import learn_families
from isogloss.pipeline.folder import Progress, Run, writing
from isogloss.pipeline.tracking import check_installed, tracking
from isogloss.pipeline.training_rows import drawn, rows_for
from isogloss.report.page import write_report
from isogloss.teacher import joining
from isogloss.teacher.cache import Cache, teacher_of
from isogloss.teacher.rows import Row
from isogloss.teacher.scored import Scored
from isogloss.teacher.texts import node_texts
from isogloss.train.stage1 import difficulty, english_rows, longest_row, tune, within
from isogloss.train.stage2 import Bar, distil, read_signals


@writing
def run_all(run: Run) -> bool:
    """Every stage that is not there yet; whether anything was left to do."""
    if (run.folder / "report.html").exists() and not unscored(run, scores_of_run(run)):
        return False
    if not run.tuned.exists() and (found := leaks(run)):
        items = {(leak.suite, leak.id) for leak in found}
        run.reporter.say(
            f"Warning: {len(items)} test items are in the training data; `isogloss check-leaks` lists them"
        )
    run_tune(run)
    run_distill(run)
    if processes.is_main():  # the others have no part in the rest
        run_evaluate(run)
        run_report(run)
    return True


def select_english(run: Run, stage: Stage | None = None) -> selection.Selection:
    """The English examples that are good enough to learn from, and why the others are not.

    Args:
        stage: Gets what it costs to find out.
    """
    examples = run.english
    settings = run.config.tune.selection
    chosen = selection.Selection(tuple(examples), ())
    with run.reporter.waiting("Selecting English items"):
        if settings.enabled:
            chosen = selection.select(examples, max_chars=settings.max_chars)
        short = within(chosen.kept, run.base_tokenizer, longest_row(run.config))
    chosen = selection.Selection(short.kept, chosen.dropped + short.dropped)
    if not chosen.kept:
        raise DataError(
            f"none of {len(examples)} English examples is left to tune on: "
            + ", ".join(f"{rule} {count}" for rule, count in selection.summary(chosen).items())
        )
    if settings.keep < 1:
        base = _base(run, run.dtype)
        with run.reporter.bar("Difficulty") as progress, spending(stage or Stage(""), base):
            scores = difficulty(base, run.base_tokenizer, chosen.kept, progress)
        best = selection.keep_best(chosen.kept, scores, settings.keep)
        chosen = selection.Selection(best.kept, chosen.dropped + best.dropped)
    return chosen


def _base(run: Run, dtype: torch.dtype) -> PreTrainedModel:
    with run.reporter.waiting(f"Loading {run.config.model}"):
        return load_model(run.config.model, dtype, shard=run.config.shard)


@writing
def run_tune(run: Run) -> None:
    """Stage 1: the reference model, in `tuned/`."""
    if run.tuned.exists():
        return
    check_installed(run.config.report_to)
    stage, settings = run.ledger.begin("tune"), run.config.tune
    if processes.is_main() and (divided := divisions(run.config, run.data_root)):
        write_json(run.folder / "division.json", {one.name: one.plain() for one in divided})
    selecting = Stage("")  # done again where training is killed, so counted when it has ended
    chosen = select_english(run, selecting)
    if processes.is_main():
        selection.write(chosen, run.folder / "selection.jsonl")
    tokenizer = run.base_tokenizer
    if name := template_name(tokenizer):
        run.reporter.say(
            f"Chat template: {name}" + ("" if run.config.chat_template else ", as the base has none")
        )
    # Small steps are lost in weights of bfloat16; frozen ones take none.
    dtype = torch.float32 if settings.method == "full" else run.dtype
    base = _base(run, dtype)
    with run.reporter.waiting("Tokenising the rows"):
        rows = english_rows(
            chosen.kept,
            unchanging(tokenizer),
            node_texts(run.config),
            settings.teacher_prompt_fraction,
            run.config.seed,
            longest_row(run.config),
        )
    why = ", ".join(f"{count} {rule}" for rule, count in selection.summary(chosen).items())
    run.reporter.say(
        f"Stage 1: {len(chosen.kept)} English instructions tune the base ({len(chosen.dropped)} left out"
        + (f": {why})" if why else ")")
    )
    with tracking(run.folder, run.config.report_to), run.reporter.bar("English tuning") as progress:
        counts = tune(
            base,
            tokenizer,
            rows,
            settings,
            run.tuned,
            name=run.config.model,
            curve=run.curve,
            seed=run.config.seed,
            dtype=run.dtype,
            progress=_pausing(run, stage, progress),
            compile=run.config.compile,
            report_to=run.config.report_to,
            say=run.reporter.say,
        )
    stage.take(selecting)
    stage.tokens_forwarded += int(counts["tokens"])
    stage.tokens_backpropagated += int(counts["tokens"])
    stage.flops += counts["flops"]
    run.ledger.pause(stage)


@writing
def run_distill(run: Run) -> None:
    """Stage 2: the carriers, in `adapters/`; the reference model is unchanged to the bit."""
    if run.carriers.exists():
        return
    check_installed(run.config.report_to)
    model = run.reference_model(learning=True)
    stage = run.ledger.begin("distill")
    learn_families(run, model, stage)
    rows = rows_for(run, model, run.examples, run.tree, run.taught, stage)
    parallel = sum(row.language != SOURCE for row in rows)
    run.reporter.say(
        f"Stage 2: {parallel} rows in {len(run.taught)} languages {into(run.config)} {len(run.tree.nodes)} "
        f"nodes, {_width(run)} a path; {len(rows) - parallel} in English keep the root to it"
    )
    for line in drawn(run, rows, run.taught):
        run.reporter.say(line)
    carrier = run.student(model, trained=False)
    run.start(carrier)
    train_carrier(run, carrier, rows, run.taught, stage)


def into(config: Config) -> str:
    """What stage 2 has rows do to nodes, in words: without a divergence they have no prompt distilled."""
    if config.distill.prompts_are_read:
        return "are distilled into"
    return "train (distill.kl_weight is 0, so no prompt is distilled)"


def _width(run: Run) -> str:
    """How much a path holds, in words."""
    width = run.tree.path_rank()
    return f"rank {width}" if run.config.distill.adapter.type == "lora" else f"{width} virtual positions"


@writing
def run_cache(run: Run) -> Stage:
    """The teacher's signals of every row, in the cache, so that stage 2 spends nothing on it; the cost."""
    model = run.reference_model(learning=True)
    stage = run.ledger.begin("cache")
    earlier = replace(stage)
    learn_families(run, model, stage)
    rows = rows_for(run, model, run.examples, run.tree, run.taught, stage)

    @contextmanager
    def bar(what: str) -> Iterator[Progress]:
        with run.reporter.bar(what) as progress:
            yield _pausing(run, stage, progress)

    scored = scored_elsewhere(run, rows, stage, bar)
    read_signals(
        model,
        rows,
        run.config.distill,
        pad_id=pad_id(run.tokenizer),
        cost=stage,
        bar=bar,
        cache=Cache(run.signals, teacher_of(model, run.tokenizer, fingerprint(model))),
        scored=scored,
    )
    run.ledger.pause(stage)
    return Stage("cache", **{name: getattr(stage, name) - getattr(earlier, name) for name in TEACHER})


def train_carrier(
    run: Run, carrier: Carrier, rows: Sequence[Row], codes: Sequence[str], stage: Stage
) -> None:
    """Distil the rows into the carriers, then write these, and the languages' adapters, to the run."""
    work = run.folder / f"{stage.stage}.work"
    with run.reporter.waiting("Hashing the model's weights"):
        before = fingerprint(carrier.model)

    @contextmanager
    def bar(what: str) -> Iterator[Progress]:
        with run.reporter.bar(what) as progress:
            yield _pausing(run, stage, progress)
        run.ledger.pause(stage)

    with tracking(run.folder, run.config.report_to):
        distil(
            carrier,
            rows,
            run.config.distill,
            pad_id=pad_id(run.tokenizer),
            seed=run.config.seed,
            work=work,
            curve=run.curve,
            cost=stage,
            bar=bar,
            say=run.reporter.say,
            tokenizer=run.tokenizer,
            cache=Cache(run.signals, teacher_of(carrier.model, run.tokenizer, before)),
            scored=scored_elsewhere(run, rows, stage, bar),
            compile=run.config.compile,
            report_to=run.config.report_to,
        )
    if fingerprint(carrier.model) != before:
        raise RuntimeError("stage 2 changed the reference model's weights")
    if processes.is_main():
        _keep(run, carrier, rows, codes)
        run.ledger.pause(stage)
        shutil.rmtree(work, ignore_errors=True)
    processes.wait()


def _keep(run: Run, carrier: Carrier, rows: Sequence[Row], codes: Sequence[str]) -> None:
    """Write trained carriers: each language's adapter, the tree, and last what says that all are there.

    Learned in float32, they are kept in bfloat16, rounded before anything reads them: adapters, exports,
    bundle and scores are of the same numbers.
    """
    state = {name: rows.bfloat16() for name, rows in carrier.state().items()}
    carrier.load_state(state)
    for code in filter(carrier.reads, codes):
        adapter = run.folder / "adapters" / code
        with naming(adapter):
            carrier.export(code, adapter, base_model=str(run.tuned.resolve()))
    write_json(run.folder / "tree.json", _tree_image(run, carrier.tree, rows))
    save_whole(state, run.carriers, {"families": json.dumps(carrier.tree.families)})


@writing
def run_report(run: Run) -> Path:
    """The page, in `report.html`."""
    return write_report(run.folder)


def save_whole(state: dict[str, torch.Tensor], path: Path, about: dict[str, str] | None = None) -> None:
    """Write tensors, and texts about them, whole or not at all."""
    with replacing(path) as draft:
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, draft, about)


def scored_elsewhere(run: Run, rows: Sequence[Row], stage: Stage, bar: Bar) -> list[Scored] | None:
    """What another teacher than the model itself says of the rows that are not English, if there is one."""
    with processes.main_first():
        return joining.scores_of(
            rows,
            run.config.distill,
            run.tokenizer,
            run.dtype,
            run.folder / "teacher_scores.jsonl",
            stage,
            bar,
            lambda model, its: Cache(run.signals, teacher_of(model, its, fingerprint(model))),
        )


def _tree_image(run: Run, tree: Tree, rows: Sequence) -> dict:
    """The nodes with their texts and how many rows each has learnt from, before the tree grew too."""
    texts, file, earlier = node_texts(run.config), run.folder / "tree.json", {}
    if run.carriers.exists() and file.exists():
        remedy = "remove it; how many items the nodes have learned from is then counted anew"
        earlier = {node["name"]: node["items"] for node in read_json(file, "nodes", remedy)["nodes"]}
    return {
        "nodes": [
            {
                "name": node.name,
                "level": node.level,
                "parent": node.parent,
                "rank": node.rank,
                "languages": list(node.languages),
                "text": texts.of(node) or "",
                "items": earlier.get(node.name, 0) + sum(row.language in node.languages for row in rows),
            }
            for node in tree.nodes
        ]
    }


def _pausing(run: Run, stage: Stage, progress: Progress) -> Progress:
    """Progress that also writes the ledger now and then, so that a killed run loses little of its time."""

    def report(done: int, of: int) -> None:
        if done % 50 == 0 or time.monotonic() - stage.started > 10:  # seconds
            run.ledger.pause(stage)
        progress(done, of)

    return report
