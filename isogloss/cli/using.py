"""Commands that use a finished run: ask, export, serve."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from isogloss.cli.app import RunFolder, path_of
from isogloss.cli.runs import DISTILLED, TUNED, check_run_folder, codes_of, load_job, require
from isogloss.cli.screen import out, print_line, readable, typed_lines
from isogloss.cli.tables import show_answers
from isogloss.errors import ConfigError, RunError
from isogloss.pipeline import bundle
from isogloss.pipeline.logging import quiet


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
    check_run_folder(run_folder)
    (code,) = codes_of([language], "--language")
    if text is not None and not text.strip():
        raise ConfigError("the instruction is empty; write one, or leave it out for a prompt loop")
    for given in filter(None, (text, twin)):
        readable(given)
    require(run_folder, TUNED, DISTILLED)
    quiet()
    from isogloss import inference

    asker = inference.Asker(load_job(run_folder), code)
    if asker.note:
        print_line(asker.note)
    if text is not None:
        show_answers(asker, text, twin)
        return
    for line in typed_lines(asker.language):
        show_answers(asker, line, twin)
        twin = None


def export(
    run_folder: RunFolder,
    language: Annotated[
        list[str] | None, typer.Option(metavar="CODE", help="A language, by any of its codes; repeatable.")
    ] = None,
    all_: Annotated[bool, typer.Option("--all", help="Every language that was taught.")] = False,
    form: Annotated[
        Literal["peft", "merged", "bundle", "sentence-transformers", "gguf"],
        typer.Option(
            "--format",
            help="Adapters over the tuned model in PEFT's format, whole models, the run without what its "
            "base has already, sentence embedders, or files for llama.cpp and Ollama.",
        ),
    ] = "peft",
    folder: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="FOLDER", parser=path_of, help="Where to; RUN/exports/FORMAT without it."
        ),
    ] = None,
    max_rank: Annotated[
        int | None, typer.Option(min=1, help="Refit adapters of a larger rank to this one.")
    ] = None,
    precision: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PRECISION",
            help="With --format gguf: the tuned model in f32, f16, bf16, q8_0 or q4_k_m; repeatable, the "
            "first is what Ollama loads. f16 and q8_0 without it.",
        ),
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
    check_run_folder(run_folder)
    if precision and form != "gguf":
        raise ConfigError(f"--precision: --format {form} has the run's own; leave it out")
    if push_to_hub and form == "gguf":
        raise ConfigError("--push-to-hub: GGUF files are not written to the hub; upload the folder yourself")
    if form == "bundle":
        if language or all_ or max_rank is not None:
            raise ConfigError(
                "--format bundle: holds all languages as they are; leave out --language, --all, --max-rank"
            )
        require(run_folder, TUNED, DISTILLED)
        _check_hub(push_to_hub)
        job = load_job(run_folder)
        written = folder or run_folder / "exports" / form
        print_line(f"Bundle: {written}, {bundle.write(job, written) / 1e6:.1f} MB")
        _push(push_to_hub, None, {"": written})
        return
    if bool(language) == all_:
        raise ConfigError("name the languages by --language CODE, or all of them by --all")
    rankless = {"merged": "a merged model", "sentence-transformers": "an embedder"}
    if (what := rankless.get(form)) and max_rank is not None:
        raise ConfigError(f"--max-rank: {what} has no rank; leave it out or take --format peft")
    codes = codes_of(language or (), "--language")
    require(run_folder, TUNED, DISTILLED)
    _check_hub(push_to_hub)
    job = load_job(run_folder)
    out_folder = folder or run_folder / "exports" / form
    if form == "sentence-transformers":
        from isogloss.export import embedding

        found = embedding.export_embedders(job, codes or job.taught, out_folder)
        _push(push_to_hub, None, {one.code: one.folder for one in found})
        return
    if form == "gguf":
        from isogloss.export import gguf as gguf_export

        wrote = gguf_export.export_gguf(
            job, codes or job.taught, out_folder, precision or gguf_export.PRECISIONS, max_rank
        )
        for path in (*wrote.models.values(), *wrote.languages.values()):
            print_line(f"GGUF: {path}")
        return
    from isogloss.export import adapters

    made = adapters.export(job, codes or job.taught, form, out_folder, max_rank)
    if form == "peft":
        print_line("All at once from vLLM, each as a model named by its code:")
        out.print(adapters.serving(job, made), soft_wrap=True, markup=False)
    _push(push_to_hub, None if form == "merged" else job.tuned, {one.code: one.folder for one in made})


def _check_hub(repo: str | None) -> None:
    if repo is not None:
        from isogloss.export import hub

        hub.check(repo)


def _push(repo: str | None, tuned: Path | None, folders: dict[str, Path]) -> None:
    if repo is not None:
        from isogloss.export import hub

        for name in hub.push(repo, tuned, folders):
            print_line(f"On the hub: {name}")


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
            metavar="FILE", parser=path_of, help="Write what is asked and answered there, as JSON lines."
        ),
    ] = None,
) -> None:
    """A page to try a run at, and an OpenAI-compatible endpoint: a model for each language, and one that
    detects it.
    """
    check_run_folder(run_folder)
    require(run_folder, TUNED, DISTILLED)
    quiet()
    try:
        from isogloss.serve.starting import listen, open_record, serve_until_stopped
    except ImportError:
        raise RunError("serving needs FastAPI and uvicorn; install isogloss[serve]") from None
    listening, access = listen(host, port, api_key_env, without_key=without_key, names=allow_host or ())
    with listening, open_record(log_prompts) as record:
        from isogloss.inference import Aligned

        model = Aligned(load_job(run_folder))
        bound = listening.getsockname()
        address = f"http://{f'[{host}]' if ':' in host else host}:{bound[1]}"
        print_line(f"{address}/v1 answers in {', '.join(model.languages)}; a page to try it is at {address}/")
        limits = {"size": batch, "waiting": queue, "longest": longest, "longest_prompt": longest_prompt}
        serve_until_stopped(model, listening, access=access, record=record, **limits)
