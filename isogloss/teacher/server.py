"""A served teacher: any OpenAI-compatible endpoint that returns a prompt's log-probabilities, as vLLM does.

Prompt and response are sent as ids to `/completions`; the answer names the likeliest tokens at each place of
the prompt, of which the response's are kept. The server must therefore read the student's tokens.
Flow: rows → those not in the store → requests, as `isogloss.endpoint` makes them → store → rows in order.
What was answered before a refusal is kept, and the next run asks the rest.
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
"""Of what a key stands for."""


def score(
    rows: Sequence[ScoreRequest],
    settings: ServerTeacher,
    store: Store,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> list[TokenScores]:
    """What the server says about every row's response, in the rows' order; rows in the store are not asked.

    Raises:
        ConfigError: The server refuses, returns no usable log-probabilities of prompts, or reads other
            tokens; or the environment variable of the key is not set.
        RunError: A row was asked as often as the settings say, in vain.
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
    """Names a row by its content and by who is asked for what; the key of the endpoint is no part of it."""
    content = [VERSION, settings.url, settings.model, settings.top_k, row.prompt, row.response]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _scored(said: Any, row: ScoreRequest, settings: ServerTeacher) -> TokenScores:
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
