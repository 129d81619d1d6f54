"""What a teacher other than the model itself says about a response: likeliest tokens, and at which places."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class ScoreRequest:
    """What is scored: a response behind a prompt, both in the ids that the teacher reads."""

    prompt: tuple[int, ...]
    response: tuple[int, ...]


@dataclass(frozen=True)
class TokenScores:
    """The likeliest tokens of every covered place of a response, likeliest first, in the student's ids.

    Attributes:
        ids: Token ids; no id twice in a row.
        logprobs: ln p, raw: what is left to 1 is the bucket of all other tokens.
        covered: Which of the response's tokens the rows belong to; all of them where both sides share a
            tokenizer.
    """

    ids: Int[Tensor, "tokens k"]
    logprobs: Float[Tensor, "tokens k"]
    covered: Bool[Tensor, " response"]


def whole(ids: Int[Tensor, "tokens k"], logprobs: Float[Tensor, "tokens k"]) -> TokenScores:
    """Every token of the response is covered."""
    return TokenScores(ids, logprobs, torch.ones(len(ids), dtype=torch.bool))
