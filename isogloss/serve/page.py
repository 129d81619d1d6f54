"""A page to try a run: one instruction, answered in every language, before and after.

Content is only ever inserted as text. The page loads nothing from other sites, and no script but its own.
Flow: GET / → GET /page.json → POST /answers → one line of JSON for each piece of an answer.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from concurrent.futures import Executor
from dataclasses import asdict
from functools import partial
from importlib import resources
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, Response
from pydantic import Field
from starlette.exceptions import HTTPException

from isogloss.data.formats.lines import is_text
from isogloss.errors import RunError
from isogloss.inference import Aligned
from isogloss.languages import SOURCE
from isogloss.report.folder import read_folder
from isogloss.report.scores import Label
from isogloss.serve import batches
from isogloss.serve.jobs import Given, Hear, Limits, Streamed, Written, heard, limited

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri "
    "'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
)
REPORTS = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; frame-ancestors 'none'"
EXAMPLES = 24
"""Maximum number of the run's instructions offered as examples."""


class Everywhere(Given):
    """An instruction for all languages.

    Attributes:
        text: The instruction as entered.
        twins: Its known translations by language; the other languages get `text` itself.
        max_tokens: Maximum tokens of each answer.
    """

    text: Written = Field(min_length=1)
    twins: dict[str, Written] = Field(default_factory=dict)
    max_tokens: int | None = Field(None, ge=1)


def add_page(app: FastAPI, model: Aligned, limits: Limits) -> None:
    """Add the page's routes to the application."""
    codes = (SOURCE, *(code for code in model.languages if code != SOURCE))
    report = model.run.folder / "report.html"
    own = resources.files("isogloss.serve")
    style = resources.files("isogloss.report").joinpath("page.css.jinja").read_text("utf-8")
    files = {
        "/": (own.joinpath("page.html").read_text("utf-8"), "text/html"),
        "/page.css": (style + own.joinpath("page.css").read_text("utf-8"), "text/css"),
        "/page.js": (own.joinpath("page.js").read_text("utf-8"), "text/javascript"),
    }

    offered: list[dict[str, str]] = []

    def examples() -> list[dict[str, str]]:
        if not offered:  # the run may be evaluated while it is served
            offered[:] = _examples(model, codes)
        return offered

    @app.get("/")
    @app.get("/page.css")
    @app.get("/page.js")
    def file(request: Request) -> Response:
        text, kind = files[request.url.path]
        return Response(text, media_type=kind, headers={"Content-Security-Policy": POLICY})

    @app.get("/page.json")
    def page() -> dict[str, Any]:
        return {
            "run": model.run.folder.resolve().name,
            "languages": [asdict(Label.of(code)) for code in codes],
            "examples": examples(),
            "report": report.is_file(),
            "longest": limits.answer,
        }

    @app.get("/report")
    def show_report() -> FileResponse:
        if not report.is_file():
            raise HTTPException(404)
        return FileResponse(report, headers={"Content-Security-Policy": REPORTS})

    @app.post("/answers")
    async def answers(ask: Everywhere, request: Request) -> Streamed:
        reader = request.app.state.reader
        jobs, pieces = await heard(partial(_jobs, ask, model, codes, limits), reader)
        request.app.state.batcher.submit(*(job for _, job in jobs))
        lines = _lines(ask, model, jobs, pieces, reader)
        return Streamed(lines, [job for _, job in jobs], "application/x-ndjson")


Side = tuple[str, tuple[str, ...]]
"""Before or after, and the languages that share the answer."""


def _jobs(
    ask: Everywhere, model: Aligned, codes: tuple[str, ...], limits: Limits, hear: Hear
) -> list[tuple[Side, batches.Request]]:
    """Return one request per language's path, and one per distinct wording for the reference model."""
    texts = {code: ask.twins.get(code, ask.text) for code in codes}
    wanted: list[tuple[Side, str, str | None]] = [
        (("before", tuple(code for code in codes if texts[code] == text)), text, None)
        for text in dict.fromkeys(texts.values())
    ]
    wanted += [(("after", (code,)), texts[code], code) for code in codes]

    def job(side: Side, text: str, code: str | None) -> batches.Request:
        messages = [{"role": "user", "content": text}]
        return limited(
            messages, code, model, limits, wanted=ask.max_tokens, hear=lambda piece: hear((side, piece))
        )

    return [(side, job(side, text, code)) for side, text, code in wanted]


async def _lines(
    ask: Everywhere,
    model: Aligned,
    jobs: list[tuple[Side, batches.Request]],
    pieces: asyncio.Queue,
    reader: Executor,
) -> AsyncIterator[str]:
    began, loop = time.monotonic(), asyncio.get_running_loop()

    async def language_of(text: str) -> str | None:
        return await loop.run_in_executor(reader, model.detector, text, (SOURCE, *model.languages))

    yield json.dumps({"detected": await language_of(ask.text)}) + "\n"
    said = {side: "" for side, _ in jobs}
    left = set(said)
    while left:
        side, piece = await pieces.get()
        said[side] += piece.text
        line: dict[str, Any] = {"side": side[0], "codes": side[1], "text": piece.text}
        if piece.error:
            line["error"] = f"{type(piece.error).__name__} while answering"
        elif piece.finish:
            line |= {
                "finish": piece.finish,
                "tokens": piece.tokens,
                "detected": await language_of(said[side]),
            }
            line["seconds"] = round(time.monotonic() - began, 3)
        if piece.error or piece.finish:
            left.discard(side)
        yield json.dumps(line) + "\n"


def _examples(model: Aligned, codes: tuple[str, ...]) -> list[dict[str, str]]:
    """Return evenly spaced evaluation instructions of the run that exist in every language."""
    try:
        predictions = read_folder(model.run.folder).predictions
    except RunError:  # not evaluated
        return []
    found: dict[tuple[str, str], dict[str, str]] = {}
    for suite, (_, after) in predictions.items():
        for row in after:
            texts = found.setdefault((suite, str(row.get("id"))), {})
            pairs = ((row.get("language"), row.get("instruction")), (SOURCE, row.get("english_instruction")))
            texts.update({code: text for code, text in pairs if code in codes and is_text(text) and text})
    whole = [texts for texts in found.values() if len(texts) == len(codes)]
    step = max(1, -(-len(whole) // EXAMPLES))
    return whole[::step]
