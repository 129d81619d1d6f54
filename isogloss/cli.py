"""The command line: a command parses, calls one function, prints.

Nothing here imports torch before the settings are known to be right.
"""

import contextlib
import io
import json
import shlex
import sys
import time
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TextColumn
from rich.table import Table
from rich.text import Text
from typer.core import TyperGroup

from isogloss import bundle
from isogloss.config import (
    Config,
    for_choosing,
    home,
    load_config,
    refuse_shared,
    root_of_environment,
    run_folder_of,
)
from isogloss.errors import ConfigError, DataError, IsoglossError, RunError
from isogloss.files import read_json
from isogloss.languages import Language, UnknownLanguageError, resolve
from isogloss.languages import languages as registry
from isogloss.quiet import quiet

if TYPE_CHECKING:
    from isogloss.asking import Asker
    from isogloss.pipeline import Run
    from isogloss.planning import Plan


class Commands(TyperGroup):
    """Click takes every EOFError for Ctrl-D; from anywhere but the prompt it is a damaged file's."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except EOFError as error:
            raise RuntimeError("a file ended too early") from error


app = typer.Typer(
    cls=Commands,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
out, err = Console(highlight=False), Console(stderr=True, highlight=False)


def _path(text: Any) -> Path:
    """A path on the command line; a shell leaves the `~` of `--out=~/runs` as it is."""
    return home(Path(text))


ConfigFile = Annotated[
    Path | None,
    typer.Argument(
        metavar="[CONFIG]",
        parser=_path,
        help="YAML settings, or a run's folder; without it the embedded default.",
    ),
]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", parser=_path, help="A run's folder.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="Change a setting, e.g. distill.lr=0.001; repeatable."),
]
DataRoot = Annotated[
    Path | None,
    typer.Option(metavar="FOLDER", parser=_path, help="Folder of the real data sets; else ISOGLOSS_DATA."),
]


def _version(asked: bool) -> bool:
    if asked:
        out.print(f"isogloss {version('isogloss')}")
        raise typer.Exit
    return asked


@app.callback()
def start(
    asked: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit."),
    ] = False,
) -> None:
    """Tune a language model on English instructions,
    then have it follow them the same way in every language."""


@app.command()
def run(config: ConfigFile = None, set_: Overrides = None, data_root: DataRoot = None) -> None:
    """The whole job: English tuning, distillation, evaluation, report."""
    settings = _settings(config, set_, data_root)
    job = _open(settings)
    from isogloss import pipeline, processes

    if not pipeline.run_all(job):
        _line(f"{job.folder} is complete; its report is {job.folder / 'report.html'}")
        return
    if processes.is_main():
        _show_scores(job)
        _line(f"Report: {job.folder / 'report.html'}")


@app.command()
def tune(
    config: ConfigFile = None,
    set_: Overrides = None,
    data_root: DataRoot = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only show which items would be left out, and why.")
    ] = False,
) -> None:
    """Stage 1: selected English instructions tune the base."""
    settings = _settings(config, set_, data_root)
    if dry_run:
        _show_selection(_prepare(settings))
        return
    job = _open(settings)
    from isogloss import pipeline

    pipeline.run_tune(job)
    _line(f"Reference model: {job.tuned}")


@app.command()
def distill(config: ConfigFile = None, set_: Overrides = None, data_root: DataRoot = None) -> None:
    """Stage 2: one adapter per language, into which the prompts are distilled where distill.kl is above 0."""
    settings = _settings(config, set_, data_root)
    _require(settings.run, TUNED)
    job = _open(settings)
    from isogloss import pipeline

    pipeline.run_distill(job)
    _line(f"Adapters: {job.folder / 'adapters'}")


@app.command()
def cache(config: ConfigFile = None, set_: Overrides = None, data_root: DataRoot = None) -> None:
    """Read the teacher's signals of stage 2 once, so that `distill` spends nothing on them."""
    settings = _settings(config, set_, data_root)
    _require(settings.run, TUNED)
    job = _open(settings)
    from isogloss import pipeline

    done = pipeline.run_cache(job)
    _line(
        f"Signals: {job.signals}; {done.teacher_calls} rows read, {done.cached_hits} there already, "
        f"{done.cache_bytes_written} bytes written"
    )


@app.command("teacher-prompt")
def teacher_prompt(
    run_folder: RunFolder,
    language: Annotated[str, typer.Option(metavar="CODE", help="A language that is taught, by any code.")],
    id_: Annotated[str, typer.Option("--id", metavar="ID", help="The id of one of the run's examples.")],
) -> None:
    """Exactly what teacher and student read of an example; the tokens that are learned from are marked."""
    _is_run(run_folder)
    (code,) = _codes([language], "--language")
    job = _prepare(load_config(run_folder, places=True))
    from isogloss import pipeline
    from isogloss.teacher.showing import shown

    row, reader = pipeline.row_of(job, code, id_)
    sides = ("Teacher", row.teacher_prompt, reader), ("Student", row.student.prompt, None)
    for name, prompt, its in sides:
        out.print(
            f"{name}: {len(prompt)} tokens, then {len(row.student.response)} of the response", style="bold"
        )
        _line(_plain(shown(job.tokenizer, prompt, row.student.response, its)))


@app.command("teacher-gain")
def teacher_gain(
    run_folder: RunFolder,
    suite: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A suite whose dev items are asked; the run's own without it."),
    ] = None,
    items: Annotated[int, typer.Option(min=1, help="Items of each suite, at most.")] = 40,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on standard output.")] = False,
) -> None:
    """What prompting adds in context: agreement with the model's own English answer, by prompt and language.

    What is distilled can be no better. Needs stage 1 alone.
    """
    _is_run(run_folder)
    _require(run_folder, TUNED)
    job = _load(run_folder)
    from isogloss import pipeline

    found = pipeline.teacher_gains(job, suite or job.config.evaluate.suites, items)
    if as_json:
        print(json.dumps([asdict(one) for one in found], indent=1))
        return
    for task in dict.fromkeys(one.task for one in found):
        rows = [one for one in found if one.task == task]
        codes = list(dict.fromkeys(one.language for one in rows))
        table = Table(box=None, header_style="bold", pad_edge=False, title_justify="left")
        table.title = f"{task}: answers as in English, %"
        table.add_column("read before the instruction", no_wrap=True)
        for name in ("mean", "gain", *codes):
            table.add_column(name, no_wrap=True, justify="right")
        for view in dict.fromkeys(one.view for one in rows):
            each = {one.language: one for one in rows if one.view == view}
            mean = sum(one.agreement for one in each.values()) / len(each)
            gain = sum(one.gain.value for one in each.values()) / len(each)
            shares = [f"{100 * each[code].agreement:.0f}" if code in each else "" for code in codes]
            plus = "" if view == "bare" else f"{100 * gain:+.1f}"
            table.add_row(view, f"{100 * mean:.1f}", plus, *shares)
        out.print(table)


