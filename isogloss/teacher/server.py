"""A served teacher: any OpenAI-compatible endpoint that returns a prompt's log-probabilities, as vLLM does.

Prompt and response are sent as ids to `/completions`; the answer names the likeliest tokens at each place of
the prompt, of which the response's are kept. The server must therefore read the student's tokens.
Flow: rows → those not in the store → requests, several at a time, at a stated pace → store → rows in order.

Asked again, after an exponentially growing, random wait: 408, 429 and 5xx (after `Retry-After`, where it is
given: then nobody asks before), time-outs, dropped connections, and answers that are not whole JSON.
Every other refusal ends the run with one line; what was answered is kept, and the next run asks the rest.
"""

import email.utils
import hashlib
import json
import math
import os
import random
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

import httpx2
import torch
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception_type,
    sleep_using_event,
    stop_after_attempt,
    wait_random_exponential,
)

from isogloss.config import ServerTeacher
from isogloss.errors import ConfigError, RunError
from isogloss.teacher.scored import Asked, Scored
from isogloss.teacher.store import Store, usable

VERSION = 1
"""Of what a key stands for."""
LONGEST_WAIT = 60.0
"""Seconds between two attempts, where the server names none."""


def score(
    rows: Sequence[Asked],
    settings: ServerTeacher,
    store: Store,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> list[Scored]:
    """What the server says about every row's response, in the rows' order; rows in the store are not asked.

    Raises:
        ConfigError: The server refuses, returns no usable log-probabilities of prompts, or reads other
            tokens; or the environment variable of the key is not set.
        RunError: A row was asked as often as the settings say, in vain.
    """
    keys = [key_of(row, settings) for row in rows]
    missing = {key: row for key, row in zip(keys, rows, strict=True) if key not in store}
    done, of = len(set(keys)) - len(missing), len(set(keys))
    if missing:
        with _Client(settings) as client, ThreadPoolExecutor(settings.concurrency) as pool:

            def ask(key: str, row: Asked) -> None:
                store.put(key, client.ask(row))

            futures = [pool.submit(ask, key, row) for key, row in missing.items()]
            try:
                for future in as_completed(futures):
                    future.result()
                    progress(done := done + 1, of)
            except BaseException:
                # Nothing that waits begins; what is under way is waited for, and kept.
                client.stop.set()
                raise
    return [store[key] for key in keys]


def key_of(row: Asked, settings: ServerTeacher) -> str:
    """Names a row by its content and by who is asked for what; the key of the endpoint is no part of it."""
    content = [VERSION, settings.url, settings.model, settings.top_k, row.prompt, row.response]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


class _Again(Exception):  # noqa: N818  # an attempt, not an error
    """A fault that may pass; `wait` is how many seconds the server wants."""

    def __init__(self, what: str, wait: float | None = None):
        super().__init__(what)
        self.wait = wait


class _Stopped(Exception):  # noqa: N818  # neither
    """Another row has failed for good."""


class _Pace:
    """Lets requests start no faster than a rate, and none before a time that the server has named."""

    def __init__(self, rate: float | None):
        self.gap = 0.0 if rate is None else 1 / rate
        self._next = 0.0
        self._queue, self._lock = threading.Lock(), threading.Lock()

    def wait(self, stop: threading.Event) -> None:
        """Until it is the caller's turn, or all is stopped; who comes later waits behind."""
        with self._queue:
            while True:
                with self._lock:
                    now = time.monotonic()
                    if self._next <= now:
                        self._next = now + self.gap
                        return
                    left = self._next - now
                if stop.wait(left):
                    return

    def hold(self, seconds: float) -> None:
        with self._lock:
            self._next = max(self._next, time.monotonic() + seconds)


class _Client:
    """Asks for one row at a time, again where that may help; used by several threads."""

    def __init__(self, settings: ServerTeacher):
        self.settings = settings
        self._key = ""
        if settings.key_env is not None:
            self._key = os.environ.get(settings.key_env, "")
            if not self._key:
                raise ConfigError(
                    f"distill.teacher.key_env: the environment variable {settings.key_env} is not set; put "
                    "the server's key there"
                )
        self.stop = threading.Event()
        self._pace = _Pace(settings.rate)
        self._http = httpx2.Client(
            timeout=settings.timeout,
            headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
            limits=httpx2.Limits(max_connections=settings.concurrency),
        )

    def __enter__(self) -> "_Client":
        return self

    def __exit__(self, *args: object) -> None:
        self._http.close()

    def ask(self, row: Asked) -> Scored:
        retrying = Retrying(
            retry=retry_if_exception_type(_Again), stop=stop_after_attempt(self.settings.attempts),
            wait=self._wait, sleep=sleep_using_event(self.stop), reraise=True,
        )  # fmt: skip
        try:
            return retrying(self._once, row)
        except _Again as error:
            raise RunError(
                f"{self.settings.url} did not answer in {self.settings.attempts} attempts (the last: "
                f"{error}); what it has answered is kept, and the same command asks the rest"
            ) from None

    def _wait(self, state: RetryCallState) -> float:
        backoff = self.settings.backoff
        error = state.outcome.exception() if state.outcome else None
        if isinstance(error, _Again) and error.wait is not None:
            return error.wait + random.uniform(0, min(backoff, 1.0) / 10)
        return wait_random_exponential(multiplier=backoff, max=LONGEST_WAIT)(state)

    def _once(self, row: Asked) -> Scored:
        self._pace.wait(self.stop)
        if self.stop.is_set():
            raise _Stopped
        settings = self.settings
        body = {
            "model": settings.model, "prompt": [*row.prompt, *row.response], "max_tokens": 1,
            "temperature": 0, "prompt_logprobs": settings.top_k,
        }  # fmt: skip
        try:
            answer = self._http.post(f"{settings.url.rstrip('/')}/completions", json=body)
        except httpx2.TransportError as error:
            raise _Again(type(error).__name__) from None
        status = answer.status_code
        if status in (408, 429) or status >= 500:
            wait = _retry_after(answer.headers.get("retry-after"))
            if wait is not None:
                self._pace.hold(wait)
            raise _Again(str(status), wait)
        if status != 200:
            raise ConfigError(f"distill.teacher: {settings.url} answered {status}{self._why(answer)}")
        try:
            said = answer.json()
        except ValueError:
            raise _Again("an answer that is not whole JSON") from None
        return _scored(said, row, settings)

    def _why(self, answer: httpx2.Response) -> str:
        """The server's reason in a few words, which must not repeat the key; of a key it says nothing."""
        if answer.status_code in (401, 403):
            return "; name the environment variable of a valid key in distill.teacher.key_env"
        text = " ".join(answer.text.split())[:200]
        return f": {text.replace(self._key, '…') if self._key else text}"


def _scored(said: Any, row: Asked, settings: ServerTeacher) -> Scored:
    """The response's places of an answer."""
    try:
        places = said["choices"][0]["prompt_logprobs"]
    except (TypeError, LookupError):
        places = None
    if not isinstance(places, list):
        raise ConfigError(
            f"distill.teacher: {settings.url} returns no prompt_logprobs; take a server that does, such as "
            "vLLM"
        )
    sent = len(row.prompt) + len(row.response)
    if len(places) != sent:
        raise ConfigError(
            f"distill.teacher: {settings.url} read {len(places)} tokens where {sent} were sent; it must "
            f"serve {settings.model} with the student's tokenizer"
        )
    ids, logprobs = [], []
    for token, place in zip(row.response, places[len(row.prompt) :], strict=True):
        try:
            found = {int(name): float(one["logprob"]) for name, one in place.items()}
        except (AttributeError, TypeError, LookupError, ValueError, OverflowError):
            raise ConfigError(
                f"distill.teacher: {settings.url} returns prompt_logprobs that do not name a logprob for the "
                "id of each token; take a server that does, such as vLLM"
            ) from None
        if token not in found:
            raise ConfigError(
                f"distill.teacher: {settings.url} read another token than {token}, which was sent; it must "
                f"serve {settings.model} with the student's tokenizer"
            )
        # What is no number comes first: it must not be left out unseen.
        best = sorted(found.items(), key=lambda one: (not math.isnan(one[1]), -one[1], one[0]))
        best = best[: settings.top_k]
        if len(best) < settings.top_k:
            raise ConfigError(
                f"distill.teacher.top_k is {settings.top_k} and {settings.url} returns {len(best)}; lower "
                "it, or raise the server's own limit (vLLM: --max-logprobs)"
            )
        ids.append([number for number, _ in best])
        logprobs.append([value for _, value in best])
    try:
        return usable(torch.tensor(ids), torch.tensor(logprobs))
    except (ValueError, RuntimeError, OverflowError) as error:  # of the latter, an id beyond 64 bits
        raise ConfigError(
            f"distill.teacher: {settings.url} returns no distribution: {error}; see which model it serves, "
            "and in which dtype"
        ) from None


def _retry_after(header: str | None) -> float | None:
    """Seconds of a `Retry-After`, which is a number of them or a date (RFC 9110, section 10.2.3)."""
    if header is None:
        return None
    try:
        return max(0.0, float(header))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(header).timestamp() - time.time())
    except ValueError:
        return None
