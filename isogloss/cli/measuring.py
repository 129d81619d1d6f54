"""Commands that measure, compare and report."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, get_args

import typer

from isogloss.cli.app import AsJson, ConfigFile, DataRoot, Overrides, RunFolder, path_of
from isogloss.cli.runs import (
    DISTILLED,
    TUNED,
    check_run_folder,
    codes_of,
    load_job,
    prepare,
    require,
    settings_of,
)
from isogloss.cli.screen import err, out, print_first, print_line, printable
from isogloss.cli.tables import columns, difference_cells, points_cells, show_scores
from isogloss.config import Config, load_config, root_of_environment
from isogloss.config.evaluate import TEST_ONLY, Suite
from isogloss.config.yaml_io import label_of
from isogloss.errors import ConfigError, DataError
from isogloss.pipeline.logging import quiet


def teacher_prompt(
    run_folder: RunFolder,
    language: Annotated[str, typer.Option(metavar="CODE", help="Trained language, by any of its codes.")],
    id_: Annotated[str, typer.Option("--id", metavar="ID", help="ID of one of the run's examples.")],
    data_root: DataRoot = None,
) -> None:
    """Show the exact teacher and student prompts of an example, with the response tokens marked."""
    check_run_folder(run_folder)
    (code,) = codes_of([language], "--language")
    job = prepare(load_config(run_folder, data_root=data_root, places=True))
    from isogloss.pipeline import training_rows
    from isogloss.teacher.showing import shown

    row, reader = training_rows.row_of(job, code, id_)
    sides = ("Teacher", row.teacher_prompt, reader), ("Student", row.student.prompt, None)
    for name, prompt, its in sides:
        out.print(
            f"{name}: {len(prompt)} tokens, then {len(row.student.response)} of the response", style="bold"
        )
        print_line(printable(shown(job.tokenizer, prompt, row.student.response, its)))


def teacher_gain(
    run_folder: RunFolder,
    suite: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Suite whose dev items are used; repeatable. Default: the run's that have dev items.",
        ),
    ] = None,
    items: Annotated[int, typer.Option(min=1, help="Maximum items per suite.")] = 40,
    as_json: AsJson = False,
    data_root: DataRoot = None,
) -> None:
    """Measure what prompts add: agreement with the model's own English answer, by prompt and language.

    Distillation can be no better than the prompt. Needs stage 1 only.
    """
    check_run_folder(run_folder)
    require(run_folder, TUNED)
    asked = load_config(run_folder, _only(suite)).evaluate.suites
    suites = [name for name in asked if name not in TEST_ONLY]
    lacking = [name for name in asked if name in TEST_ONLY]
    if lacking and (suite or not suites):
        raise ConfigError(
            f"--suite: {', '.join(lacking)} has no dev split, on which gains are measured; name other suites"
        )
    for name in lacking:
        (err if as_json else out).print(f"{name} is left out, as it has no dev split")
    job = load_job(run_folder, data_root)
    from isogloss.pipeline import evaluation
    from isogloss.pipeline.folder import ProgressReporter

    if as_json:  # progress goes to standard output
        job = replace(job, reporter=ProgressReporter())
    found = evaluation.teacher_gains(job, suites, items)
    if as_json:
        print(json.dumps([asdict(one) for one in found], indent=1))
        return
    for task in dict.fromkeys(one.task for one in found):
        rows = [one for one in found if one.task == task]
        codes = list(dict.fromkeys(one.language for one in rows))
        title = f"{printable(task)}: agreement with the English answer, %"
        table = columns("prompt before the instruction", "mean", "gain", *codes, title=title)
        for view in dict.fromkeys(one.view for one in rows):
            each = {one.language: one for one in rows if one.view == view}
            mean = sum(one.agreement for one in each.values()) / len(each)
            gain = sum(one.gain.value for one in each.values()) / len(each)
            shares = [f"{100 * each[code].agreement:.0f}" if code in each else "" for code in codes]
            plus = "" if view == "bare" else f"{100 * gain:+.1f}"
            table.add_row(view, f"{100 * mean:.1f}", plus, *shares)
        out.print(table)


def transfer(
    run_folder: RunFolder,
    language: Annotated[
        list[str], typer.Option(metavar="CODE", help="Language that the run was not trained on; repeatable.")
    ],
    suite: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Suite; repeatable. Default: the run's.")
    ] = None,
    set_: Overrides = None,
    data_root: DataRoot = None,
) -> None:
    """Measure untrained languages with their family's adapter, the root's, other families', and none.

    Consistency and retrieval over the same items; results are written to transfer.json.
    """
    settings = _finished(run_folder, suite, set_, data_root)
    codes = codes_of(language, "--language")
    require(run_folder, TUNED, DISTILLED)
    from isogloss.evaluate import transfer as measure
    from isogloss.pipeline import evaluation

    job = prepare(settings)
    found = evaluation.run_transfer(job, codes, job.config.evaluate.suites)
    seed = job.config.seed
    for name, title in (("consistency", "Consistency, %"), ("retrieval", "Retrieval, %")):
        rows = [one for one in measure.transfers(found, seed) if one.measure == name]
        if not rows:
            continue
        heads = ("suite", "language", "none", "root", "family", "others", "gain", "interval")
        table = columns(*heads, left=2, title=title)
        for one in rows:
            means = (one.nothing, one.root, one.family, one.others)
            shares = ["–" if mean is None else f"{100 * mean:.1f}" for mean in means]
            gain = one.over_root
            gains = points_cells(gain.value, gain.low, gain.high)
            table.add_row(one.suite, one.language, *shares, *gains)
        out.print(table)
        relatives = list(dict.fromkeys(one.language for one in rows if one.family is not None))
        others = list(dict.fromkeys(one.language for one in rows if one.family is None))
        for what, some in (("with relatives in the tree", relatives), ("without", others)):
            for key, gain in measure.over_languages(found, some, name, seed).items():
                against = {"over_root": "over the root", "over_others": "over other families"}[key]
                value, interval = points_cells(gain.value, gain.low, gain.high)
                print_line(f"{', '.join(some)} ({what}), {against}: {value} ({interval})")
    print_line(
        "none: without adapters; others: mean of the other families; gain: family (else others) minus root"
    )


def evaluate(
    run_folder: RunFolder,
    suite: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Suite to measure instead of those in the settings; repeatable."),
    ] = None,
    set_: Overrides = None,
    data_root: DataRoot = None,
) -> None:
    """Measure a run, before and after stage 2."""
    settings = _finished(run_folder, suite, set_, data_root)
    require(run_folder, TUNED, DISTILLED)
    job = prepare(settings)
    from isogloss import processes
    from isogloss.adapters.fit import refuse_misfit
    from isogloss.pipeline import checks, evaluation
    from isogloss.pipeline.folder import open_run
    from isogloss.report.page import write_report

    checks.check_suites(job)
    # The base may be gone; the run reads its tuned model.
    refuse_misfit(settings.model_copy(update={"model": str(job.tuned)}))
    kept = settings
    if suite:  # scores of additional suites are kept beside those of the run's own suites
        own = (*load_config(run_folder).evaluate.suites, *settings.evaluate.suites)
        every = settings.evaluate.model_copy(update={"suites": tuple(dict.fromkeys(own))})
        kept = settings.model_copy(update={"evaluate": every})
    whole = open_run(kept, job.reporter)
    if processes.is_main():
        evaluation.run_evaluate(job)
        if stale := evaluation.unscored(whole, evaluation.scores_of_run(whole)):
            print_line(f"Scored with other settings, so `isogloss run` scores again: {', '.join(stale)}")
        page = write_report(job.folder)
        show_scores(job)
        print_line(f"Report: {page}")


def report(
    run_folder: RunFolder,
    lm_eval_json: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            parser=path_of,
            help="Also write the scores in the format of lm-evaluation-harness.",
        ),
    ] = None,
) -> None:
    """Write the report of a run again."""
    check_run_folder(run_folder)
    from isogloss.report.page import write_report

    print_line(f"Report: {write_report(run_folder)}")
    if lm_eval_json is not None:
        require(run_folder, TUNED)
        quiet()
        from isogloss.export.lm_eval import write_results
        from isogloss.pipeline.folder import load_run

        for file in write_results(load_run(run_folder), lm_eval_json):
            print_line(f"Results: {file}")


def compare(
    run_a: Annotated[Path, typer.Argument(metavar="RUN_A", parser=path_of, help="Run folder.")],
    run_b: Annotated[
        Path,
        typer.Argument(metavar="RUN_B", parser=path_of, help="Another run folder, on the same items."),
    ],
    as_json: AsJson = False,
) -> None:
    """Compare two runs: difference, confidence interval and p-value, per language and on average."""
    check_run_folder(run_a)
    check_run_folder(run_b)
    from isogloss.evaluate.compare import compare as paired

    found = paired(run_a, run_b)
    if as_json:
        print(json.dumps([asdict(one) for one in found], indent=1))
        return
    for suite in dict.fromkeys(one.suite for one in found):
        heads = ("measure", "language", "difference", "95 % interval", "p", "n")
        table = columns(*heads, left=2, title=f"{suite}: A minus B, points")
        for one in found:
            if one.suite == suite:
                for code, d in {"mean": one.mean, **one.languages}.items():
                    table.add_row(one.measure if code == "mean" else "", code, *difference_cells(asdict(d)))
        out.print(table)
    print_line("p of single languages is corrected for multiple comparisons (Holm); p of the mean is not.")


def suites(data_root: DataRoot = None) -> None:
    """List the suites: languages, licence, source, and whether the data is in the data root."""
    root = data_root or root_of_environment()
    if root is not None and not root.is_dir():
        raise DataError(f"data root {root} is not a folder; set --data-root or ISOGLOSS_DATA")
    from isogloss.evaluate.suites import ABOUT

    table = columns("suite", "data", left=2)
    table.add_column("what it measures, and where it comes from")
    for name, about in ABOUT.items():
        there = not about.folders or (
            root is not None and any(path for pattern in about.folders for path in root.glob(pattern))
        )
        table.add_row(name, "here" if there else "—", f"{about.measures}; languages: {about.languages}")
        table.add_row("", "", f"{about.source}; {about.licence}", style="dim")
    out.print(table)


def check_leaks(config: ConfigFile = None, set_: Overrides = None, data_root: DataRoot = None) -> None:
    """List test items that occur in the training data, whole or in part; exit code 1 if there are any."""
    job = prepare(settings_of(config, set_, data_root))
    from isogloss.pipeline import checks

    found = checks.leaks(job)
    print_first(50, [leak.line() for leak in found])
    for suite in job.config.evaluate.suites:
        exact, part = (
            len({leak.id for leak in found if leak.suite == suite and leak.whole is whole})
            for whole in (True, False)
        )
        print_line(
            f"{suite}: {exact} items are in the training data word for word, {part} share a long passage"
        )
    if found:
        raise typer.Exit(1)


def _only(suites: list[str] | None) -> list[str]:
    """Return the override that replaces the suites in the settings; none if no suites are given.

    Raises:
        ConfigError: There is no such suite.
    """
    known = get_args(Suite)
    if unknown := [name for name in suites or () if name not in known]:
        raise ConfigError(f"--suite: {unknown[0]} is not a suite; choose from {', '.join(known)}")
    return [f"evaluate.suites={json.dumps(suites)}"] if suites else []


def _finished(
    folder: Path, suites: list[str] | None, overrides: list[str] | None, root: Path | None
) -> Config:
    """Load a finished run's settings, of which only those of the evaluation may change.

    Raises:
        ConfigError: It is not a run folder, or an override changes anything else.
    """
    check_run_folder(folder)
    for override in overrides or ():
        name = override.partition("=")[0].strip()
        if name.partition(".")[0] not in ("evaluate", "data_root"):
            raise ConfigError(
                f"{label_of(override)}: for a finished run only evaluate settings and data_root may change"
            )
        if suites and name in ("evaluate", "evaluate.suites"):
            raise ConfigError(f"{label_of(override)}: --suite names the suites; leave one of them out")
    return load_config(folder, [*_only(suites), *(overrides or ())], data_root=root)
