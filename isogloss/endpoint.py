"""HTTP client that posts JSON concurrently, with a rate limit and retries.

Retried with randomised exponential backoff: 408, 429 and 5xx, timeouts, dropped connections, and incomplete
JSON. If the server sends `Retry-After`, no request starts before that time. Any other error status ends the
work with a one-line error. Independent of what the requests contain.
"""

import email.utils
import os
import random
import re
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

import httpx2
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception_type,
    sleep_using_event,
    stop_after_attempt,
    wait_random_exponential,
)

from isogloss.config import Endpoint
from isogloss.errors import ConfigError, RunError

LONGEST_WAIT = 60.0
"""Maximum seconds between two attempts if the server sends no `Retry-After`."""


class _Again(Exception):  # noqa: N818  # an attempt, not an error
    """A transient failure; `wait` is the server's `Retry-After` in seconds, if any."""

    def __init__(self, what: str, wait: float | None = None):
        super().__init__(what)
        self.wait = wait


class _Stopped(Exception):  # noqa: N818  # neither
    """Another request has failed permanently."""


class _Pace:
    """Rate limiter for request starts; also holds requests back until a `Retry-After` has passed."""

    def __init__(self, rate: float | None):
        self.gap = 0.0 if rate is None else 1 / rate
        self._next = 0.0
        self._queue, self._lock = threading.Lock(), threading.Lock()

    def wait(self, stop: threading.Event) -> None:
        """Block until it is the caller's turn or `stop` is set; later callers queue behind."""
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


class Client:
    """Thread-safe client that posts requests and retries transient failures.

    Args:
        settings: The endpoint, with its rate, concurrency, timeout and retries.
        where: Name of the settings section, for messages.
        key: Name of the setting that names the key's environment variable, for messages.

    Raises:
        ConfigError: The environment variable of the key is not set or has no valid key.
    """

    def __init__(self, settings: Endpoint, where: str, key: str):
        self.settings, self._where, self._named = settings, where, key
        self._key = ""
        if settings.key_env is not None:
            self._key = os.environ.get(settings.key_env, "")
            if not self._key:
                raise ConfigError(
                    f"{key}: the environment variable {settings.key_env} is not set; set it to the server's "
                    "key"
                )
            if not re.fullmatch(r"[!-~]+", self._key):
                raise ConfigError(
                    f"{key}: the environment variable {settings.key_env} has no valid key; a key is "
                    "printable ASCII without spaces or line breaks"
                )
        self._stop = threading.Event()
        self._pace = _Pace(settings.rate)
        self._http = httpx2.Client(
            timeout=settings.timeout,
            headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
            limits=httpx2.Limits(max_connections=settings.concurrency),
        )

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *args: object) -> None:
        self._http.close()

    def each(self, work: Iterable[Callable[[], object]], done: Callable[[], object]) -> None:
        """Run all tasks, `settings.concurrency` at a time.

        If a task fails, no waiting task starts, and the call raises once the running ones have ended.

        Args:
            work: Tasks that post requests and store the responses.
            done: Called after each task.
        """
        with ThreadPoolExecutor(self.settings.concurrency) as pool:
            futures = [pool.submit(one) for one in work]
            try:
                for future in as_completed(futures):
                    future.result()
                    done()
            except BaseException:
                self._stop.set()
                raise

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """Post a request and return the decoded JSON response.

        Raises:
            ConfigError: The server rejects the request.
            RunError: All `settings.attempts` attempts failed.
        """
        retrying = Retrying(
            retry=retry_if_exception_type(_Again),
            stop=stop_after_attempt(self.settings.attempts),
            wait=self._wait,
            sleep=sleep_using_event(self._stop),
            reraise=True,
        )
        try:
            return retrying(self._once, path, body)
        except _Again as error:
            raise RunError(
                f"{self.settings.url} did not answer in {self.settings.attempts} attempts (the last: "
                f"{error}); the answers so far are kept: run the same command again to request the rest"
            ) from None

    def _wait(self, state: RetryCallState) -> float:
        backoff = self.settings.backoff
        error = state.outcome.exception() if state.outcome else None
        if isinstance(error, _Again) and error.wait is not None:
            return error.wait + random.uniform(0, min(backoff, 1.0) / 10)
        return wait_random_exponential(multiplier=backoff, max=LONGEST_WAIT)(state)

    def _once(self, path: str, body: dict[str, Any]) -> Any:
        self._pace.wait(self._stop)
        if self._stop.is_set():
            raise _Stopped
        try:
            answer = self._http.post(f"{self.settings.url.rstrip('/')}/{path}", json=body)
        except (httpx2.InvalidURL, httpx2.UnsupportedProtocol, UnicodeError) as error:
            raise ConfigError(f"{self._where}: {self.settings.url!r} is not a valid URL ({error})") from None
        except httpx2.RequestError as error:
            raise _Again(type(error).__name__) from None
        status = answer.status_code
        if status in (408, 429) or status >= 500:
            wait = retry_after(answer.headers.get("retry-after"))
            if wait is not None:
                self._pace.hold(wait)
            raise _Again(str(status), wait)
        if status != 200:
            raise ConfigError(f"{self._where}: {self.settings.url} answered {status}{self._why(answer)}")
        try:
            return answer.json()
        except ValueError:
            raise _Again("incomplete JSON in the response") from None

    def _why(self, answer: httpx2.Response) -> str:
        """Return the server's reason, shortened and with the key masked; for 401 and 403 name the setting."""
        if answer.status_code in (401, 403):
            return f"; name the environment variable of a valid key in {self._named}"
        text = answer.text.replace(self._key, "…") if self._key else answer.text
        return f": {' '.join(text.split())[:200]}"


def retry_after(header: str | None) -> float | None:
    """Parse `Retry-After` into seconds; it is a number or an HTTP date (RFC 9110, section 10.2.3)."""
    if header is None:
        return None
    if re.fullmatch(r"\d+(\.\d+)?", header.strip(), re.ASCII):
        return float(header)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(header).timestamp() - time.time())
    except ValueError:
        return None