@app.command()
def transfer(
    run_folder: RunFolder,
    language: Annotated[
        list[str], typer.Option(metavar="CODE", help="A language that the run was not taught; repeatable.")
    ],
    suite: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A suite; the run's own without it.")
    ] = None,
    set_: Overrides = None,
    data_root: DataRoot = None,
) -> None:
    """What untaught languages get today: through their family, the root, other families, and no adapter.

    Consistency and retrieval over the same items; written to transfer.json.
    """
    _is_run(run_folder)
    _require(run_folder, TUNED, DISTILLED)
    from isogloss import pipeline
    from isogloss.evaluate import transfer as measure
    from isogloss.languages import resolve

    codes = list(dict.fromkeys(resolve(one).code for one in language))
    job = _prepare(load_config(run_folder, set_ or (), data_root=data_root))
    found = pipeline.run_transfer(job, codes, suite or job.config.evaluate.suites)
    seed = job.config.seed
    for name, title in (("consistency", "Consistency, %"), ("retrieval", "Retrieval, %")):
        rows = [one for one in measure.transfers(found, seed) if one.measure == name]
        if not rows:
            continue
        table = Table(box=None, header_style="bold", pad_edge=False, title=title, title_justify="left")
        for head in (
            "suite",
            "language",
            "none",
            "root",
            "family",
            "others",
            "gain",
            "interval",
        ):
            table.add_column(head, no_wrap=True, justify="left" if head in ("suite", "language") else "right")
        for one in rows:
            shares = [f"{100 * one.nothing:.1f}", f"{100 * one.root:.1f}"]
            shares += ["–" if n is None else f"{100 * n:.1f}" for n in (one.family, one.others)]
            gain = one.over_root
            table.add_row(
                one.suite, one.language, *shares, f"{100 * gain.value:+.1f}",
                f"{100 * gain.low:+.1f} to {100 * gain.high:+.1f}",
            )  # fmt: skip
        out.print(table)
        relatives = list(dict.fromkeys(one.language for one in rows if one.family is not None))
        others = [code for code in codes if code not in relatives]
        for what, some in (("with relatives in the tree", relatives), ("without", others)):
            for key, gain in measure.over_languages(found, some, name, seed).items():
                against = {"over_root": "over the root", "over_others": "over other families"}[key]
                gains = f"{100 * gain.value:+.1f} ({100 * gain.low:+.1f} to {100 * gain.high:+.1f})"
                _line(f"{', '.join(some)} ({what}), {against}: {gains}")
    _line("none: without adapters; others: mean of the other families; gain: family, else others, less root")


@app.command()
def evaluate(
    run_folder: RunFolder,
    suite: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A suite to measure in place of the settings' own; repeatable."),
    ] = None,
    set_: Overrides = None,
    data_root: DataRoot = None,
) -> None:
    """Every measure of a run, before and after."""
    _is_run(run_folder)
    for override in set_ or ():
        if override.partition("=")[0].strip().partition(".")[0] not in ("evaluate", "data_root"):
            raise ConfigError(
                f"--set {override}: a finished run may be given other settings of evaluate and another "
                "data_root, nothing else"
            )
    chosen = [f"evaluate.suites={json.dumps(suite)}"] if suite else []
    settings = load_config(run_folder, [*chosen, *(set_ or ())], data_root=data_root)
    _require(run_folder, TUNED, DISTILLED)
    job = _prepare(settings)
    from isogloss import pipeline, processes

    pipeline.check_suites(job)
    job = pipeline.open_run(settings, job.watcher)
    if processes.is_main():
        pipeline.run_evaluate(job)
        page = pipeline.run_report(job)
        _show_scores(job)
        _line(f"Report: {page}")


@app.command()
def report(
    run_folder: RunFolder,
    lm_eval_json: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            parser=_path,
            help="Also write the scores as lm-evaluation-harness writes its own.",
        ),
    ] = None,
) -> None:
    """Write the page of a run again."""
    _is_run(run_folder)
    from isogloss.report.page import write_report

    _line(f"Report: {write_report(run_folder)}")
    if lm_eval_json is not None:
        quiet()
        from isogloss import pipeline
        from isogloss.report.lm_eval import write_results

        for file in write_results(pipeline.load_run(run_folder), lm_eval_json):
            _line(f"Results: {file}")


@app.command()
def languages(
    search: Annotated[str, typer.Argument(help="Part of a name or code; all languages without it.")] = "",
) -> None:
    """The languages that are known; one alone is shown with all its codes."""
    found = _search(search)
    if not found:
        try:
            resolve(search)
        except UnknownLanguageError as error:
            raise RunError(str(error)) from None
    if len(found) <= 3:
        for number, one in enumerate(found):
            out.print(*[""] * bool(number), _card(one), sep="\n")
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("code", "name", "autonym", "data", "family"):
        table.add_column(name, no_wrap=True)
    for one in found:
        branch = one.family[-1]
        branch = branch if len(branch) <= 22 else branch[:21] + "…"  # so that all fit 80 columns
        table.add_row(*map(escape, (one.code, one.name, one.autonym, one.resource, branch)))
    out.print(table)
    out.print(f"{len(found)} languages; `isogloss languages NAME` shows one with all its codes.")


@app.command()
def ask(
    run_folder: RunFolder,
    text: Annotated[str | None, typer.Argument(help="The instruction; without it a prompt loop.")] = None,
    language: Annotated[
        str, typer.Option(metavar="CODE", help="The language asked in, by any of its codes.")
    ] = "en",
    twin: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT", help="The same instruction in English, answered by the reference model."
        ),
    ] = None,
) -> None:
    """Zero-shot and aligned answers side by side."""
    _is_run(run_folder)
    (code,) = _codes([language], "--language")
    if text is not None and not text.strip():
        raise ConfigError("the instruction is empty; write one, or leave it out for a prompt loop")
    for given in filter(None, (text, twin)):
        _readable(given)
    _require(run_folder, TUNED, DISTILLED)
    quiet()
    from isogloss import asking

    asker = asking.Asker(_load(run_folder), code)
    if asker.note:
        _line(asker.note)
    if text is not None:
        _show_answers(asker, text, twin)
        return
    for line in _typed(asker.language):
        _show_answers(asker, line, twin)
        twin = None


