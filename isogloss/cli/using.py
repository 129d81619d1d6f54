"""Commands that use a finished run: ask, export, serve."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from isogloss.cli.app import DataRoot, RunFolder, path_of
from isogloss.cli.runs import DISTILLED, TUNED, check_run_folder, codes_of, load_job, require
from isogloss.cli.screen import out, print_line, readable, typed_lines
from isogloss.cli.tables import show_answers
from isogloss.errors import ConfigError, RunError
from isogloss.pipeline import bundle
from isogloss.pipeline.logging import quiet


def ask(
    run_folder: RunFolder,
    text: Annotated[str | None, typer.Argument(help="Instruction. Default: a prompt loop.")] = None,
    language: Annotated[
        str, typer.Option(metavar="CODE", help="Language of the instruction, by any of its codes.")
    ] = "en",
    twin: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT", help="The same instruction in English, answered by the reference model."
        ),
    ] = None,
) -> None:
    """Show the answers without adapters (zero-shot) and with them (aligned) side by side."""
    check_run_folder(run_folder)
    (code,) = codes_of([language], "--language")
    if text is not None and not text.strip():
        raise ConfigError("the instruction is empty; write one, or leave it out for a prompt loop")
    if twin is not None and not twin.strip():
        raise ConfigError("--twin: is empty; write the instruction in English, or leave it out")
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
        list[str] | None, typer.Option(metavar="CODE", help="Language, by any of its codes; repeatable.")
    ] = None,
    all_: Annotated[bool, typer.Option("--all", help="All trained languages.")] = False,
    form: Annotated[
        Literal["peft", "merged", "bundle", "sentence-transformers", "gguf"],
        typer.Option(
            "--format",
            help="peft: adapters for the tuned model; merged: whole models; bundle: the run without what its "
            "base contains; sentence-transformers: sentence embedders; gguf: for llama.cpp and Ollama.",
        ),
    ] = "peft",
    folder: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="FOLDER", parser=path_of, help="Output folder. Default: RUN/exports/FORMAT."
        ),
    ] = None,
    max_rank: Annotated[
        int | None, typer.Option(min=1, help="Refit adapters of a higher rank to this rank.")
    ] = None,
    precision: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PRECISION",
            help="With --format gguf: the tuned model in f32, f16, bf16, q8_0 or q4_k_m; repeatable, Ollama "
            "loads the first. Default: f16 and q8_0.",
        ),
    ] = None,
    push_to_hub: Annotated[
        str | None,
        typer.Option(
            metavar="OWNER/NAME",
            help="Also upload to the Hub, into private repositories: OWNER/NAME-CODE for each language.",
        ),
    ] = None,
    data_root: DataRoot = None,
) -> None:
    """Export languages as adapters or models that other programs can load."""
    check_run_folder(run_folder)
    if precision and form != "gguf":
        raise ConfigError(f"--precision: --format {form} keeps the run's dtype; leave it out")
    if push_to_hub and form == "gguf":
        raise ConfigError("--push-to-hub: GGUF files are not uploaded to the Hub; upload the folder yourself")
    if form == "bundle":
        if language or all_ or max_rank is not None:
            raise ConfigError(
                "--format bundle: contains all languages as they are; leave out --language, --all, --max-rank"
            )
    elif bool(language) == all_:
        raise ConfigError("name the languages with --language CODE, or all of them with --all")
    rankless = {"merged": "a merged model", "sentence-transformers": "an embedder"}
    if (what := rankless.get(form)) and max_rank is not None:
        raise ConfigError(f"--max-rank: {what} has no rank; leave it out or use --format peft")
    codes = codes_of(language or (), "--language")
    require(run_folder, TUNED, DISTILLED)
    _check_hub(push_to_hub)
    job = load_job(run_folder, data_root)
    out_folder = folder or run_folder / "exports" / form
    if form == "bundle":
        print_line(f"Bundle: {out_folder}, {bundle.write(job, out_folder) / 1e6:.1f} MB")
        _push(push_to_hub, None, {"": out_folder})
        return
    codes = codes or job.taught
    if form == "sentence-transformers":
        from isogloss.export import embedding

        found = embedding.export_embedders(job, codes, out_folder)
        _push(push_to_hub, None, {one.code: one.folder for one in found})
        return
    if form == "gguf":
        from isogloss.export import gguf as gguf_export

        wrote = gguf_export.export_gguf(job, codes, out_folder, precision or gguf_export.PRECISIONS, max_rank)
        for path in (*wrote.models.values(), *wrote.languages.values()):
            print_line(f"GGUF: {path}")
        return
    from isogloss.export import adapters

    made = adapters.export(job, codes, form, out_folder, max_rank)
    if form == "peft":
        print_line("Serve all of them with vLLM, each as a model named by its code:")
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
            print_line(f"On the Hub: {name}")


def serve(
    run_folder: RunFolder,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 8000,
    batch: Annotated[int, typer.Option(min=1, help="Maximum batch size, in requests.")] = 32,
    queue: Annotated[
        int, typer.Option(min=1, help="Maximum queued requests; further ones get HTTP 429.")
    ] = 256,
    longest: Annotated[int, typer.Option(min=1, help="Maximum answer length in tokens.")] = 512,
    longest_prompt: Annotated[int, typer.Option(min=1, help="Maximum prompt length in tokens.")] = 8192,
    api_key_env: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Environment variable with the API key of all requests."),
    ] = None,
    without_key: Annotated[
        bool, typer.Option("--without-key", help="Accept requests from other machines without an API key.")
    ] = False,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Further host name or address that requests may use; repeatable."),
    ] = None,
    log_prompts: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", parser=path_of, help="Append prompts and answers to this file, as JSON lines."
        ),
    ] = None,
) -> None:
    """Serve a page to try a run, and an OpenAI-compatible endpoint: a model for each language, and one that
    detects the language.
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
