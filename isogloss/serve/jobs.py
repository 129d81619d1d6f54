"""From what a request says to what the batcher answers: texts that can be read, within the limits."""

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
            "surrogate", "holds half of a surrogate pair; send text that UTF-8 can write"
        )
    return canonical(text)


Written = Annotated[str, AfterValidator(_encodable)]
"""JSON can spell what is no text, and no tokenizer reads."""


class Given(BaseModel):
    """Takes no name that is not known, except with null, which says that nothing is given."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, body: Any) -> Any:
        return {k: v for k, v in body.items() if v is not None} if isinstance(body, dict) else body


class Refused(Exception):  # noqa: N818  # the name says what happened to the request
    """A request that cannot be answered, and with which status."""

    def __init__(self, message: str, status: int = 400, param: str | None = None, code: str | None = None):
        super().__init__(message)
        self.status, self.param, self.code = status, param, code


@dataclass(frozen=True)
class Limits:
    """Most tokens of an answer, of a prompt, and of both together."""

    answer: int
    prompt: int
    both: int


Hear = Callable[[Any], object]
Made = TypeVar("Made")


async def heard(read: Callable[[Hear], Made], reader: Executor) -> tuple[Made, asyncio.Queue]:
    """What is read beside the event loop, and the queue in which its answers arrive."""
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
    """A conversation to be answered on a language's path, or by the reference model.

    Raises:
        Refused: The template takes no such turns, or they are too long.
    """
    try:
        prompt = encode_chat(model.run.tokenizer, messages)
    except TemplateError as error:
        raise Refused(f"messages: the model's chat template says: {error}", param="messages") from None
    if len(prompt) > limits.prompt:
        what = f"at most {limits.prompt} are read here"
        if limits.prompt == limits.both - 1:
            what = f"the model reads {limits.both} with its answer"
        said = f"the messages have {len(prompt)} tokens and {what}; shorten them"
        raise Refused(said, param="messages", code="context_length_exceeded")
    most = min(wanted or limits.answer, limits.answer, limits.both - len(prompt))
    return batches.Request(prompt, code, most, hear, tuple(filter(None, ends)))


class Streamed(StreamingResponse):
    """What is sent as it comes; who has gone away is not answered to the end."""

    def __init__(self, events: AsyncIterator[str], jobs: Sequence[batches.Request], media_type: str):
        super().__init__(events, media_type=media_type, headers={"X-Accel-Buffering": "no"})
        self.jobs = jobs

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The whole of it, or as much as somebody hears."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            for job in self.jobs:
                job.left.set()