@app.command()
def export(
    run_folder: RunFolder,
    language: Annotated[
        list[str] | None, typer.Option(metavar="CODE", help="A language, by any of its codes; repeatable.")
    ] = None,
    all_: Annotated[bool, typer.Option("--all", help="Every language that was taught.")] = False,
    form: Annotated[
        Literal["peft", "merged", "lora", "vllm-embeds", "bundle", "sentence-transformers"],
        typer.Option(
            "--format",
            help="Adapters over the tuned model in PEFT's format, whole models, LoRA adapters whatever the "
            "carrier, soft tokens as prompt embeddings, the run without what its base has already, or "
            "sentence embedders.",
        ),
    ] = "peft",
    folder: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="FOLDER", parser=_path, help="Where to; RUN/exports/FORMAT without it."
        ),
    ] = None,
    max_rank: Annotated[
        int | None, typer.Option(min=1, help="Refit adapters of a larger rank to this one.")
    ] = None,
    push_to_hub: Annotated[
        str | None,
        typer.Option(
            metavar="OWNER/NAME",
            help="Also write to the hub, into private repositories: OWNER/NAME-CODE for each language.",
        ),
    ] = None,
) -> None:
    """Languages as adapters or models that other programs load."""
    _is_run(run_folder)
    if form == "bundle":
        if language or all_ or max_rank is not None:
            raise ConfigError(
                "--format bundle: holds all languages as they are; leave out --language, --all, --max-rank"
            )
        _require(run_folder, TUNED, DISTILLED)
        _check_hub(push_to_hub)
        job = _load(run_folder)
        written = folder or run_folder / "exports" / form
        _line(f"Bundle: {written}, {bundle.write(job, written) / 1e6:.1f} MB")
        _push(push_to_hub, None, {"": written})
        return
    if bool(language) == all_:
        raise ConfigError("name the languages by --language CODE, or all of them by --all")
    rankless = {
        "merged": "a merged model has",
        "vllm-embeds": "prompt embeddings have",
        "sentence-transformers": "an embedder has",
    }
    if (what := rankless.get(form)) and max_rank is not None:
        raise ConfigError(f"--max-rank: {what} no rank; leave it out or take --format peft")
    codes = _codes(language or (), "--language")
    _require(run_folder, TUNED, DISTILLED)
    _check_hub(push_to_hub)
    job = _load(run_folder)
    out_folder = folder or run_folder / "exports" / form
    if form == "sentence-transformers":
        from isogloss import embedding

        found = embedding.export_embedders(job, codes or job.taught, out_folder)
        _push(push_to_hub, None, {one.code: one.folder for one in found})
        return
    from isogloss import exporting

    made = exporting.export(job, codes or job.taught, form, out_folder, max_rank)
    if form == "lora" or (form == "peft" and job.config.distill.carrier.type == "lora"):
        _line("All at once from vLLM, each as a model named by its code:")
        out.print(exporting.serving(job, made), soft_wrap=True, markup=False)
    _push(push_to_hub, None if form == "merged" else job.tuned, {one.code: one.folder for one in made})


def _check_hub(repo: str | None) -> None:
    if repo is not None:
        from isogloss import hub

        hub.check(repo)


def _push(repo: str | None, tuned: Path | None, folders: dict[str, Path]) -> None:
    if repo is not None:
        from isogloss import hub

        for name in hub.push(repo, tuned, folders):
            _line(f"On the hub: {name}")


@app.command("add-language")
def add_language(
    run_folder: RunFolder,
    language: Annotated[
        list[str], typer.Argument(metavar="CODE...", help="Languages, by any of their codes.")
    ],
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            parser=_path,
            help="Parallel JSON lines with the language; the run's own data without it.",
        ),
    ] = None,
    set_: Overrides = None,
    data_root: DataRoot = None,
) -> None:
    """Teach a finished run another language; every other language stays as it is, to the bit."""
    _is_run(run_folder)
    refuse_shared(set_ or ())
    codes = _codes(language, "CODE")
    more = [f"data={{type: parallel, path: {json.dumps(str(data))}}}"] if data else []
    settings = load_config(run_folder, [*more, *(set_ or ())], data_root=data_root, places=True)
    _require(run_folder, TUNED, DISTILLED)
    job = _prepare(settings)
    from isogloss import growing

    growing.add_languages(job, codes)
    _line(f"Adapters: {', '.join(str(run_folder / 'adapters' / code) for code in codes)}")
    _line(f"To measure them too: isogloss evaluate {shlex.quote(str(run_folder))}")


