"""Commands about languages and data."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from isogloss.cli.app import path_of
from isogloss.cli.runs import codes_of
from isogloss.cli.screen import Screen, clock_time, out, print_first, print_line
from isogloss.cli.tables import columns, language_card, search_languages
from isogloss.errors import ConfigError, RunError
from isogloss.languages import SOURCE, UnknownLanguageError, resolve
from isogloss.pipeline.logging import quiet

RowLanguage = Annotated[str, typer.Option(metavar="CODE", help="Language of rows that do not name one.")]


def languages(
    search: Annotated[str, typer.Argument(help="Part of a name or code. Default: all languages.")] = "",
) -> None:
    """List the known languages, or show one with all its codes."""
    found = search_languages(search)
    if not found:
        try:
            resolve(search)
        except UnknownLanguageError as error:
            raise RunError(str(error)) from None
    if len(found) <= 3:
        for number, one in enumerate(found):
            out.print(*[""] * bool(number), language_card(one), sep="\n")
        return
    table = columns("code", "name", "autonym", "data", "family", left=5)
    for one in found:
        branch = one.family[-1]
        branch = branch if len(branch) <= 22 else branch[:21] + "…"  # so that all fit 80 columns
        table.add_row(*map(escape, (one.code, one.name, one.autonym, one.resource, branch)))
    out.print(table)
    out.print(f"{len(found)} languages; `isogloss languages NAME` shows one with all its codes.")


def data(
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", parser=path_of, help="A file, a folder of files, or hub:OWNER/NAME."),
    ],
    language: RowLanguage = "en",
    split: Annotated[
        str | None, typer.Option(metavar="NAME", help="Split of a folder or dataset. Default: train.")
    ] = None,
) -> None:
    """Show how a data file is read: its layout, counts by language, and rows that would be left out."""
    from isogloss.data.formats import layouts

    (code,) = codes_of([language], "--language")
    left: list[str] = []
    layout, examples = layouts.read(
        file, code, split=split, tell=print_line, each=lambda one: left.append(f"left out: {one.error}")
    )
    tasks = {example.task for example in examples}
    part = f", split: {split}" if split else ""
    if layout.type == "chat" and code != SOURCE:
        part += f", language: {code}"
    elif code != SOURCE:
        raise ConfigError(f"--language {language}: {file} names its languages ({layout.name}); leave it out")
    print_line(
        f"{file}: {layout.name}; {len(examples)} items, {len(tasks)} task{'s' * (len(tasks) > 1)}; read it "
        f"with data: {{type: {layout.type}, path: {json.dumps(str(file), ensure_ascii=False)}{part}}}"
    )
    table = columns("language", "instructions", "responses", "characters, median")
    for one in dict.fromkeys(code for example in examples for code in example.turns):
        turns = [example.turns[one] for example in examples if one in example.turns]
        answered = sum(turn.response is not None for turn in turns)
        middle = sorted(len(turn.instruction) for turn in turns)[len(turns) // 2]
        table.add_row(one, str(len(turns)), str(answered), str(middle))
    out.print(table)
    print_first(20, left)


def translate(
    data: Annotated[
        Path,
        typer.Argument(
            metavar="DATA",
            parser=path_of,
            help="English instructions, in any layout: a file, a folder, or hub:OWNER/NAME.",
        ),
    ],
    to: Annotated[
        str,
        typer.Option("--to", metavar="CODES", help="Target languages, by any of their codes: sw,ur."),
    ],
    out_file: Annotated[
        Path, typer.Option("--out", metavar="FILE", parser=path_of, help="Parallel file to write (.jsonl).")
    ],
    model: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="The translator: with --url its name at the endpoint, else a seq2seq model such as NLLB, or "
            "a base model prompted with --examples.",
        ),
    ],
    url: Annotated[
        str | None,
        typer.Option(metavar="URL", help="OpenAI-compatible endpoint, up to and including /v1."),
    ] = None,
    examples_file: Annotated[
        Path | None,
        typer.Option(
            "--examples",
            metavar="FILE",
            parser=path_of,
            help="Parallel data: few-shot examples for a base model.",
        ),
    ] = None,
    likeness: Annotated[
        str | None,
        typer.Option(
            metavar="BASE",
            help="Also drop pairs whose meanings differ according to a base model, e.g. gemma-3-270m.",
        ),
    ] = None,
    round_trip: Annotated[
        bool,
        typer.Option(
            "--round-trip",
            help="Also translate back into English, and drop pairs that come back different.",
        ),
    ] = False,
    least_chrf: Annotated[
        float | None,
        typer.Option(min=0, max=100, help="Minimum chrF of back-translations (--round-trip). Default: 25."),
    ] = None,
    key_env: Annotated[
        str | None, typer.Option(metavar="NAME", help="Environment variable that contains the API key.")
    ] = None,
    prompt: Annotated[
        Path | None,
        typer.Option(metavar="FILE", parser=path_of, help="YAML file: prompt, glossary, parts to keep."),
    ] = None,
    texts: Annotated[int | None, typer.Option(min=1, help="Maximum texts per request. Default: 8.")] = None,
    concurrency: Annotated[int | None, typer.Option(min=1, help="Concurrent requests. Default: 8.")] = None,
    rate: Annotated[float | None, typer.Option(help="Maximum requests per second.")] = None,
    timeout: Annotated[
        float | None, typer.Option(help="Seconds without any data after which a request is retried.")
    ] = None,
    attempts: Annotated[
        int | None, typer.Option(min=1, help="Maximum attempts per request; when all fail, the job ends.")
    ] = None,
    backoff: Annotated[
        float | None, typer.Option(help="Maximum wait before the first retry, in seconds; it doubles.")
    ] = None,
    language: RowLanguage = "en",
    split: Annotated[str | None, typer.Option(metavar="NAME", help="Split of DATA. Default: train.")] = None,
    review_file: Annotated[
        Path | None,
        typer.Option(
            "--review",
            metavar="FILE",
            parser=path_of,
            help="Also write a page (.html) or table (.csv) in which a speaker reviews translations.",
        ),
    ] = None,
    review_rows: Annotated[
        int | None, typer.Option(min=1, help="Rows per language for --review. Default: 200.")
    ] = None,
    reviewed: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", parser=path_of, help="A speaker's marks; repeatable."),
    ] = None,
    parquet: Annotated[bool, typer.Option("--parquet", help="Also write the data as FILE.parquet.")] = False,
    licence: Annotated[
        str | None,
        typer.Option("--license", metavar="NAME", help="Licence of the data, for its card, e.g. apache-2.0."),
    ] = None,
    instructions_only: Annotated[
        bool, typer.Option("--instructions-only", help="Do not translate responses; leave them to a teacher.")
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Only print what would be translated, with estimated cost."),
    ] = False,
) -> None:
    """Translate English instructions into a parallel file, and drop bad translations."""
    from isogloss.data.formats import layouts, parallel_jsonl
    from isogloss.translate import choosing, review
    from isogloss.translate.filter import ROUND_TRIP
    from isogloss.translate.job import Job, table_of
    from isogloss.translate.prompt import load_prompt

    if not out_file.name.endswith((".jsonl", ".jsonl.gz")):
        raise ConfigError(f"--out {out_file}: parallel data is written as JSON lines; name a .jsonl file")
    _check_place("--out", out_file, data)
    if parquet:
        _check_place("--parquet", table_of(out_file), data)
    codes = codes_of([one for one in to.split(",") if one.strip()], "--to")
    if not codes:
        raise ConfigError("--to: names no language; give codes such as sw,ur")
    more = {
        "key_env": key_env,
        "concurrency": concurrency,
        "rate": rate,
        "timeout": timeout,
        "attempts": attempts,
        "backoff": backoff,
    }
    more = {name: value for name, value in more.items() if value is not None}
    if url is None:
        choosing.refuse_of_url({"prompt": prompt, "texts": texts, **more})
        quiet()
    elif examples_file is not None:
        raise ConfigError("--examples: not used with --url; leave it out, or write examples into --prompt")
    if least_chrf is not None and not round_trip:
        raise ConfigError("--least-chrf has no effect without --round-trip; leave it out")
    if review_rows is not None and review_file is None:
        raise ConfigError("--review-rows has no effect without --review; leave it out")
    if review_file is not None:
        review.check(review_file, codes)
        for code in codes:
            _check_place("--review", review.place(review_file, code, codes), data)
    marks = review.read(reviewed or ())
    layout, examples = layouts.read(data, language, split=split, tell=print_line)
    print_line(f"{data}: {len(examples)} items, {layout.name}")
    if url is not None:
        who = choosing.served(url, model, prompt, texts, more, back=round_trip)
    else:
        who = choosing.local(model, codes, examples_file, back=round_trip)
    least = (ROUND_TRIP if least_chrf is None else least_chrf) if round_trip else None
    job = Job(
        examples,
        codes,
        who,
        out_file,
        responses=not instructions_only,
        keep=load_prompt(prompt).keep,
        round_trip=least,
        marks=marks,
    )
    missing, backs = job.missing()
    print_line(f"{len(job.wanted)} texts to translate, {len(missing)} of them not translated yet")
    if missing:
        print_line(f"{who.name}: {who.plan(missing)}")
    if backs:
        print_line(f"Up to {len(backs)} translations to translate back: {who.plan(backs)}")
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
    if likeness and (unread := [code for code in codes if code not in done.compared]):
        print_line(f"{likeness} has no limit or too few pairs for {', '.join(unread)}: not compared there")
    spent = done.spent
    print_line(
        f"{spent.requests} requests, {spent.tokens_read} tokens read, {spent.tokens_written} written, "
        f"{clock_time(spent.seconds)} of response time; {done.new.requests} of the requests were made now"
    )
    heeded = sum(map(len, done.heeded.values()))
    if marks:
        print_line(f"{heeded} of {len(marks)} marks applied; the others are for other translations or items")
    if parquet:
        parallel_jsonl.write_parquet(table_of(out_file), done.made)
    if review_file is not None:
        for code, rows in done.readings.items():
            page, rows = review.place(review_file, code, codes), rows[: review_rows or review.ROWS]
            review.write(page, code, rows)
            print_line(f"{page}: {len(rows)} translations for a speaker of {code}")
    print_line(f"Parallel data: {out_file}; dropped translations, report and card: {job.folder}")


def _check_place(option: str, out_file: Path, data: Path) -> None:
    """Raise if an option's file cannot be written, or would change the data that are translated.

    Raises:
        ConfigError: It is the data, lies in their folder, is a folder, or a folder above it is a file.
    """
    written, source = out_file.resolve(), data.resolve()
    above = next(folder for folder in written.parents if folder.exists())
    if written == source:
        fault = "is DATA itself, which would be overwritten"
    elif written.is_dir():
        fault = "is a folder"
    elif source.is_dir() and written.is_relative_to(source):
        fault = f"is in {data}, and would be read as data"
    elif not above.is_dir():
        fault = f"cannot be written, as {above} is a file"
    else:
        return
    raise ConfigError(f"{option} {out_file}: {fault}; name another file")
