"""Batching: requests that wait at the same time share one generation, each on its language's path.

Flow: Request → queue → batch of waiting requests → greedy decoding → pieces of text for each request.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from threading import Condition, Event, Thread
from typing import Any, Literal

from torch import Tensor
from transformers.generation.streamers import BaseStreamer

from isogloss.adapters.generate import PROMPTS, stops
from isogloss.inference import Aligned
from isogloss.model.decoder import most_tokens
from isogloss.serve.guard import log

Finish = Literal["stop", "length"]
WAIT = 0.005
"""Seconds that a batch waits for another request."""


@dataclass(frozen=True)
class Piece:
    """A part of an answer; the last one carries the finish reason or the error."""

    text: str
    tokens: int = 0
    finish: Finish | None = None
    error: Exception | None = None


@dataclass
class Request:
    """One prompt; `hear` is called from the batcher's thread.

    Attributes:
        code: Language of the path; None for the reference model.
        ends: Stop strings; the answer ends before the first of them.
        left: Set once the client is gone; the request is then abandoned.
    """

    prompt: tuple[int, ...]
    code: str | None
    max_new_tokens: int
    hear: Callable[[Piece], object]
    ends: tuple[str, ...] = ()
    left: Event = field(default_factory=Event)


Record = Callable[[Request, str, str, Finish], object]
"""Callback for a finished request: the request, its prompt and whole answer as text, the finish reason."""


class FullError(Exception):
    """The queue is full.

    Attributes:
        seconds: Estimated seconds until there is room.
    """

    def __init__(self, waiting: int, seconds: int):
        super().__init__(f"{waiting} requests are waiting; try again in {seconds} s")
        self.seconds = seconds


class Batcher:
    """Answers requests until it is closed.

    Args:
        model: The model that answers.
        size: Maximum number of requests in a batch.
        waiting: Maximum number of queued requests.
        positions: Maximum of the longest prompt plus the longest answer in a batch, in tokens: every row
            continues until the longest answer ends, and learned position embeddings have a fixed number.
        record: Callback that receives every finished request with its answer.
    """

    def __init__(
        self,
        model: Aligned,
        *,
        size: int = 32,
        waiting: int = 256,
        positions: float = math.inf,
        record: Record | None = None,
    ):
        self.model, self.size, self.waiting, self.record = model, size, waiting, record
        self.positions = positions
        self.ends = frozenset(stops(model.model, model.run.tokenizer))
        self.tokens = most_tokens(model.model, PROMPTS)
        self._queue: list[Request] = []
        self._changed, self._closed, self._took = Condition(), False, 1.0
        self._thread = Thread(target=self._work, daemon=True)
        self._thread.start()

    def submit(self, *requests: Request) -> None:
        """Queue requests; an empty queue accepts any number.

        Raises:
            FullError: There is no room for all of them; none is queued.
        """
        with self._changed:
            self._queue = [one for one in self._queue if not one.left.is_set()]
            if self._queue and len(self._queue) + len(requests) > self.waiting:
                batches = 1 + len(self._queue) // self.size
                raise FullError(len(self._queue), math.ceil(batches * self._took))
            self._queue += requests
            self._changed.notify()

    def close(self) -> None:
        """Answer all queued requests, then stop."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while batch := self._gather():
            began = time.monotonic()
            self._answer(batch)
            self._took = time.monotonic() - began

    def _gather(self) -> list[Request]:
        """Return the oldest request and those that fit into its batch; empty once closed."""
        with self._changed:
            batch: list[Request] = []
            while not batch:
                self._changed.wait_for(lambda: self._queue or self._closed)
                if not self._queue:
                    return []
                while len(self._queue) < self.size and not self._closed and self._changed.wait(WAIT):
                    pass
                left: list[Request] = []
                for request in self._queue:
                    if not request.left.is_set():
                        (batch if self._fits(batch, request) else left).append(request)
                self._queue = left
            return batch

    def _fits(self, batch: Sequence[Request], request: Request) -> bool:
        """Return True if a request fits into a batch: all or none use adapters, and all limits hold."""
        if not batch:
            return True
        longest = max(len(one.prompt) for one in (*batch, request))
        most = max(one.max_new_tokens for one in (*batch, request))
        alike = (request.code is None) == (batch[0].code is None)
        return (
            alike
            and len(batch) < self.size
            and longest * (len(batch) + 1) <= self.tokens
            and longest + most <= self.positions
        )

    def _answer(self, batch: Sequence[Request]) -> None:
        rows = _Rows(self.model.run.tokenizer, batch, self.ends, self.record)
        codes = None if batch[0].code is None else [request.code or "" for request in batch]
        longest = max(request.max_new_tokens for request in batch)
        try:
            self.model.complete(
                [request.prompt for request in batch], codes, longest, streamer=rows, stopped=rows.stopped
            )
        except Exception as error:
            log(error)
            rows.fail(error)


class _Rows(BaseStreamer):
    """Streamer that passes new text of each row to its request."""

    def __init__(self, tokenizer: Any, batch: Sequence[Request], ends: frozenset[int], record: Record | None):
        self.tokenizer, self.batch, self.ends, self.record = tokenizer, batch, ends, record
        self.tokens: list[list[int]] = [[] for _ in batch]
        self.said = [""] * len(batch)
        self.done = [False] * len(batch)

    def put(self, value: Tensor) -> None:
        """Receive one new token per row; the first call, with the prompts (2-D), is ignored."""
        if value.ndim == 1:
            for row, token in enumerate(value.tolist()):
                if not self.stopped(row):  # stopped rows get padding
                    self._take(row, token)

    def end(self) -> None:
        """Do nothing: each row has already sent its finish reason."""

    def stopped(self, row: int) -> bool:
        return self.done[row] or self.batch[row].left.is_set()

    def fail(self, error: Exception) -> None:
        """Send the error to all unfinished requests."""
        for row, request in enumerate(self.batch):
            if not self.done[row]:
                self.done[row] = True
                request.hear(Piece("", error=error))

    def _take(self, row: int, token: int) -> None:
        request, tokens = self.batch[row], self.tokens[row]
        finish: Finish | None = "stop" if token in self.ends else None
        tokens.append(token)
        if finish is None and len(tokens) == request.max_new_tokens:
            finish = "length"
        said = tokens[:-1] if finish == "stop" else tokens  # an end of turn need not be a special token
        text = self.tokenizer.decode(said, skip_special_tokens=True)
        blank = len(text) - len(text.lstrip())  # not sent, but may be a stop string
        if finish is None and text.endswith("�"):
            return  # incomplete UTF-8: the character's last bytes are still to come
        found = [at for end in request.ends if (at := text.find(end)) >= 0]
        if found:
            text, finish = text[: min(found)], "stop"
        elif finish is None and request.ends:
            # Hold back what may be the beginning of a stop string.
            kept = max(len(end) for end in request.ends) - 1
            text = text[: max(blank + len(self.said[row]), len(text) - kept)]
        text = text.strip()  # whitespace is sent with the text that follows it
        if finish:
            self.done[row] = True
        new, self.said[row] = text[len(self.said[row]) :], text
        if new or finish:
            request.hear(Piece(new, len(tokens), finish))
        if finish and self.record:
            try:
                self.record(request, self.tokenizer.decode(request.prompt), text, finish)
            except OSError as error:  # a full disk must not block other answers
                log(error)
