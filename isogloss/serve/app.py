"""OpenAI-compatible endpoints for chat completions and models, and a page to try them.

A model name is any code of a language; `auto` detects the language of the last user message, and `reference`
is the model without adapters.
"""

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError
from starlette.exceptions import HTTPException

from isogloss.inference import Aligned
from isogloss.languages import UnknownLanguageError, resolve
from isogloss.model.load import positions_of
from isogloss.serve import batches
from isogloss.serve.guard import Access, Guard, error_response
from isogloss.serve.jobs import Given, Hear, Limits, Refused, Streamed, Written, heard, limited
from isogloss.serve.page import add_page

AUTO, REFERENCE = "auto", "reference"


class Part(BaseModel):
    """A part of a message's content."""

    type: Literal["text"]
    text: Written


class Message(Given):
    """One turn."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Written | list[Part]

    def plain(self) -> dict[str, str]:
        text = self.content if isinstance(self.content, str) else "".join(p.text for p in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class Text(Given):
    """The only supported response format."""

    type: Literal["text"]


class StreamOptions(Given):
    """Options of a streamed response."""

    include_usage: bool = False
    include_obfuscation: Literal[False] = False


Zero = Annotated[float, Field(ge=0, le=0)]
Nothing = Annotated[list[Any], Field(max_length=0)]


class Ask(Given):
    """Body of a chat completion request; unsupported options that would change the answer are rejected."""

    model: Written
    messages: list[Message] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    stream: bool = False
    stream_options: StreamOptions | None = None
    stop: Written | Annotated[list[Written], Field(max_length=4)] | None = None

    # Answers are decoded greedily from the messages alone; only values that agree are accepted.
    n: Literal[1] | None = None
    temperature: Zero | None = None
    frequency_penalty: Zero | None = None
    presence_penalty: Zero | None = None
    logit_bias: dict[str, Zero] | None = None
    logprobs: Literal[False] | None = None
    top_logprobs: Literal[0] | None = None
    tools: Nothing | None = None
    functions: Nothing | None = None
    tool_choice: Literal["none", "auto"] | None = None
    function_call: Literal["none", "auto"] | None = None
    response_format: Text | None = None
    modalities: list[Literal["text"]] | None = None
    reasoning_effort: Literal["none"] | None = None
    verbosity: Literal["medium"] | None = None

    # Ignored: these do not change a greedy answer.
    top_p: float | None = Field(None, ge=0, le=1)
    seed: Any = None
    user: Any = None
    safety_identifier: Any = None
    metadata: Any = None
    store: Any = None
    service_tier: Any = None
    parallel_tool_calls: Any = None
    prediction: Any = None
    prompt_cache_key: Any = None
    prompt_cache_options: Any = None
    prompt_cache_retention: Any = None

    @field_validator("stream_options")
    @classmethod
    def _only_of_a_stream(cls, options: StreamOptions, info: ValidationInfo) -> StreamOptions:
        if not info.data.get("stream"):
            raise PydanticCustomError("stream", "only allowed with stream; set stream or leave them out")
        return options


def make_app(
    model: Aligned,
    *,
    access: Access | None = None,
    size: int = 32,
    waiting: int = 256,
    longest: int = 512,
    longest_prompt: int = 8192,
    record: batches.Record | None = None,
) -> FastAPI:
    """Return the application: the endpoints, and the page at its root.

    Args:
        model: The model that answers.
        access: Access rules; by default, no key and only the loopback's host names.
        size: Maximum number of requests in a batch.
        waiting: Maximum number of queued requests; further ones get status 429.
        longest: Maximum number of tokens in an answer.
        longest_prompt: Maximum number of tokens in a prompt, even if the model supports more.
        record: Callback that receives every finished request with its answer.
    """

    @asynccontextmanager
    async def living(app: FastAPI) -> AsyncIterator[None]:
        # One reader thread: long texts are tokenized without blocking answers, and never two at once.
        with ThreadPoolExecutor(1) as app.state.reader:
            app.state.batcher = batches.Batcher(
                model, size=size, waiting=waiting, positions=positions, record=record
            )
            yield
            await asyncio.to_thread(app.state.batcher.close)

    # FastAPI's documentation pages would load scripts from other sites.
    app = FastAPI(title="isogloss", lifespan=living, docs_url=None, redoc_url=None, openapi_url=None)
    app.add_exception_handler(Refused, _refuse)
    app.add_exception_handler(batches.FullError, _full)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _unserved)
    app.add_middleware(Guard, access=access or Access())
    positions = positions_of(model.model) or longest_prompt + longest
    limits = Limits(longest, min(longest_prompt, positions - 1), positions)

    add_page(app, model, limits)
    born = int(time.time())

    def about(name: str) -> dict:
        return {"id": name, "object": "model", "created": born, "owned_by": "isogloss"}

    @app.get("/v1/models")
    def models() -> dict:
        names = (AUTO, *model.languages, "en", REFERENCE)
        return {"object": "list", "data": [about(name) for name in names]}

    @app.get("/v1/models/{name:path}")
    def one_model(name: str) -> dict:
        if name not in (AUTO, REFERENCE):
            _language(name)
        return about(name)

    @app.post("/v1/chat/completions")
    async def complete(ask: Ask, request: Request) -> Any:
        read = partial(_job, ask, model, limits)
        job, pieces = await heard(read, request.app.state.reader)
        request.app.state.batcher.submit(job)
        name = job.code or REFERENCE
        head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": name}
        if ask.stream:
            return Streamed(_events(head, job, pieces, ask.stream_options), [job], "text/event-stream")
        return await _whole(head, job, pieces, request)

    return app


def _job(ask: Ask, model: Aligned, limits: Limits, hear: Hear) -> batches.Request:
    messages = [message.plain() for message in ask.messages]
    wanted = ask.max_completion_tokens or ask.max_tokens
    ends = [ask.stop] if isinstance(ask.stop, str) else ask.stop or ()
    return limited(messages, _code(ask, model), model, limits, hear, wanted=wanted, ends=ends)


def _code(ask: Ask, model: Aligned) -> str | None:
    if ask.model == REFERENCE:
        return None
    if ask.model == AUTO:
        said = [message.plain()["content"] for message in ask.messages if message.role == "user"]
        return model.language_of(said[-1] if said else "")
    return _language(ask.model)


def _language(name: str) -> str:
    try:
        return resolve(name).code
    except UnknownLanguageError as error:
        raise Refused(f"model: {error}; or name auto or reference", 404, "model", "model_not_found") from None


async def _whole(about: dict, job: batches.Request, pieces: asyncio.Queue, request: Request) -> Any:
    text = ""

    async def leaving() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        pieces.put_nowait(GONE)

    watch = asyncio.create_task(leaving())
    try:
        while True:
            piece = await pieces.get()
            if piece is GONE:
                return Response(status_code=499)
            if piece.error:
                return _failed(piece.error)
            text += piece.text
            if piece.finish:
                message = {"role": "assistant", "content": text}
                choice = {"index": 0, "message": message, "finish_reason": piece.finish, "logprobs": None}
                usage = _usage(job, piece.tokens)
                return {**about, "object": "chat.completion", "choices": [choice], "usage": usage}
    finally:
        watch.cancel()
        job.left.set()


GONE = batches.Piece("")
"""Queued when the client has disconnected, in place of further pieces."""


async def _events(
    about: dict, job: batches.Request, pieces: asyncio.Queue, options: StreamOptions | None
) -> AsyncIterator[str]:
    with_usage = options is not None and options.include_usage

    def event(choices: list[dict], usage: dict | None = None) -> str:
        chunk = {**about, "object": "chat.completion.chunk", "choices": choices}
        return f"data: {json.dumps(chunk | ({'usage': usage} if with_usage else {}))}\n\n"

    def choice(delta: dict, finish: str | None = None) -> list[dict]:
        return [{"index": 0, "delta": delta, "finish_reason": finish}]

    yield event(choice({"role": "assistant", "content": ""}))
    while True:
        piece = await pieces.get()
        if piece.error:
            yield f"data: {bytes(_failed(piece.error).body).decode()}\n\n"
            return
        if piece.text:
            yield event(choice({"content": piece.text}))
        if piece.finish:
            yield event(choice({}, piece.finish))
            if with_usage:
                yield event([], _usage(job, piece.tokens))
            yield "data: [DONE]\n\n"
            return


def _usage(job: batches.Request, tokens: int) -> dict[str, int]:
    read = len(job.prompt)
    return {"prompt_tokens": read, "completion_tokens": tokens, "total_tokens": read + tokens}


def _failed(error: Exception) -> JSONResponse:
    return error_response(f"{type(error).__name__} while answering", 500, "server_error")


def _refuse(request: Request, refused: Any) -> JSONResponse:
    return error_response(str(refused), refused.status, param=refused.param, code=refused.code)


def _full(request: Request, error: Any) -> JSONResponse:
    headers = {"Retry-After": str(error.seconds)}
    return error_response(str(error), 429, "requests", code="rate_limit_exceeded", headers=headers)


def _unserved(request: Request, error: Any) -> JSONResponse:
    """Report an unknown path or method, or a body that is not JSON, in the same form as other errors."""
    said = {
        400: "body: not JSON in UTF-8",
        404: f"there is no {request.method} {request.url.path} here; available: GET /v1/models, GET "
        "/v1/models/NAME and POST /v1/chat/completions",
        405: f"{request.url.path} does not allow {request.method}, only {(error.headers or {}).get('Allow')}",
    }
    text = said.get(error.status_code, str(error.detail))
    return error_response(text, error.status_code, headers=error.headers)


def _invalid(request: Request, error: Any) -> JSONResponse:
    errors = error.errors()
    # For a union of types, the error of the intended type says more than "not a string".
    first = next((one for one in errors if one["type"] not in ("string_type", "list_type")), errors[0])
    parts = [str(part) for part in first["loc"][1:]]
    name = ".".join(part for part in parts if not part.startswith(("function-after[", "list["))) or "body"
    said = first["msg"][:1].lower() + first["msg"][1:]
    if first["type"] == "json_invalid":
        name, said = "body", f"not JSON at byte {first['loc'][-1]} ({first['ctx']['error']})"
    if first["type"] == "extra_forbidden":
        said = "not supported; leave it out"
    if first["type"] == "model_attributes_type" and name == "body":  # FastAPI parses no other content type
        said = "not a JSON object; send one, with Content-Type: application/json"
    return error_response(f"{name}: {said}", 400, param=name)
