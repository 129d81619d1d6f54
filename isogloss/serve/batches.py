"""Requests that wait at the same time are answered in one batch, each on its language's path.

Flow: Request → queue → batch of those that wait → one greedy generation → pieces of text to each.
"""

import queue
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from threading import Event, Thread
from typing import Literal

from torch import Tensor
from transformers.generation.streamers import BaseStreamer

from isogloss.generate import stops
from isogloss.inference import Aligned

Finish = Literal["stop", "length"]


@dataclass(frozen=True)
class Piece:
    """A part of an answer; the last one says why it ended, or what went wrong."""

    text: str
    tokens: int = 0
    finish: Finish | None = None
    error: Exception | None = None


@dataclass
class Request:
    """One prompt; `hear` is called from the batcher's thread.

    Attributes:
        code: The path's language; None: the reference model answers.
        ends: Texts before which the answer ends.
    """

    prompt: tuple[int, ...]
    code: str | None
    max_new_tokens: int
    hear: Callable[[Piece], object]
    ends: tuple[str, ...] = ()
    left: Event = field(default_factory=Event)


class Batcher:
    """Answers requests until it is closed.

    Args:
        model: What answers.
        size: Most requests in a batch.
        wait: Seconds that the first request of a batch waits for others.
    """

    def __init__(self, model: Aligned, *, size: int = 32, wait: float = 0.005):
        self.model, self.size, self.wait = model, size, wait
        self.ends = frozenset(stops(model.model, model.run.tokenizer))
        self._queue: queue.Queue[Request | None] = queue.Queue()
        self._thread = Thread(target=self._work, daemon=True)
        self._thread.start()

    def submit(self, request: Request) -> None:
        self._queue.put(request)

    def close(self) -> None:
        """Finish what is being answered, and no more."""
        self._queue.put(None)
        self._thread.join()

    def _work(self) -> None:
        first = self._queue.get()
        while first is not None:
            batch, following = self._gather(first)
            self._answer(batch)
            first = following or self._queue.get()

    def _gather(self, first: Request) -> tuple[list[Request], Request | None]:
        """Requests that can share the first one's batch, and the first that cannot."""
        batch = [first]
        try:
            while len(batch) < self.size:
                other = self._queue.get(timeout=self.wait)
                if other is None:
                    self._queue.put(None)  # the end comes after this batch
                    break
                if (other.code is None) != (first.code is None):
                    return batch, other
                batch.append(other)
        except queue.Empty:
            pass
        return batch, None

    def _answer(self, batch: Sequence[Request]) -> None:
        rows = _Rows(self.model.run.tokenizer, batch, self.ends)
        codes = None if batch[0].code is None else [request.code or "" for request in batch]
        longest = max(request.max_new_tokens for request in batch)
        try:
            self.model.complete(
                [request.prompt for request in batch], codes, longest, streamer=rows, stopped=rows.stopped
            )
        except Exception as error:
            rows.fail(error)


class _Rows(BaseStreamer):
    """Hands each row's text to its request as it grows."""

    def __init__(self, tokenizer, batch: Sequence[Request], ends: frozenset[int]):
        self.tokenizer, self.batch, self.ends = tokenizer, batch, ends
        self.tokens: list[list[int]] = [[] for _ in batch]
        self.said = [""] * len(batch)
        self.done = [False] * len(batch)

    def put(self, value: Tensor) -> None:
        """The prompts first, then one token for each row."""
        if value.ndim == 1:
            for row, token in enumerate(value.tolist()):
                if not self.done[row]:
                    self._take(row, token)

    def end(self) -> None:
        """Every row has said why it ended by itself."""

    def stopped(self, row: int) -> bool:
        return self.done[row] or self.batch[row].left.is_set()

    def fail(self, error: Exception) -> None:
        """Tell those that are still waiting."""
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
        text = self.tokenizer.decode(tokens, skip_special_tokens=True).lstrip()
        if finish is None and text.endswith("�"):
            return  # a character whose last bytes are still to come
        found = [at for end in request.ends if (at := text.find(end)) >= 0]
        if found:
            text, finish = text[: min(found)], "stop"
        elif finish is None and request.ends:
            # What may be the beginning of such an end is kept back.
            kept = max(len(end) for end in request.ends) - 1
            text = text[: max(len(self.said[row]), len(text) - kept)]
        if finish:
            text = text.rstrip()
            self.done[row] = True
        new, self.said[row] = text[len(self.said[row]) :], text
        if new or finish:
            request.hear(Piece(new, len(tokens), finish))
