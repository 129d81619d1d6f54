"""Top-k compression of the teacher's distribution: the k likeliest tokens plus the remaining mass.

Stored as log-probabilities at temperature 1, each (token ID, log-probability) pair packed into one 32-bit
word. A response token takes 4·k bytes: 128 at k = 32.
Symbols: T response tokens, V vocabulary size.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, Int32
from torch import Tensor
from torch.nn import functional as F

RESOLUTION = 2.0**-24
"""Smallest remaining mass; with float32 log-probabilities, less is rounding error."""
CERTAIN = 17.0
"""Highest log-odds that a word can encode; they leave a mass of 4e-8 to all later tokens."""


@dataclass(frozen=True)
class TopK:
    """The teacher's k likeliest tokens at each of T response positions; `rest` covers all other tokens.

    Args:
        ids: Token IDs, unique within a row, in any order.
        logprobs: Their log-probabilities under the whole vocabulary's softmax at temperature 1, in nats.
    """

    ids: Int[Tensor, "tokens k"]
    logprobs: Float[Tensor, "tokens k"]

    @property
    def rest(self) -> Float[Tensor, " tokens"]:
        """ln(1 - Σ p), the log-probability of all other tokens together; at least ln 2⁻²⁴."""
        kept = self.logprobs.double().exp().sum(-1)
        return (1 - kept).clamp(min=RESOLUTION).log().to(self.logprobs.dtype)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, tokens: Tensor | slice) -> "TopK":
        return TopK(self.ids[tokens], self.logprobs[tokens])

    def to(self, device: torch.device) -> "TopK":
        return TopK(self.ids.to(device), self.logprobs.to(device))

    @staticmethod
    def cat(parts: "Sequence[TopK]") -> "TopK":
        return TopK(torch.cat([p.ids for p in parts]), torch.cat([p.logprobs for p in parts]))

    @staticmethod
    def of(logits: Float[Tensor, "tokens vocab"], k: int) -> "TopK":
        """Take the k likeliest tokens of dense logits, or all if V < k; the softmax runs in float32."""
        top = F.log_softmax(logits.float(), dim=-1).topk(min(k, logits.shape[-1]), dim=-1)
        return TopK(top.indices.int(), top.values)

    def check(self, vocab: int) -> None:
        """Check that this is a distribution over a vocabulary of the given size.

        Raises:
            ValueError: An ID is out of range or repeated in a row, or the probabilities are invalid.
        """
        ordered = self.ids.sort(-1).values
        if len(self) and (int(ordered[:, 0].min()) < 0 or int(ordered[:, -1].max()) >= vocab):
            raise ValueError(f"a top-k id is out of range; the vocabulary has {vocab} tokens")
        if bool((ordered[:, 1:] == ordered[:, :-1]).any()):
            raise ValueError("a top-k id is repeated for one response token; give each id once")
        total = self.logprobs.double().exp().sum(-1)
        if not bool(self.logprobs.isfinite().all()) or bool((total > 1 + 1e-3).any()):
            raise ValueError("top-k log-probabilities must be finite with a total mass of at most 1")


def pack(top: TopK, vocab: int) -> Int32[Tensor, "tokens k"]:
    """Pack each pair into one word: the ID in as many high bits as V needs, the probability in the others.

    From the likeliest token on, a probability is encoded as its share v of the mass not yet encoded: the
    log-odds ln v/(1-v), quantised uniformly between the least that a likeliest token can have and `CERTAIN`.
    So the relative error does not grow for small probabilities, and the rest needs no bits, since it is the
    mass that remains. At V = 151,936 there are 18 + 14 bits: a step is 0.2 %, about the precision of ln p in
    float16 at these sizes.
    """
    low, step, bits = _steps(vocab)
    order = top.logprobs.argsort(dim=-1, descending=True, stable=True)
    ids, logprobs = top.ids.gather(1, order).long(), top.logprobs.gather(1, order).double()
    # Log of the mass after each token: the later tokens and the rest.
    later = torch.cat([logprobs[:, 1:], top.rest.double()[:, None]], 1)
    behind = later.flip(-1).logcumsumexp(-1).flip(-1)
    levels = ((logprobs - behind - low) / step).round().clamp(0, 2**bits - 1).long()
    words = (ids << bits) | levels
    return torch.where(words < 2**31, words, words - 2**32).int()


def unpack(words: Int32[Tensor, "tokens k"], vocab: int) -> TopK:
    """Invert `pack`; the tokens are in descending order of probability."""
    low, step, bits = _steps(vocab)
    whole = words.long() & 0xFFFFFFFF
    odds = low + (whole & (2**bits - 1)).double() * step
    left = F.logsigmoid(-odds).cumsum(-1)
    before = F.pad(left, (1, 0))[:, :-1]
    return TopK((whole >> bits).int(), (F.logsigmoid(odds) + before).float())


def _steps(vocab: int) -> tuple[float, float, int]:
    """Return the lowest log-odds, the step and the number of bits.

    The likeliest of n tokens has a share of at least 1/n, hence the lower bound.
    """
    bits = 32 - max(1, (vocab - 1).bit_length())
    if bits < 10:
        raise ValueError(f"a vocabulary of {vocab} leaves {bits} bits per probability; 10 are needed")
    low = -math.log(vocab) - 1.0
    return low, (CERTAIN - low) / (2**bits - 1), bits
