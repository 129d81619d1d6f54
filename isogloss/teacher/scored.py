"""Scores of a response by an external teacher: the likeliest tokens at the positions that it covers."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class ScoreRequest:
    """A prompt and the response to score, both as the teacher's token IDs."""

    prompt: tuple[int, ...]
    response: tuple[int, ...]


@dataclass(frozen=True)
class TokenScores:
    """The likeliest tokens at every covered position of a response, likeliest first.

    Attributes:
        ids: The student's token IDs, distinct at each position.
        logprobs: Their ln p, not renormalised: the remaining mass belongs to all other tokens.
        covered: Mask of the response tokens that have scores; all of them if teacher and student share a
            tokenizer.
    """

    ids: Int[Tensor, "tokens k"]
    logprobs: Float[Tensor, "tokens k"]
    covered: Bool[Tensor, " response"]


def whole(ids: Int[Tensor, "tokens k"], logprobs: Float[Tensor, "tokens k"]) -> TokenScores:
    """Return scores that cover every token of the response."""
    return TokenScores(ids, logprobs, torch.ones(len(ids), dtype=torch.bool))