@app.command()
def data(
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", parser=_path, help="A file, a folder of files, or hub:OWNER/NAME."),
    ],
    language: Annotated[
        str, typer.Option(metavar="CODE", help="The language of rows that name none.")
    ] = "en",
    split: Annotated[
        str | None, typer.Option(metavar="NAME", help="Which part of a folder; train without it.")
    ] = None,
) -> None:
    """What is understood of a data file: its layout, counts by language, and what would be left out."""
    from isogloss.data.formats import layouts

    (code,) = _codes([language], "--language")
    left: list[str] = []
    layout, examples = layouts.read(
        file, code, split=split, tell=_line, each=lambda one: left.append(str(one.error))
    )
    tasks = {example.task for example in examples}
    part = f", split: {split}" if split else ""
    _line(
        f"{file}: {layout.name}; {len(examples)} items, {len(tasks)} task{'s' * (len(tasks) > 1)}; read by "
        f"data: {{type: {layout.type}, path: {json.dumps(str(file))}{part}}}"
    )
    table = Table(box=None, header_style="bold", pad_edge=False)
    for number, name in enumerate(("language", "instructions", "responses", "characters, median")):
        table.add_column(name, no_wrap=True, justify="right" if number else "left")
    for one in dict.fromkeys(code for example in examples for code in example.turns):
        turns = [example.turns[one] for example in examples if one in example.turns]
        answered = sum(turn.response is not None for turn in turns)
        middle = sorted(len(turn.instruction) for turn in turns)[len(turns) // 2]
        table.add_row(one, str(len(turns)), str(answered), str(middle))
    out.print(table)
    for line in left[:20]:
        _line(_plain(f"left out: {line}"))
    if len(left) > 20:
        out.print(f"and {len(left) - 20} more")


@app.command()
def translate(
    data: Annotated[
        Path,
        typer.Argument(
            metavar="DATA",
            parser=_path,
            help="Instructions in English, in any layout: a file, a folder, or hub:OWNER/NAME.",
        ),
    ],
    to: Annotated[
        str, typer.Option("--to", metavar="CODES", help="Languages, by any of their codes: sw,ur.")
    ],
    out_file: Annotated[
        Path, typer.Option("--out", metavar="FILE", parser=_path, help="The parallel file, in .jsonl.")
    ],
    model: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="The translator: its name at the endpoint; without --url a seq2seq model such as NLLB, or a "
            "base that is shown --examples.",
        ),
    ],
    url: Annotated[
        str | None,
        typer.Option(metavar="URL", help="An OpenAI-compatible endpoint, up to and with /v1."),
    ] = None,
    examples_file: Annotated[
        Path | None,
        typer.Option(
            "--examples", metavar="FILE", parser=_path, help="Parallel data, of which a base is shown some."
        ),
    ] = None,
    likeness: Annotated[
        str | None,
        typer.Option(
            metavar="BASE", help="Also leave out what is no translation to this base, as gemma-3-270m."
        ),
    ] = None,
    round_trip: Annotated[
        bool,
        typer.Option(
            "--round-trip", help="Also translate back into English, and leave out what comes back otherwise."
        ),
    ] = False,
    least_chrf: Annotated[
        float | None,
        typer.Option(min=0, max=100, help="chrF that must come back with --round-trip; 25 without it."),
    ] = None,
    key_env: Annotated[
        str | None, typer.Option(metavar="NAME", help="Environment variable that holds the endpoint's key.")
    ] = None,
    prompt: Annotated[
        Path | None,
        typer.Option(metavar="FILE", parser=_path, help="YAML: prompt, glossary, parts to keep."),
    ] = None,
    texts: Annotated[int | None, typer.Option(min=1, help="Most texts of a request; 8 without it.")] = None,
    concurrency: Annotated[int | None, typer.Option(min=1, help="Requests at a time; 8 without it.")] = None,
    rate: Annotated[float | None, typer.Option(help="Requests a second, at most.")] = None,
    timeout: Annotated[
        float | None, typer.Option(help="Seconds without a byte after which it is asked again.")
    ] = None,
    attempts: Annotated[
        int | None, typer.Option(min=1, help="How often a request is made before the job ends.")
    ] = None,
    backoff: Annotated[
        float | None, typer.Option(help="Seconds of the first wait after a fault, at most; it doubles.")
    ] = None,
    language: Annotated[
        str, typer.Option(metavar="CODE", help="The language of rows that name none.")
    ] = "en",
    split: Annotated[
        str | None, typer.Option(metavar="NAME", help="Which part of DATA; train without it.")
    ] = None,
    review_file: Annotated[
        Path | None,
        typer.Option(
            "--review",
            metavar="FILE",
            parser=_path,
            help="Also write a page (.html) or table (.csv) on which a speaker marks translations.",
        ),
    ] = None,
    review_rows: Annotated[
        int | None, typer.Option(min=1, help="Rows a language of --review; 200 without it.")
    ] = None,
    reviewed: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", parser=_path, help="What a speaker marked; may be given several times."),
    ] = None,
    parquet: Annotated[bool, typer.Option("--parquet", help="Also write the data as FILE.parquet.")] = False,
    licence: Annotated[
        str | None,
        typer.Option(
            "--license", metavar="NAME", help="What the card says the data's licence is, as apache-2.0."
        ),
    ] = None,
    instructions_only: Annotated[
        bool, typer.Option("--instructions-only", help="Leave responses to a teacher.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what it would ask for and cost.")
    ] = False,
) -> None:
    """From English alone: a parallel file of translated instructions, without the wrong ones."""
    from isogloss.data.formats import layouts, parallel_jsonl
    from isogloss.translate import choosing, review
    from isogloss.translate.filter import ROUND_TRIP
    from isogloss.translate.job import Job, table_of

    if not out_file.name.endswith((".jsonl", ".jsonl.gz")):
        raise ConfigError(f"--out {out_file}: parallel data are JSON lines; name a file in .jsonl")
    codes = _codes([one for one in to.split(",") if one.strip()], "--to")
    if not codes:
        raise ConfigError("--to: names no language; give codes such as sw,ur")
    more = {
        "key_env": key_env, "concurrency": concurrency, "rate": rate, "timeout": timeout,
        "attempts": attempts, "backoff": backoff,
    }  # fmt: skip
    more = {name: value for name, value in more.items() if value is not None}
    if url is None:
        choosing.refuse_of_url({"prompt": prompt, "texts": texts, **more})
        quiet()
    elif examples_file is not None:
        raise ConfigError("--examples: an endpoint is shown none; leave it out, or write them into --prompt")
    if least_chrf is not None and not round_trip:
        raise ConfigError("--least-chrf has no effect without --round-trip; leave it out")
    if review_rows is not None and review_file is None:
        raise ConfigError("--review-rows has no effect without --review; leave it out")
    if review_file is not None:
        review.check(review_file)
    marks = review.read(reviewed or ())
    layout, examples = layouts.read(data, language, split=split, tell=_line)
    _line(f"{data}: {len(examples)} items, {layout.name}")
    if url is not None:
        who = choosing.served(url, model, prompt, texts, more, back=round_trip)
    else:
        who = choosing.local(model, codes, examples_file, back=round_trip)
    least = (ROUND_TRIP if least_chrf is None else least_chrf) if round_trip else None
    job = Job(
        examples, codes, who, out_file, responses=not instructions_only, keep=choosing.kept_by(prompt),
        round_trip=least, marks=marks,
    )  # fmt: skip
    missing, backs = job.missing()
    _line(f"{len(job.wanted)} texts to translate, {len(missing)} of them not answered yet")
    if missing:
        _line(f"{who.name}: {who.plan(missing)}")
    if backs:
        _line(f"{len(backs)} translations at most to translate back: {who.plan(backs)}")
    if dry_run:
        return
    alike = choosing.likeness(likeness) if likeness else None
    about = {"data": str(data), "layout": layout.name, "likeness": likeness, "license": licence}
    done = job.run(Screen().bar, alike, about)
    table = Table("language", "kept", "left out", "why", box=None, header_style="bold", pad_edge=False)
    for code in codes:
        reasons = done.dropped[code]
        whys = ", ".join(f"{why} {count}" for why, count in reasons.items())
        table.add_row(code, str(done.kept[code]), str(sum(reasons.values())), whys)
    out.print(table)
    spent = done.spent
    _line(
        f"{spent.requests} requests, {spent.tokens_read} tokens read, {spent.tokens_written} written, "
        f"{_time(spent.seconds)} of answering; of these now {done.new.requests} requests"
    )
    heeded = sum(map(len, done.heeded.values()))
    if marks:
        _line(f"{heeded} of {len(marks)} marks heeded; the others are of other translations or items")
    if parquet:
        parallel_jsonl.write_parquet(table_of(out_file), done.made)
    if review_file is not None:
        for code, rows in done.readings.items():
            page = review.place(review_file, code, codes)
            review.write(page, code, rows[: review_rows or review.ROWS])
            _line(
                f"{page}: {min(len(rows), review_rows or review.ROWS)} translations for a speaker of {code}"
            )
    _line(f"Parallel data: {done.out}; what was left out, report and card: {job.folder}")


