"""Chat completions and models in the form of OpenAI's API.

A model's name is a language, by any of its codes; `auto` detects it in the user's last message, `reference`
is the model without adapters.
"""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from jinja2 import TemplateError
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.types import Message as Event

from isogloss.data.chat import encode_chat
from isogloss.data.formats.lines import is_text
from isogloss.data.text import canonical
from isogloss.inference import Aligned
from isogloss.languages import UnknownLanguageError, resolve
from isogloss.serve import batches

AUTO, REFERENCE = "auto", "reference"
LARGEST = 16 << 20
"""Bytes of a request's body, at most: far more than a model reads."""


def _encodable(text: str) -> str:
    if not is_text(text):
        raise PydanticCustomError(
            "surrogate", "holds half of a surrogate pair; send text that UTF-8 can write"
        )
    return canonical(text)


Written = Annotated[str, AfterValidator(_encodable)]
"""JSON can spell what is no text, and no tokenizer reads."""


class Part(BaseModel):
    """A part of a message's content."""

    type: Literal["text"]
    text: Written


class Given(BaseModel):
    """Takes no name that is not known, except with null, which says that nothing is given."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, body: Any) -> Any:
        return {k: v for k, v in body.items() if v is not None} if isinstance(body, dict) else body


class Message(Given):
    """One turn."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Written | list[Part]

    def plain(self) -> dict[str, str]:
        text = self.content if isinstance(self.content, str) else "".join(p.text for p in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class Text(Given):
    """The one form of an answer."""

    type: Literal["text"]


Zero = Annotated[float, Field(ge=0, le=0)]
Nothing = Annotated[list[Any], Field(max_length=0)]


class Ask(Given):
    """What of a request is read; what would change the answer and is not offered is refused."""

    model: Written
    messages: list[Message] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    stream: bool = False
    stream_options: dict[str, Any] = Field(default_factory=dict)
    stop: Written | list[Written] | None = None

    # Answers are greedy text from the messages alone; these may say so.
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

    # Whatever they are, a greedy answer is the same.
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


class Refused(Exception):  # noqa: N818  # the name says what happened to the request
    """A request that cannot be answered, and with which status."""

    def __init__(self, message: str, status: int = 400, param: str | None = None, code: str | None = None):
        super().__init__(message)
        self.status, self.param, self.code = status, param, code


def make_app(model: Aligned, *, size: int = 32, longest: int = 512) -> FastAPI:
    """The application.

    Args:
        model: What answers.
        size: Most requests in a batch.
        longest: Most tokens of an answer.
    """

    @asynccontextmanager
    async def living(app: FastAPI) -> AsyncIterator[None]:
        app.state.batcher = batches.Batcher(model, size=size)
        yield
        app.state.batcher.close()

    app = FastAPI(title="isogloss", lifespan=living)
    app.add_exception_handler(Refused, _refuse)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _unserved)
    app.add_middleware(Bounded)
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
        job, pieces = _job(ask, model, longest)
        request.app.state.batcher.submit(job)
        head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": ask.model}
        if ask.stream:
            events = _events(head, job, pieces, bool(ask.stream_options.get("include_usage")))
            return StreamingResponse(events, media_type="text/event-stream")
        return await _whole(head, job, pieces, request)

    return app


def _job(ask: Ask, model: Aligned, longest: int) -> tuple[batches.Request, asyncio.Queue]:
    code = _code(ask, model)
    messages = [message.plain() for message in ask.messages]
    try:
        prompt = encode_chat(model.run.tokenizer, messages)
    except TemplateError as error:
        raise Refused(f"messages: the model's chat template says: {error}", param="messages") from None
    most = int(getattr(model.model.config, "max_position_embeddings", len(prompt) + longest))
    room = most - len(prompt)
    if room < 1:
        raise Refused(
            f"the messages have {len(prompt)} tokens and the model reads {most} with its answer; shorten "
            "them",
            param="messages", code="context_length_exceeded",
        )  # fmt: skip
    wanted = ask.max_completion_tokens or ask.max_tokens or longest
    ends = (ask.stop,) if isinstance(ask.stop, str) else tuple(ask.stop or ())
    pieces: asyncio.Queue[batches.Piece] = asyncio.Queue()
    hear = partial(asyncio.get_running_loop().call_soon_threadsafe, pieces.put_nowait)
    job = batches.Request(prompt, code, min(wanted, longest, room), hear, tuple(filter(None, ends)))
    return job, pieces


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


