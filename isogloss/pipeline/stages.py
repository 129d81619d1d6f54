"""The stages of a run: English tuning → distillation into the tree → evaluation → report.

Each stage writes its result to the run folder atomically and is skipped if the result exists, so running
again resumes the run, or reports that it is complete.
"""

import shutil
from dataclasses import replace

import torch
from transformers import PreTrainedModel

from isogloss import processes
from isogloss.config import Config
from isogloss.data import selection
from isogloss.data.counting import unchanging
from isogloss.data.sources import divisions
from isogloss.data.tasks.wordings import vary_wordings
from isogloss.data.templates import template_name
from isogloss.errors import DataError
from isogloss.evaluate.suites import load_suite
from isogloss.files import write_json
from isogloss.languages import SOURCE
from isogloss.model.cost import TEACHER, StageCost, spending
from isogloss.model.fingerprint import fingerprint
from isogloss.model.load import load_model, pad_id
from isogloss.pipeline.checks import leave_out_leaks
from isogloss.pipeline.evaluation import run_evaluate, scores_of_run, unscored
from isogloss.pipeline.folder import Run, writing
from isogloss.pipeline.tracking import check_installed, tracking
from isogloss.pipeline.training import pausing, pausing_bar, scored_elsewhere, train_adapters
from isogloss.pipeline.training_rows import drawn, rows_for
from isogloss.report.page import write_report
from isogloss.teacher.cache import Cache, teacher_of
from isogloss.train.stage1 import difficulty, english_rows, longest_row, tune, within
from isogloss.train.stage2 import read_signals


@writing
def run_all(run: Run) -> bool:
    """Run every stage that is not finished; return False if there was nothing left to do."""
    report, scores = run.folder / "report.html", run.folder / "scores.json"
    reported = report.exists() and scores.exists() and report.stat().st_mtime_ns >= scores.stat().st_mtime_ns
    settings = run.config.evaluate
    # Public data sets do not change, but the user's own test file may have.
    own = {}
    if reported and "parallel" in settings.suites:
        own["parallel"] = load_suite("parallel", run.data_root, settings, run.measured)
    if reported and not unscored(run, scores_of_run(run), own):
        return False
    run_tune(run)
    run_distill(run)
    if processes.is_main():  # the remaining stages run on one process
        run_evaluate(run)
        write_report(run.folder)
    return True


def select_english(run: Run, stage: StageCost | None = None) -> selection.Selection:
    """Select the English examples to tune on; the result also lists the dropped ones with reasons.

    Args:
        stage: Accumulates the cost of scoring the examples.

    Raises:
        DataError: No example is left.
    """
    if not (examples := run.english):
        raise DataError(
            "all English examples occur in the evaluation suites, so none is left to tune on; "
            f"{run.leaks.name} lists them, and `isogloss check-leaks` says where"
        )
    settings = run.config.tune.selection
    chosen = selection.Selection(tuple(examples), ())
    with run.reporter.waiting("Selecting English items"):
        if settings.enabled:
            chosen = selection.select(examples, max_chars=settings.max_chars)
        kept = vary_wordings(chosen.kept, run.config.seed) if run.config.tune.vary_wording else chosen.kept
        short = within(kept, run.base_tokenizer, longest_row(run.config))
    chosen = selection.Selection(short.kept, chosen.dropped + short.dropped)
    if settings.keep < 1 and chosen.kept:
        base = _base(run, run.dtype)
        with run.reporter.bar("Difficulty") as progress, spending(stage or StageCost(""), base):
            scores = difficulty(base, run.base_tokenizer, chosen.kept, progress)
        best = selection.keep_best(chosen.kept, scores, settings.keep)
        chosen = selection.Selection(best.kept, chosen.dropped + best.dropped)
    if not chosen.kept:
        raise DataError(
            f"none of the {len(examples)} English examples is left to tune on: "
            + ", ".join(f"{rule} {count}" for rule, count in selection.summary(chosen).items())
        )
    return chosen


def _base(run: Run, dtype: torch.dtype) -> PreTrainedModel:
    with run.reporter.waiting(f"Loading {run.config.model}"):
        return load_model(run.config.model, dtype, shard=run.config.shard)


@writing
def run_tune(run: Run) -> None:
    """Stage 1: tune the reference model and write it to `tuned/`."""
    if run.tuned.exists():
        shutil.rmtree(run.folder / "tuned.work", ignore_errors=True)  # a kill may have left it
        return
    check_installed(run.config.report_to)
    leave_out_leaks(run)
    stage, settings = run.ledger.begin("tune"), run.config.tune
    if processes.is_main() and (divided := divisions(run.config, run.data_root)):
        write_json(run.folder / "division.json", {one.name: one.plain() for one in divided})
    selecting = StageCost("")  # added after training, as a killed run selects again
    chosen = select_english(run, selecting)
    if processes.is_main():
        selection.write(chosen, run.folder / "selection.jsonl")
    tokenizer = run.base_tokenizer
    if name := template_name(tokenizer):
        run.reporter.say(f"Chat template: {name}")
    # Small updates to bfloat16 weights are lost in rounding; with LoRA the base is frozen.
    dtype = torch.float32 if settings.method == "full" else run.dtype
    base = _base(run, dtype)
    with run.reporter.waiting("Tokenising the rows"):
        rows = english_rows(chosen.kept, unchanging(tokenizer))
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
            progress=pausing(run, stage, progress),
            compile=run.config.compile,
            report_to=run.config.report_to,
            say=run.reporter.say,
        )
    stage.take(selecting)
    stage.trained(counts)
    run.ledger.pause(stage)


@writing
def run_distill(run: Run) -> None:
    """Stage 2: train the adapters and write them to `adapters/`; the reference model stays bit-identical."""
    if run.trained.exists():
        shutil.rmtree(run.folder / "distill.work", ignore_errors=True)  # a kill may have left it
        return
    check_installed(run.config.report_to)
    leave_out_leaks(run)
    model = run.reference_model(learning=True)
    stage = run.ledger.begin("distill")
    rows = rows_for(run, model, run.examples, run.tree, run.taught, stage)
    adapters = run.student(model, trained=False)
    parallel = sum(row.language != SOURCE for row in rows)
    replayed = len(rows) - parallel
    run.reporter.say(
        f"Stage 2: {parallel} rows in {len(run.taught)} languages train {len(adapters.learning)} nodes, rank "
        f"{run.tree.path_rank()} per path{no_kl(run.config)}"
        + (f"; {replayed} English replay rows train the root (KL to the reference model)" if replayed else "")
    )
    for line in drawn(run, rows, run.taught):
        run.reporter.say(line)
    train_adapters(run, adapters, rows, run.taught, stage)


def no_kl(config: Config) -> str:
    """Return a note if no prompt is distilled, as no teacher reads one; "" otherwise."""
    return "" if config.distill.prompts_are_read else " (distill.kl_weight is 0: no prompt is distilled)"


@writing
def run_cache(run: Run) -> StageCost:
    """Cache the teacher signals of every row, so that stage 2 need not compute them; return the cost."""
    leave_out_leaks(run)
    model = run.reference_model(learning=True)
    stage = run.ledger.begin("cache")
    earlier = replace(stage)
    here = {code for example in run.examples for code in example.turns}  # others were added from other data
    codes = [code for code in run.taught if code in here]
    rows, bar = rows_for(run, model, run.examples, run.tree, codes, stage), pausing_bar(run, stage)
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
    return StageCost("cache", **{name: getattr(stage, name) - getattr(earlier, name) for name in TEACHER})