@app.command()
def compare(
    run_a: Annotated[Path, typer.Argument(metavar="RUN_A", parser=_path, help="A run's folder.")],
    run_b: Annotated[
        Path, typer.Argument(metavar="RUN_B", parser=_path, help="Another's, on the same items.")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="JSON on standard output.")] = False,
) -> None:
    """Is one run better than another: difference, interval and p, per language and on average."""
    _is_run(run_a)
    _is_run(run_b)
    from isogloss.comparing import compare as paired

    found = paired(run_a, run_b)
    if as_json:
        print(json.dumps([one.plain() for one in found], indent=1))
        return
    for suite in dict.fromkeys(one.suite for one in found):
        table = Table(
            box=None,
            header_style="bold",
            pad_edge=False,
            title=f"{suite}: A minus B, points",
            title_justify="left",
        )
        for number, name in enumerate(("measure", "language", "difference", "95 % interval", "p", "n")):
            table.add_column(name, no_wrap=True, justify="left" if number < 2 else "right")
        for one in found:
            if one.suite == suite:
                for code, d in {"mean": one.mean, **one.languages}.items():
                    table.add_row(one.measure if code == "mean" else "", code, *_difference(asdict(d)))
        out.print(table)
    _line("p of single languages are corrected for their number (Holm); the mean's is not.")


@app.command()
def suites(data_root: DataRoot = None) -> None:
    """What can be measured: languages, licence, where to get it, and whether it is in the data root."""
    root = data_root or root_of_environment()
    if root is not None and not root.is_dir():
        raise DataError(f"data root {root} does not exist; set --data-root or ISOGLOSS_DATA")
    from isogloss.evaluate.suites import ABOUT

    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("suite", "data", "what it measures, and where it comes from"):
        table.add_column(name, no_wrap=name != "what it measures, and where it comes from")
    for name, about in ABOUT.items():
        there = not about.folders or (
            root is not None and any((root / folder).is_dir() for folder in about.folders)
        )
        table.add_row(name, "here" if there else "—", f"{about.measures}; languages: {about.languages}")
        table.add_row("", "", f"{about.source}; {about.licence}", style="dim")
    out.print(table)


@app.command("check-leaks")
def check_leaks(config: ConfigFile = None, set_: Overrides = None, data_root: DataRoot = None) -> None:
    """Which test items stand in the training data, whole or in part; exit code 1 where some do."""
    job = _prepare(_settings(config, set_, data_root))
    from isogloss import pipeline

    found = pipeline.leaks(job)
    for leak in found[:50]:
        _line(_plain(leak.line()))
    if len(found) > 50:
        out.print(f"and {len(found) - 50} more")
    for suite in job.config.evaluate.suites:
        exact, part = (
            len({leak.id for leak in found if leak.suite == suite and leak.whole is whole})
            for whole in (True, False)
        )
        _line(f"{suite}: {exact} items are in the training data word for word, {part} share a long passage")
    if found:
        raise typer.Exit(1)


@app.command("compare-methods")
def compare_methods(
    config: ConfigFile = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="isogloss, reference, flat, shared, sft, sft-languages, sequence, dpo, grpo or sft-grpo; "
            "repeatable. Without it all.",
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds, from the settings' own on.")] = 1,
    points: Annotated[int, typer.Option(min=1, help="Measurements along each method's way.")] = 10,
    times: Annotated[float, typer.Option(min=0, help="Stop a method after so many times our seconds.")] = 3.0,
    folder: Annotated[
        Path, typer.Option("--out", metavar="FOLDER", parser=_path, help="Folder of all runs.")
    ] = Path("runs/methods"),
    set_: Overrides = None,
    data_root: DataRoot = None,
) -> None:
    """What our method and reinforcement learning cost to align the languages equally well."""
    settings = _choosing(_settings(config, set_, data_root))
    quiet()
    try:
        from isogloss.baselines import comparison
    except ImportError as error:
        raise ConfigError(f"compare-methods needs trl ({error.name}); pip install 'isogloss[rl]'") from None

    for name in method or ():
        if name not in comparison.METHODS:
            raise ConfigError(f"--method {name}: there are {', '.join(comparison.METHODS)}")
    if settings.distill.carrier.type != "lora":
        raise ConfigError(
            f"distill.carrier.type is {settings.distill.carrier.type}; methods are compared on LoRAs of one "
            "width: take lora"
        )
    job = _prepare(settings)
    from isogloss import pipeline

    pipeline.check(job)
    chosen = tuple(dict.fromkeys(method or comparison.METHODS))
    if comparison.OURS not in chosen:
        chosen = (comparison.OURS, *chosen)
    found = comparison.compare_methods(
        settings, chosen, range(settings.seed, settings.seed + seeds), folder, job.watcher,
        points=points, times=times,
    )  # fmt: skip
    _show_methods(found["rows"])
    _line(f"Rows: {folder / 'methods.json'}; plot: {folder / 'methods.svg'}")


@app.command()
def ablate(
    config: ConfigFile = None,
    variant: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="families, learned, random, flat, shared, no-hidden, no-kl, with-kl, no-texts, no-english, "
            "no-retain, prefix, embedding, or your own as 'NAME: a.b=c d.e=f'; repeatable. Without it the "
            "five trees.",
        ),
    ] = None,
    items: Annotated[
        list[int] | None,
        typer.Option(
            min=1,
            help="Every variant with so many parallel items in each language; repeatable: a learning curve.",
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds, from the settings' own on.")] = 1,
    folder: Annotated[
        Path, typer.Option("--out", metavar="FOLDER", parser=_path, help="Folder of all runs.")
    ] = Path("runs/ablation"),
    jobs: Annotated[
        int, typer.Option(min=1, help="Runs at a time; more than one pay on a GPU that one run leaves idle.")
    ] = 1,
    set_: Overrides = None,
    data_root: DataRoot = None,
) -> None:
    """Variants of stage 2 side by side, on one reference model per seed."""
    settings = _choosing(_settings(config, set_, data_root))
    quiet()
    from isogloss import ablation

    variants = ablation.with_items(
        [ablation.parse(text) for text in variant or ("families", "learned", "random", "flat", "shared")],
        items or (),
    )
    job = _prepare(settings)
    from isogloss import pipeline

    pipeline.check(job)
    done = ablation.ablate(
        settings, variants, range(settings.seed, settings.seed + seeds), folder, job.watcher, jobs=jobs
    )
    _show_ablation(ablation.summary(done.rows), done.differences)
    _line(f"Rows: {folder / 'ablation.json'}")


@app.command()
def plan(
    config: ConfigFile = None,
    machine: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", parser=_path, help="YAML: devices, memory_gib, tflops; without it this machine."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on standard output.")] = False,
    set_: Overrides = None,
    data_root: DataRoot = None,
) -> None:
    """What a run will cost, from shapes alone; exits with 1 where it does not fit."""
    settings = _settings(config, set_, data_root)
    quiet()
    from isogloss import planning

    there = planning.load_machine(machine) if machine else planning.this_machine(settings.dtype)
    found = planning.plan(settings, there)
    if as_json:
        print(json.dumps(found.plain(), indent=1))
    else:
        _show_plan(found)
    if not found.fits:
        raise typer.Exit(1)