async def _whole(
    about: dict, job: batches.Request, pieces: asyncio.Queue, request: Request
) -> dict | JSONResponse:
    text = ""
    while True:
        try:
            piece = await asyncio.wait_for(pieces.get(), timeout=1.0)
        except TimeoutError:
            if await request.is_disconnected():
                job.left.set()
                return {}
            continue
        if piece.error:
            return _error(f"{type(piece.error).__name__} while answering", 500, "server_error")
        text += piece.text
        if piece.finish:
            message = {"role": "assistant", "content": text}
            choice = {"index": 0, "message": message, "finish_reason": piece.finish, "logprobs": None}
            usage = _usage(job, piece.tokens)
            return {**about, "object": "chat.completion", "choices": [choice], "usage": usage}


async def _events(
    about: dict, job: batches.Request, pieces: asyncio.Queue, with_usage: bool
) -> AsyncIterator[str]:
    def event(choices: list[dict], **more: Any) -> str:
        chunk = {**about, "object": "chat.completion.chunk", "choices": choices, **more}
        return f"data: {JSONResponse(chunk).body.decode()}\n\n"  # type: ignore[union-attr]

    def choice(delta: dict, finish: str | None = None) -> list[dict]:
        return [{"index": 0, "delta": delta, "finish_reason": finish}]

    try:
        yield event(choice({"role": "assistant", "content": ""}))
        while True:
            piece: batches.Piece = await pieces.get()
            if piece.error:
                body = _error(f"{type(piece.error).__name__} while answering", 500, "server_error").body
                yield f"data: {body.decode()}\n\n"  # type: ignore[union-attr]
                return
            if piece.text:
                yield event(choice({"content": piece.text}))
            if piece.finish:
                yield event(choice({}, piece.finish))
                if with_usage:
                    yield event([], usage=_usage(job, piece.tokens))
                yield "data: [DONE]\n\n"
                return
    finally:
        job.left.set()  # who has gone away is not answered to the end


def _usage(job: batches.Request, tokens: int) -> dict[str, int]:
    read = len(job.prompt)
    return {"prompt_tokens": read, "completion_tokens": tokens, "total_tokens": read + tokens}


def _error(
    message: str, status: int, kind: str, param: str | None = None, code: str | None = None
) -> JSONResponse:
    # A name that the request spelled with half a surrogate pair cannot be sent back.
    said = message.encode("utf-8", "replace").decode()
    body = {"message": said, "type": kind, "param": param and param.encode("utf-8", "replace").decode()}
    body["code"] = code
    return JSONResponse({"error": body}, status_code=status)


def _refuse(request: Request, refused: Any) -> JSONResponse:
    return _error(str(refused), refused.status, "invalid_request_error", refused.param, refused.code)


def _unserved(request: Request, error: Any) -> JSONResponse:
    """A path or method that is not there, or a body that is no JSON, in the form of all other errors."""
    said = {
        400: "body: not JSON in UTF-8",
        404: f"there is no {request.method} {request.url.path} here; there are GET /v1/models, GET "
        "/v1/models/NAME and POST /v1/chat/completions",
        405: f"{request.url.path} takes no {request.method}; it takes {(error.headers or {}).get('Allow')}",
    }
    return _error(said.get(error.status_code, str(error.detail)), error.status_code, "invalid_request_error")


class Bounded:
    """Reads no body of more than `LARGEST` bytes, whether it tells its length or not."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        read = 0

        async def bounded() -> Event:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > LARGEST:
                raise HTTPException(413, f"the body has more than {LARGEST >> 20} MiB; shorten the messages")
            return message

        await self.app(scope, bounded, send)


def _invalid(request: Request, error: Any) -> JSONResponse:
    first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"][1:]) or "body"
    said = first["msg"][:1].lower() + first["msg"][1:]
    if first["type"] == "json_invalid":
        name, said = "body", f"not JSON at byte {first['loc'][-1]} ({first['ctx']['error']})"
    if first["type"] == "extra_forbidden":
        said = "not offered here; leave it out"
    return _error(f"{name}: {said}", 400, "invalid_request_error", name)
