"""Rows that a served teacher has scored, in a file that only grows; what is no distribution is not there."""

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
"""Ids are kept in four bytes; which of them the student has is for the reader to know."""


def usable(ids: Int[Tensor, "tokens k"], logprobs: Float[Tensor, "tokens k"]) -> TokenScores:
    """Every token of the response is covered, by a distribution.

    Raises:
        ValueError: Some token's is none.
    """
    TopK(ids, logprobs).check(LARGEST)
    return whole(ids, logprobs)


class Store(Journal[TokenScores]):
    """Scored rows by key.

    Args:
        path: The file; made with the first row.
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