@app.command()
def serve(
    run_folder: RunFolder,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 8000,
    batch: Annotated[int, typer.Option(min=1, help="Most requests answered together.")] = 32,
    queue: Annotated[
        int, typer.Option(min=1, help="Most requests that wait; more are told to come again (429).")
    ] = 256,
    longest: Annotated[int, typer.Option(min=1, help="Most tokens of an answer.")] = 512,
    longest_prompt: Annotated[int, typer.Option(min=1, help="Most tokens of a prompt.")] = 8192,
    api_key_env: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Environment variable that holds the key every request must send."),
    ] = None,
    without_key: Annotated[
        bool, typer.Option("--without-key", help="Listen beyond the loopback and answer whoever asks.")
    ] = False,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A name or address that requests reach this by; repeatable."),
    ] = None,
    log_prompts: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", parser=_path, help="Write what is asked and answered there, as JSON lines."
        ),
    ] = None,
) -> None:
    """A page to try a run at, and an OpenAI-compatible endpoint: a model for each language, and one that
    detects it.
    """
    _is_run(run_folder)
    _require(run_folder, TUNED, DISTILLED)
    quiet()
    try:
        from isogloss.serve.starting import listen, open_record, serve_until_stopped
    except ImportError:
        raise RunError("serving needs FastAPI and uvicorn; install isogloss[serve]") from None
    listening, access = listen(host, port, api_key_env, without_key=without_key, names=allow_host or ())
    with listening, open_record(log_prompts) as record:
        from isogloss.inference import Aligned

        model = Aligned(_load(run_folder))
        bound = listening.getsockname()
        address = f"http://{f'[{host}]' if ':' in host else host}:{bound[1]}"
        _line(f"{address}/v1 answers in {', '.join(model.languages)}; a page to try it is at {address}/")
        limits = {"size": batch, "waiting": queue, "longest": longest, "longest_prompt": longest_prompt}
        serve_until_stopped(model, listening, access=access, record=record, **limits)


def main(arguments: Sequence[str] | None = None) -> None:
    """The entry point: what a user can mend is one line on stderr and exit code 2."""
    words = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    # A terminal of another encoding shows a question mark for what it lacks, rather than end a run.
    for stream, errors in ((sys.stdout, "replace"), (sys.stderr, "replace"), (sys.stdin, "surrogateescape")):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=errors)
    try:
        code = app(words, prog_name="isogloss", standalone_mode=False) or 0
        if code == INTERRUPTED:  # Typer has caught it
            raise KeyboardInterrupt
        sys.exit(code)
    except IsoglossError as error:
        _refuse(str(error))
    except USAGE_ERROR as error:
        _refuse(f"{' '.join(error.format_message().split())} See {_help_for(error)}.")
    except (KeyboardInterrupt, typer.Abort):
        _stopped()
    except BrokenPipeError:  # whoever read our output has gone
        sys.stdout = None  # type: ignore[assignment]  # so that nothing is flushed at exit
        sys.exit(1)
    except OSError as error:
        # Without a number it is transformers that found no model, in several lines.
        told = str(error).split("\n")[0] if error.errno is None else error.strerror or str(error)
        _refuse(told if error.filename is None else f"{error.filename}: {told}")


USAGE_ERROR: Any = typer.BadParameter.__base__
"""What Typer raises for an unknown command, option or missing argument."""
INTERRUPTED = 130
TUNED = ("tuned", "no tuned model", "tune")
DISTILLED = ("adapters/tree.safetensors", "no adapters", "distill")


class Clock(ProgressColumn):
    """Time left while something runs, time taken when it is done."""

    def render(self, task: Task) -> Text:
        if task.finished:
            return Text(f"{_time(task.finished_time or 0)}")
        left = task.time_remaining
        return Text("" if left is None else f"{_time(left)} left", style="cyan")


class Screen:
    """Shows a run: bars on a terminal, now and then a plain line elsewhere."""

    every = 15.0
    """Seconds between two plain lines."""

    def say(self, text: str) -> None:
        """One line about the method."""
        out.print(escape(text), style="bold")

    @contextmanager
    def bar(self, what: str) -> Iterator[Callable[[int, int], None]]:
        """Progress with the time left."""
        with self._bar(what) if out.is_terminal else self._lines(what) as progress:
            yield progress

    @contextmanager
    def _bar(self, what: str) -> Iterator[Callable[[int, int], None]]:
        columns = (
            SpinnerColumn(finished_text="[green]✓[/]"), TextColumn("{task.description:<20}"),
            BarColumn(bar_width=24), TextColumn("{task.percentage:>3.0f} %"), Clock(),
        )  # fmt: skip
        with Progress(*columns, console=out) as progress:
            task = progress.add_task(escape(what), total=None)
            yield lambda done, of: progress.update(task, completed=done, total=of)
            total = progress.tasks[0].total or 1
            progress.update(task, completed=total, total=total)

    @contextmanager
    def _lines(self, what: str) -> Iterator[Callable[[int, int], None]]:
        began = said = time.monotonic()

        def progress(done: int, of: int) -> None:
            nonlocal said
            now = time.monotonic()
            if now - said >= self.every and 0 < done < of:
                said = now
                left = (now - began) * (of - done) / done
                _line(f"  {what}: {100 * done // of} %, {_time(left)} left")

        yield progress
        _line(f"  {what}: {_time(time.monotonic() - began)}")


def _settings(config: Path | None, overrides: list[str] | None, data_root: Path | None) -> Config:
    return load_config(config, overrides or (), data_root=data_root, places=True)


