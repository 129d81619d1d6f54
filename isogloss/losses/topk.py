"""What is kept of a teacher's distribution where all of it is too much: the k likeliest tokens, and the rest.

Kept as log-probabilities at temperature 1. Packed for storage into one 32-bit word a pair, so 4·k bytes a
response token: 128 at k = 32. Knows no model.
Letters: T response tokens, V vocabulary.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, Int32
from torch import Tensor
from torch.nn import functional as F

RESOLUTION = 2.0**-24
"""Float32 log-probabilities tell no smaller rest from their own rounding."""
CERTAIN = 17.0
"""Highest log-odds that a word holds; they leave 4e-8 to all that comes after."""


@dataclass(frozen=True)
class TopK:
    """The k tokens that a teacher finds likeliest at each of T response tokens; `rest` is all the others.

    Args:
        ids: Token ids, each once in a row, in any order.
        logprobs: Their log-probabilities under the whole vocabulary's softmax at temperature 1, in nats.
    """

    ids: Int[Tensor, "tokens k"]
    logprobs: Float[Tensor, "tokens k"]

    @property
    def rest(self) -> Float[Tensor, " tokens"]:
        """ln(1 - Σ p), the log-probability of every token that is not kept; at least ln 2⁻²⁴."""
        kept = self.logprobs.double().exp().sum(-1)
        return (1 - kept).clamp(min=RESOLUTION).log().to(self.logprobs.dtype)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, tokens: Tensor | slice) -> "TopK":
        return TopK(self.ids[tokens], self.logprobs[tokens])

    def split(self, size: int) -> "list[TopK]":
        parts = zip(self.ids.split(size), self.logprobs.split(size), strict=True)
        return [TopK(ids, logprobs) for ids, logprobs in parts]

    def to(self, device: torch.device) -> "TopK":
        return TopK(self.ids.to(device), self.logprobs.to(device))

    @staticmethod
    def cat(parts: "Sequence[TopK]") -> "TopK":
        return TopK(torch.cat([p.ids for p in parts]), torch.cat([p.logprobs for p in parts]))

    @staticmethod
    def of(logits: Float[Tensor, "tokens vocab"], k: int) -> "TopK":
        """The k likeliest of dense logits, or all where there are fewer; the softmax runs in float32."""
        top = F.log_softmax(logits.float(), dim=-1).topk(min(k, logits.shape[-1]), dim=-1)
        return TopK(top.indices.int(), top.values)

    def check(self, vocab: int) -> None:
        """Refuse what is no distribution over a vocabulary of this size.

        Raises:
            ValueError: An id is out of range or twice in a row, or the probabilities are not such.
        """
        ordered = self.ids.sort(-1).values
        if len(self) and (int(ordered[:, 0].min()) < 0 or int(ordered[:, -1].max()) >= vocab):
            raise ValueError(f"a top-k id is out of range; the vocabulary has {vocab} tokens")
        if bool((ordered[:, 1:] == ordered[:, :-1]).any()):
            raise ValueError("a top-k id stands twice among those of one token; name each once")
        total = self.logprobs.double().exp().sum(-1)
        if not bool(self.logprobs.isfinite().all()) or bool((total > 1 + 1e-3).any()):
            raise ValueError("top-k log-probabilities must be finite and add up to no more than 1")


def pack(top: TopK, vocab: int) -> Int32[Tensor, "tokens k"]:
    """One word a pair: the id in as many high bits as V needs, the probability in the others.

    Written, from the likeliest on, as its share v of all that is not yet written, in log-odds ln v/(1-v) and
    equal steps between the least that a likeliest token can have and `CERTAIN`. So every probability keeps
    its relative size however small, and the rest, which is what the shares leave, needs no bits of its own.
    At V = 151,936 there are 18 + 14 bits: a step is 0.2 %, as fine as float16 keeps ln p at these sizes.
    """
    low, step, bits = _steps(vocab)
    order = top.logprobs.argsort(dim=-1, descending=True, stable=True)
    ids, logprobs = top.ids.gather(1, order).long(), top.logprobs.gather(1, order).double()
    # ln of what stands behind each place: the later ones and the rest.
    later = torch.cat([logprobs[:, 1:], top.rest.double()[:, None]], 1)
    behind = later.flip(-1).logcumsumexp(-1).flip(-1)
    levels = ((logprobs - behind - low) / step).round().clamp(0, 2**bits - 1).long()
    words = (ids << bits) | levels
    return torch.where(words < 2**31, words, words - 2**32).int()


def unpack(words: Int32[Tensor, "tokens k"], vocab: int) -> TopK:
    """What `pack` wrote, likeliest first."""
    low, step, bits = _steps(vocab)
    whole = words.long() & 0xFFFFFFFF
    odds = low + (whole & (2**bits - 1)).double() * step
    left = F.logsigmoid(-odds).cumsum(-1)
    before = F.pad(left, (1, 0))[:, :-1]
    return TopK((whole >> bits).int(), (F.logsigmoid(odds) + before).float())


def _steps(vocab: int) -> tuple[float, float, int]:
    """Least log-odds, step and number of bits. The likeliest of n tokens has a share of at least 1/n."""
    bits = 32 - max(1, (vocab - 1).bit_length())
    if bits < 10:
        raise ValueError(f"a vocabulary of {vocab} leaves {bits} bits to a probability; it must leave 10")
    low = -math.log(vocab) - 1.0
    return low, (CERTAIN - low) / (2**bits - 1), bits
