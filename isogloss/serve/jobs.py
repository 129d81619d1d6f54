"""Turn request bodies into batcher requests: validate texts and enforce the limits."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, TypeVar

from fastapi.responses import StreamingResponse
from jinja2 import TemplateError
from pydantic import AfterValidator, BaseModel, ConfigDict, model_validator
from pydantic_core import PydanticCustomError
from starlette.types import Receive, Scope, Send

from isogloss.data.chat import encode_chat
from isogloss.data.formats.lines import is_text
from isogloss.data.text import canonical
from isogloss.inference import Aligned
from isogloss.serve import batches


def _encodable(text: str) -> str:
    if not is_text(text):
        raise PydanticCustomError(
            "surrogate", "contains half of a surrogate pair; send text that UTF-8 can encode"
        )
    return canonical(text)


Written = Annotated[str, AfterValidator(_encodable)]
"""Text that UTF-8 can encode: JSON escapes can spell lone surrogates, which no tokenizer accepts."""


class Given(BaseModel):
    """Request body that rejects unknown fields, except null ones, which count as absent."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, body: Any) -> Any:
        return {k: v for k, v in body.items() if v is not None} if isinstance(body, dict) else body


class Refused(Exception):  # noqa: N818  # the name says what happened to the request
    """A rejected request, with its HTTP status."""

    def __init__(self, message: str, status: int = 400, param: str | None = None, code: str | None = None):
        super().__init__(message)
        self.status, self.param, self.code = status, param, code


@dataclass(frozen=True)
class Limits:
    """Maximum tokens of an answer, of a prompt, and of both together."""

    answer: int
    prompt: int
    both: int


Hear = Callable[[Any], object]
Made = TypeVar("Made")


async def heard(read: Callable[[Hear], Made], reader: Executor) -> tuple[Made, asyncio.Queue]:
    """Run `read` outside the event loop; return its result and the queue in which its answers arrive."""
    loop, pieces = asyncio.get_running_loop(), asyncio.Queue()
    hear = partial(loop.call_soon_threadsafe, pieces.put_nowait)
    return await loop.run_in_executor(reader, read, hear), pieces


def limited(
    messages: list[dict[str, str]],
    code: str | None,
    model: Aligned,
    limits: Limits,
    hear: Hear,
    *,
    wanted: int | None = None,
    ends: Sequence[str] = (),
) -> batches.Request:
    """Return the request for a conversation on a language's path, or to the reference model.

    Raises:
        Refused: The chat template rejects the turns or writes nothing for them, or they are too long.
    """
    try:
        prompt = encode_chat(model.run.tokenizer, messages)
    except TemplateError as error:
        raise Refused(f"messages: rejected by the chat template: {error}", param="messages") from None
    if not prompt:
        raise Refused("messages: the chat template writes no prompt; end with a user turn", param="messages")
    if len(prompt) > limits.prompt:
        what = f"at most {limits.prompt} are allowed here"
        if limits.prompt == limits.both - 1:
            what = f"the model's limit is {limits.both} including its answer"
        said = f"the messages have {len(prompt)} tokens; {what}; shorten them"
        raise Refused(said, param="messages", code="context_length_exceeded")
    most = min(wanted or limits.answer, limits.answer, limits.both - len(prompt))
    return batches.Request(prompt, code, most, hear, tuple(filter(None, ends)))


class Streamed(StreamingResponse):
    """Streaming response that abandons its requests when the client disconnects."""

    def __init__(self, events: AsyncIterator[str], jobs: Sequence[batches.Request], media_type: str):
        super().__init__(events, media_type=media_type, headers={"X-Accel-Buffering": "no"})
        self.jobs = jobs

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream until it ends or the client disconnects."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            for job in self.jobs:
                job.left.set()