def _choosing(settings: Config) -> Config:
    """Settings of a command by which variants or methods are chosen: on dev unless test is asked for."""
    chosen = for_choosing(settings)
    if chosen.evaluate.split == "test":
        _line("Warning: evaluate.split is test, on which nothing should be chosen; leave it out for dev")
    return chosen


def _codes(spellings: Sequence[str], where: str) -> list[str]:
    """Our codes of languages named on the command line, each once."""
    try:
        return list(dict.fromkeys(resolve(one).code for one in spellings))
    except UnknownLanguageError as error:
        raise ConfigError(f"{where}: {error}") from None


def _prepare(settings: Config) -> "Run":
    """A run whose folder is not touched; of several processes one speaks."""
    quiet()
    from isogloss import pipeline, processes

    out.quiet = not processes.is_main()

    class Shown(Screen, pipeline.Watcher):
        """A Screen that the pipeline takes; made here because the pipeline imports torch."""

    return pipeline.Run(settings, Shown())


def _open(settings: Config) -> "Run":
    """A run whose folder is there; nothing is written before all that it needs is."""
    job = _prepare(settings)
    from isogloss import pipeline

    pipeline.check(job)
    return pipeline.open_run(settings, job.watcher)


def _load(run_folder: Path) -> "Run":
    """An existing run, as it is."""
    watcher = _prepare(load_config(run_folder)).watcher
    from isogloss import pipeline

    return pipeline.load_run(run_folder, watcher)


def _is_run(folder: Path) -> None:
    if folder.is_file():
        own = run_folder_of(folder)
        raise RunError(f"{folder} is a file; name the run's folder{f', {own}' if own else ''}")
    if not (folder / "config.yaml").is_file():
        raise RunError(f"{folder} is no run folder; it has no config.yaml")


def _require(folder: Path, *stages: tuple[str, str, str]) -> None:
    """What an earlier stage leaves in the run folder must be there."""
    bundle.restore(folder, _line)
    for file, lacks, command in stages:
        if not (folder / file).exists():
            raise RunError(f"{folder} has {lacks}; run `isogloss {command}` first")


def _refuse(lines: str) -> None:
    for line in lines.split("\n"):
        err.print(f"[red]error[/] {escape(line)}", soft_wrap=True)
    sys.exit(2)


def _stopped() -> None:
    err.print("stopped; the same command goes on where it was")
    sys.exit(INTERRUPTED)


def _help_for(error: Any) -> str:
    context = getattr(error, "ctx", None)
    return f"`{context.command_path if context else 'isogloss'} --help`"


def _line(text: str) -> None:
    """A line that is never broken, so that a path in it can be copied."""
    out.print(escape(text), soft_wrap=True)


def _time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _show_scores(job: "Run") -> None:
    from isogloss.report.table import headline, official_table, overview_table, summary_table, tasks_table

    scores = read_json(job.folder / "scores.json", "suites", "remove it and run `isogloss evaluate` again")
    for suite in scores["suites"]:
        out.print()
        out.print(summary_table(scores, suite))
        if scores["suites"][suite].get("official"):
            out.print(official_table(scores, suite))
        out.print(escape(headline(scores, suite)))
    for table in (tasks_table(scores), overview_table(scores)):
        if table is not None:
            out.print()
            out.print(table)
    out.print()


def _show_ablation(summary: Sequence[dict], differences: Sequence[dict]) -> None:
    for suite in dict.fromkeys(entry["suite"] for entry in summary):
        measured = {name for entry in summary if entry["suite"] == suite for name in entry}
        shown = [n for n in ("alignment", "consistency", "retrieval") if n in measured] or ["accuracy"]
        names = (shown[0], "low", *shown[1:], "fidelity", "retention")
        table = Table(box=None, header_style="bold", pad_edge=False, title=suite, title_justify="left")
        table.add_column("variant", no_wrap=True)
        for name in (*names, "seconds"):
            table.add_column(name, justify="right", no_wrap=True)
        for entry in summary:
            if entry["suite"] == suite:
                cells = [_mean(entry.get(name), 100) for name in names]
                table.add_row(escape(entry["variant"]), *cells, _mean(entry.get("seconds"), 1))
        out.print(table)
        against = [one for one in differences if one["suite"] == suite]
        if not against:
            continue
        table = Table(box=None, header_style="bold", pad_edge=False)
        for number, name in enumerate(
            (
                against[0]["measure"],
                "against",
                "languages",
                "difference",
                "95 % interval",
                "p, items",
                "n",
                "p, seeds",
            )
        ):
            table.add_column(name, no_wrap=True, justify="left" if number < 3 else "right")
        for one in against:
            seeds = "–" if one["p_seeds"] is None else f"{one['p_seeds']:.4f}"
            table.add_row(
                escape(one["variant"]), escape(one["against"]), one["languages"], *_difference(one), seeds
            )
        out.print(table)
        _line(
            f"p are corrected for the {len(against)} comparisons (Holm): over items, which others might have "
            "been, and over seeds (paired t test; – under 3)"
        )


def _show_plan(found: "Plan") -> None:
    """A row per stage, what holds its memory, then what is assumed and what to change."""
    from isogloss.report import figures

    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("stage", no_wrap=True)
    for name in ("forwarded", "backward", "generated", "arithmetic", "time", "memory"):
        table.add_column(name, justify="right", no_wrap=True)
    for stage in found.stages:
        table.add_row(
            stage.stage,
            *(figures.count(n) for n in (stage.tokens_forwarded, stage.tokens_backpropagated)),
            figures.count(stage.tokens_generated), figures.count(stage.flops, "FLOP"),
            figures.duration(found.seconds(stage)), figures.size(stage.memory_bytes),
        )  # fmt: skip
    out.print(table)
    for stage in found.stages:
        parts = ", ".join(f"{name} {figures.size(size)}" for name, size in stage.memory.items())
        disk = f"; on disk {figures.size(stage.disk)}, {figures.size(stage.kept)} of it kept"
        _line(f"{stage.stage}: {parts}{disk if stage.disk else ''}")
    machine = found.machine
    _line(
        f"On {machine.name}: {machine.devices} × {figures.size(machine.memory)}, "
        f"{figures.count(machine.rate, 'FLOP')} a second, of which {machine.efficiency:.0%} is reached"
    )
    for line in (*found.settings, *found.notes):
        _line(line)
    for line in found.advice or ["It fits."]:
        _line(line)


