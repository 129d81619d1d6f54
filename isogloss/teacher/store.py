"""Append-only store of a served teacher's scores; entries that are not distributions are ignored."""

import base64
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from isogloss.files import Journal
from isogloss.losses.topk import TopK
from isogloss.teacher.scored import TokenScores, whole

LARGEST = 2**31
"""Upper bound of token IDs, stored in four bytes; they are checked against the student's vocabulary later."""


def usable(ids: Int[Tensor, "tokens k"], logprobs: Float[Tensor, "tokens k"]) -> TokenScores:
    """Return scores that cover every token of the response, after checking that they are distributions.

    Raises:
        ValueError: A token has an invalid distribution.
    """
    TopK(ids, logprobs).check(LARGEST)
    return whole(ids, logprobs)


class Store(Journal[TokenScores]):
    """Scored rows by key.

    Args:
        path: The file; created with the first row.
    """

    def __init__(self, path: Path):
        super().__init__(path, _encode, _decode)


def _encode(scored: TokenScores) -> dict[str, Any]:
    ids = scored.ids.numpy().astype("<i4").tobytes()
    logprobs = scored.logprobs.numpy().astype("<f4").tobytes()
    return {
        "k": scored.ids.shape[1],
        "ids": base64.b64encode(ids).decode(),
        "logprobs": base64.b64encode(logprobs).decode(),
        "crc": zlib.crc32(ids + logprobs),
    }


def _decode(entry: dict[str, Any]) -> TokenScores:
    ids, logprobs = base64.b64decode(entry["ids"]), base64.b64decode(entry["logprobs"])
    if zlib.crc32(ids + logprobs) != entry["crc"]:
        raise ValueError("the row is damaged")
    shape = (-1, entry["k"])
    return usable(
        torch.from_numpy(np.frombuffer(ids, "<i4").astype(np.int64).reshape(shape)),
        torch.from_numpy(np.frombuffer(logprobs, "<f4").astype(np.float32).reshape(shape)),
    )
