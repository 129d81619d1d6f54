"""A served teacher: any OpenAI-compatible endpoint that returns a prompt's log-probabilities, as vLLM does.

Prompt and response are sent as token IDs to `/completions`. The server returns the likeliest tokens at each
position, of which those of the response are kept. It must therefore use the student's tokenizer.
Flow: rows → those not in the store → requests by `isogloss.endpoint` → store → rows in order.
Scores received before an error are kept; the next run requests the rest.
"""

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from isogloss.config import ServerTeacher
from isogloss.endpoint import Client
from isogloss.errors import ConfigError
from isogloss.teacher.scored import ScoreRequest, TokenScores
from isogloss.teacher.store import Store, usable

VERSION = 1
"""Version of the key's content."""


def score(
    rows: Sequence[ScoreRequest],
    settings: ServerTeacher,
    store: Store,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> list[TokenScores]:
    """Score the response of every row with the server, in order; rows in the store are not requested.

    Raises:
        ConfigError: The server rejects a request, returns no usable prompt log-probabilities, or uses another
            tokenizer; or the key's environment variable is not set or has no valid key.
        RunError: All attempts for a row failed.
    """
    keys = [key_of(row, settings) for row in rows]
    missing = {key: row for key, row in zip(keys, rows, strict=True) if key not in store}
    done, of = len(set(keys)) - len(missing), len(set(keys))

    def told() -> None:
        nonlocal done
        done += 1
        progress(done, of)

    if missing:
        with Client(settings, "distill.teacher", "distill.teacher.key_env") as client:

            def ask(key: str, row: ScoreRequest) -> None:
                body = {
                    "model": settings.model,
                    "prompt": [*row.prompt, *row.response],
                    "max_tokens": 1,
                    "temperature": 0,
                    "prompt_logprobs": settings.top_k,
                }
                store.put(key, _scored(client.post("completions", body), row, settings))

            client.each([partial(ask, key, row) for key, row in missing.items()], told)
    return [store[key] for key in keys]


def key_of(row: ScoreRequest, settings: ServerTeacher) -> str:
    """Return the store key: a hash of the row, endpoint, model and top_k. The API key is not part of it."""
    content = [VERSION, settings.url, settings.model, settings.top_k, row.prompt, row.response]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _scored(said: Any, row: ScoreRequest, settings: ServerTeacher) -> TokenScores:
    """Extract the scores of the response tokens from the server's answer."""
    try:
        places = said["choices"][0]["prompt_logprobs"]
    except (TypeError, LookupError):
        places = None
    if not isinstance(places, list):
        raise ConfigError(
            f"distill.teacher: {settings.url} returns no prompt_logprobs; use a server that does, such as "
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
                f"distill.teacher: {settings.url} returns prompt_logprobs without a logprob by token ID at "
                "each position; use a server that does, such as vLLM"
            ) from None
        if token not in found:
            raise ConfigError(
                f"distill.teacher: {settings.url} did not read the token {token} that was sent; it must "
                f"serve {settings.model} with the student's tokenizer"
            )
        # NaN sorts first, so that it is not dropped unnoticed.
        best = sorted(found.items(), key=lambda one: (not math.isnan(one[1]), -one[1], one[0]))
        best = best[: settings.top_k]
        if len(best) < settings.top_k:
            raise ConfigError(
                f"distill.teacher.top_k is {settings.top_k} and {settings.url} returns {len(best)}; lower "
                "it, or raise the server's limit (vLLM: --max-logprobs)"
            )
        ids.append([number for number, _ in best])
        logprobs.append([value for _, value in best])
    try:
        return usable(torch.tensor(ids), torch.tensor(logprobs))
    except (ValueError, RuntimeError, OverflowError) as error:  # OverflowError: an ID beyond 64 bits
        raise ConfigError(
            f"distill.teacher: {settings.url} returns an invalid distribution: {error}; check which model it "
            "serves, and in which dtype"
        ) from None