def _show_methods(rows: Sequence[dict]) -> None:
    """Scores of every method, then what it cost to reach each level, over the seeds."""
    from isogloss.baselines.summary import saving, summary

    names = {
        "alignment": "align.", "consistency": "consist.", "retrieval": "retr.", "fidelity": "fid.",
        "retention": "ret.",
    }  # fmt: skip
    methods = summary(rows)
    levels = list(dict.fromkeys(level for entry in methods for level in entry["reached"]))
    scores = Table(box=None, header_style="bold", pad_edge=False)
    costs = {name: Table(box=None, header_style="bold", pad_edge=False) for name in ("seconds", "flops")}
    for table, columns in (
        (scores, (*names.values(), "s", "TFLOP")),
        *((one, levels) for one in costs.values()),
    ):
        table.add_column("method", no_wrap=True)
        for name in columns:
            table.add_column(name, justify="right", no_wrap=True)
    for entry in methods:
        scores.add_row(
            entry["method"], *(_over_seeds(entry[name], 100) for name in names),
            f"{entry['seconds']['mean']:.0f}", f"{entry['flops']['mean'] / 1e12:.1f}",
        )  # fmt: skip
        for name, table in costs.items():
            table.add_row(entry["method"], *(_cost(entry, level, name) for level in levels))
    out.print(scores)
    for name, unit in (("seconds", "Seconds"), ("flops", "TFLOP")):
        about = "to an alignment accuracy, times ours; > n×: not within n times ours"
        out.print(f"\n{unit} {about}", style="bold")
        out.print(costs[name])
    seeds = max(entry["seeds"] for entry in methods)
    if seeds > 1:
        _line(f"Means over {seeds} seeds; ± is a 95 % t interval, `to` the range of fewer than 3 seeds")
    saved = saving(rows)
    for name, what in (("seconds", "seconds"), ("flops", "operations")):
        if saved[name]:
            _line(f"To what the best RL method reaches: {_over_seeds(saved[name], 100, ' ')} % fewer {what}")


def _cost(entry: dict, level: str, name: str) -> str:
    """What a level cost to reach and how many times ours, or how many times ours did not do."""
    scale, digits = (1e-12, 1) if name == "flops" else (1, 0)
    cost, ratio = entry["reached"].get(level), entry["times"].get(level)
    if cost is None:
        bound = entry["not_within"].get(level)
        return f"> {bound[name]:.1f}×" if bound else "—"
    mean, *interval = _over_seeds(cost[name], scale, digits=digits).split("\n")
    some = f"{cost[name]['n']} of {entry['seeds']}"
    text = mean + (f", {ratio[name]['mean']:.1f}×" if ratio else "")
    return "\n".join((text, *interval, *([some] if cost[name]["n"] < entry["seeds"] else [])))


def _over_seeds(value: dict | None, scale: float, between: str = "\n", digits: int = 1) -> str:
    """A mean, and its interval where there are several seeds."""
    if value is None:
        return "—"
    mean, low, high = (f"{scale * value[name]:.{digits}f}" for name in ("mean", "low", "high"))
    if value["n"] == 1:
        return mean
    half = f"±{scale * (value['high'] - value['mean']):.{digits}f}"
    return mean + between + (half if value["interval"] == "t" else f"{low} to {high}")


def _difference(one: dict) -> tuple[str, str, str, str]:
    """A paired difference in points, its interval, p and n."""
    interval = f"{100 * one['low']:+.1f} to {100 * one['high']:+.1f}"
    return f"{100 * one['value']:+.1f}", interval, f"{one['p']:.4f}", str(one["n"])


def _mean(value: tuple[float, float | None] | None, scale: float) -> str:
    if value is None:
        return "—"
    mean, spread = value
    return f"{scale * mean:.1f}" + ("" if spread is None else f" ±{scale * spread:.1f}")


def _show_selection(job: "Run") -> None:
    from isogloss import pipeline
    from isogloss.data.selection import summary

    chosen = pipeline.select_english(job)
    table = Table("reason", "items", box=None, header_style="bold", pad_edge=False)
    table.columns[1].justify = "right"
    for reason, count in summary(chosen).items():
        table.add_row(escape(reason), str(count))
    table.add_row("kept", str(len(chosen.kept)), style="bold")
    out.print(table)
    for dropped in chosen.dropped[:20]:
        _line(_plain(f"{dropped.example_id}: {dropped.reason}: {dropped.detail}"))
    if len(chosen.dropped) > 20:
        out.print(f"and {len(chosen.dropped) - 20} more")


def _search(text: str) -> list[Language]:
    """The languages with the text in a name, code or family; a code that is exactly the text comes alone."""
    wanted = text.strip().casefold()
    with contextlib.suppress(UnknownLanguageError):
        return [resolve(text)]
    return [
        one
        for one in registry().values()
        if wanted in " ".join((*one.codes(), one.name, one.autonym, *one.family, one.script)).casefold()
    ]


def _card(one: Language) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    rows = {
        one.code: f"{one.name}, {one.autonym}",
        "BCP 47": one.bcp47, "ISO 639-3": one.iso639_3, "FLORES-101": one.flores101,
        "FLORES-200": one.flores200, "FLORES+": one.flores_plus,
        "NTREX": one.ntrex, "XGLUE": one.xglue, "MASSIVE": one.massive,
        "script": f"{one.script}, {'right to left' if one.direction == 'rtl' else 'left to right'}",
        "family": " / ".join(one.family), "resources": one.resource,
    }  # fmt: skip
    for name, value in rows.items():
        if value is not None:
            table.add_row(escape(name), escape(value))
    return table


def _typed(language: Language) -> Iterator[str]:
    """Lines that are typed, or piped in, until an empty one or the end."""
    asked = sys.stdin.isatty()
    if asked:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  # arrow keys and history
        out.print(f"Ask in {language.name}; an empty line ends.")
    while True:
        try:
            line = input("> " if asked else "").strip()
        except EOFError:
            if asked:
                out.print()
            return
        if not line:
            return
        yield _readable(line)


def _readable(text: str) -> str:
    """A text as it was typed.

    Raises:
        ConfigError: It came in another encoding.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ConfigError("the instruction is not UTF-8; set the terminal, or convert the text") from None
    return text


def _show_answers(asker: "Asker", text: str, twin: str | None) -> None:
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 3, 0, 0))
    answers = asker.answers(text, twin)
    for name in answers:
        table.add_column(name, overflow="fold")
    table.add_row(*(escape(_plain(answer)) or "—" for answer in answers.values()))
    out.print(table)


def _plain(text: str) -> str:
    """A model's or a data set's text without control characters, which a terminal would obey."""
    return "".join("�" if unicodedata.category(c) == "Cc" and c not in "\n\t" else c for c in text)


if __name__ == "__main__":
    main()
