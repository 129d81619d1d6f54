"""Commands that train (the whole job, its stages, another language) or estimate the cost."""

import json
import shlex
from pathlib import Path
from typing import Annotated

import typer

from isogloss.cli.app import AsJson, ConfigFile, DataRoot, Overrides, RunFolder, path_of
from isogloss.cli.runs import (
    DISTILLED,
    TUNED,
    check_run_folder,
    codes_of,
    open_job,
    prepare,
    require,
    settings_of,
)
from isogloss.cli.screen import print_line
from isogloss.cli.tables import show_plan, show_scores, show_selection
from isogloss.config import load_config, refuse_shared
from isogloss.pipeline.logging import quiet


def run(config: ConfigFile = None, set_: Overrides = None, data_root: DataRoot = None) -> None:
    """Run the whole job: English tuning, distillation, evaluation, report."""
    settings = settings_of(config, set_, data_root)
    job = open_job(settings)
    from isogloss import processes
    from isogloss.pipeline.stages import run_all

    if not run_all(job):
        print_line(f"{job.folder} is complete; its report is {job.folder / 'report.html'}")
        return
    if processes.is_main():
        show_scores(job)
        print_line(f"Report: {job.folder / 'report.html'}")


def tune(
    config: ConfigFile = None,
    set_: Overrides = None,
    data_root: DataRoot = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only show which items would be dropped, and why.")
    ] = False,
) -> None:
    """Stage 1: tune the base model on selected English instructions."""
    settings = settings_of(config, set_, data_root)
    if dry_run:
        show_selection(prepare(settings))
        return
    job = open_job(settings)
    from isogloss.pipeline.stages import run_tune

    run_tune(job)
    print_line(f"Reference model: {job.tuned}")


def distill(config: ConfigFile = None, set_: Overrides = None, data_root: DataRoot = None) -> None:
    """Stage 2: train the adapters of all languages on the frozen model."""
    settings = settings_of(config, set_, data_root)
    require(settings.run, TUNED)
    job = open_job(settings)
    from isogloss.pipeline.stages import run_distill

    run_distill(job)
    print_line(f"Adapters: {job.folder / 'adapters'}")


def cache(config: ConfigFile = None, set_: Overrides = None, data_root: DataRoot = None) -> None:
    """Compute the teacher's outputs for stage 2 in advance, so that `distill` finds them cached."""
    settings = settings_of(config, set_, data_root)
    require(settings.run, TUNED)
    job = open_job(settings)
    from isogloss.pipeline.stages import run_cache

    done = run_cache(job)
    print_line(
        f"Teacher outputs: {job.signals}; {done.teacher_calls} rows read, {done.cached_hits} already cached, "
        f"{done.cache_bytes_written} bytes written"
    )


def add_language(
    run_folder: RunFolder,
    language: Annotated[
        list[str], typer.Argument(metavar="CODE...", help="Languages, by any of their codes.")
    ],
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            parser=path_of,
            help="Parallel data with the language. Default: the run's own data.",
        ),
    ] = None,
    set_: Overrides = None,
    data_root: DataRoot = None,
) -> None:
    """Add a language to a finished run; all other languages stay bit-identical."""
    check_run_folder(run_folder)
    refuse_shared(set_ or ())
    codes = codes_of(language, "CODE")
    more = ["tune.vary_wording=false"]  # stage 1 is over, and other data may have only one wording
    more += [f"data={{type: parallel, path: {json.dumps(str(data))}}}"] if data else []
    settings = load_config(run_folder, [*more, *(set_ or ())], data_root=data_root, places=True)
    require(run_folder, TUNED, DISTILLED)
    job = prepare(settings)
    from isogloss.pipeline import add_language as growing

    growing.add_languages(job, codes)
    print_line(f"Adapters: {', '.join(str(run_folder / 'adapters' / code) for code in codes)}")
    print_line(f"To measure them too: isogloss evaluate {shlex.quote(str(run_folder))}")


def plan(
    config: ConfigFile = None,
    machine: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            parser=path_of,
            help="YAML: devices, memory_gib, tflops. Default: this machine.",
        ),
    ] = None,
    as_json: AsJson = False,
    set_: Overrides = None,
    data_root: DataRoot = None,
) -> None:
    """Estimate the cost of a run from tensor shapes alone; exit code 1 if it does not fit."""
    settings = settings_of(config, set_, data_root)
    quiet()
    from isogloss.plan import preflight
    from isogloss.plan.machine import load_machine, this_machine

    there = load_machine(machine) if machine else this_machine(settings.dtype)
    found = preflight.plan(settings, there)
    if as_json:
        print(json.dumps(found.plain(), indent=1))
    else:
        show_plan(found)
    if not found.fits:
        raise typer.Exit(1)
