"""A local model as external teacher: it scores the student's responses, or generates them.

The teacher reads the privileged prompt in its own chat template. If it shares the student's tokenizer, it
scores the response's own token IDs, exactly. With another tokenizer there are two levels:

    sequence    The teacher's answers become the responses to learn from: always possible, no approximation.
    token       Both tokenizers split the same text. A token with the same first and last byte in both is
                *covered*: there the teacher's distribution is transferred, from each of its tokens to the
                student's token with the same bytes. Mass on tokens without a match goes to the remainder.

The token level is an approximation: the probability that the teacher gives to a byte string stands for the
one it would give under the student's tokenisation. If the teacher puts mass on the first piece of a word that
the student splits differently, it goes to the student's token for that piece. Positions at which only one
tokenizer splits, or that begin a longer token of the other, are not covered: there the two predict different
pieces. `TokenScores.covered` marks the remaining positions. Of the embedded tokenizer's tokens, a quarter to
a half are covered with Tekken, whose vocabulary is ten times as large (see the tests).
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

from isogloss.adapters.generate import end_id
from isogloss.data.chat import encode_response
from isogloss.languages import SOURCE
from isogloss.losses.fused import logits_of
from isogloss.model.decoder import by_length, response_states
from isogloss.model.load import pad_id
from isogloss.teacher.answers import ended
from isogloss.teacher.reading import common_length
from isogloss.teacher.rows import Row
from isogloss.teacher.scored import TokenScores, whole

NOWHERE = -1
"""Target of a teacher's token that the student does not have."""


class TokenMap:
    """Maps a teacher's tokens to the student's tokens with the same bytes."""

    def __init__(self, student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase):
        self.student, self.teacher = student, teacher
        self.ends = end_id(student), end_id(teacher)
        self.same = student.get_vocab() == teacher.get_vocab() and self.ends[0] == self.ends[1]
        self.student_bytes, self.teacher_bytes = token_bytes(student), token_bytes(teacher)
        of = {text: number for number, text in reversed(list(enumerate(self.student_bytes))) if text}
        to = [NOWHERE if text is None else of.get(text, NOWHERE) for text in self.teacher_bytes]
        to[self.ends[1]] = self.ends[0]
        self.to: Int[Tensor, " teacher_vocab"] = torch.tensor(to)

    def response(self, ids: Sequence[int]) -> tuple[tuple[int, ...], list[tuple[int, int]]]:
        """Return the teacher's token IDs of a response, and (student, teacher) index pairs of equal tokens.

        Texts are compared without leading white space, as SentencePiece adds a space to a word, and up to the
        first byte in which they differ, as some tokenizers normalise.
        """
        ours = [self.student_bytes[number] or b"" for number in ids]
        text = b"".join(ours).decode("utf-8", errors="replace")
        theirs_ids = encode_response(self.teacher, text)
        theirs = [self.teacher_bytes[number] or b"" for number in theirs_ids]
        pairs, whole = aligned(ours, theirs)
        if whole and ids[-1] == self.ends[0]:
            pairs.append((len(ids) - 1, len(theirs_ids) - 1))
        return theirs_ids, pairs

    def covered(self, ids: Sequence[int]) -> Bool[Tensor, " response"]:
        """Return a mask of the response tokens that the teacher's tokenizer splits identically."""
        if self.same:
            return torch.ones(len(ids), dtype=torch.bool)
        return _mask(len(ids), self.response(ids)[1])

    def carried(
        self, logits: Float[Tensor, "tokens teacher_vocab"], k: int
    ) -> tuple[Int[Tensor, "tokens k"], Float[Tensor, "tokens k"]]:
        """Transfer the teacher's logits to the student's tokens; return the k likeliest and their ln p."""
        p = logits.float().softmax(-1)[:, : len(self.to)]
        to = self.to[: p.shape[1]].to(p.device)
        known = to != NOWHERE
        mass = p.new_zeros(len(p), len(self.student_bytes))
        mass.index_add_(1, to[known], p[:, known])
        best = mass.topk(min(k, mass.shape[-1]), -1)
        # Fewer than k tokens may have mass; the clamp keeps the logarithm finite.
        return best.indices, best.values.clamp(min=1e-30).log()


def token_bytes(tokenizer: PreTrainedTokenizerBase) -> list[bytes | None]:
    """Return the bytes of every token; None for control tokens.

    Supports byte-level vocabularies, in which letters stand for bytes, and SentencePiece vocabularies, in
    which ▁ is a space and <0x0A> a byte.
    """
    size = len(tokenizer)
    tokens: Any = tokenizer.convert_ids_to_tokens(list(range(size)))
    added = tokenizer.added_tokens_decoder
    read = _piece if {"<0x00>", "▁"} & set(tokens) else _letters
    found: list[bytes | None] = []
    for number, token in enumerate(tokens):
        if number in added:
            found.append(None if added[number].special else added[number].content.encode())
        else:
            found.append(None if token is None else read(token))
    return found


def aligned(ours: Sequence[bytes], theirs: Sequence[bytes]) -> tuple[list[tuple[int, int]], bool]:
    """Align two tokenisations of a text by byte spans.

    Args:
        ours: The bytes of each token; empty for a control token.
        theirs: The bytes of each token of the other tokenisation.

    Returns:
        Pairs (index in `ours`, index in `theirs`) of tokens that span the same bytes, and whether the texts
        are equal apart from leading white space, which a template may put before a response.
    """
    texts = b"".join(ours), b"".join(theirs)
    bare = tuple(text.lstrip() for text in texts)
    common = common_length(*bare)
    spans = {
        span: number
        for number, span in enumerate(_spans(theirs, len(texts[1]) - len(bare[1])))
        if span[0] < span[1]
    }
    pairs = [
        (number, spans[span])
        for number, span in enumerate(_spans(ours, len(texts[0]) - len(bare[0])))
        if span in spans and span[0] >= 0 and span[1] <= common
    ]
    return pairs, bare[0] == bare[1]


@torch.no_grad()
def score(
    model: nn.Module, rows: Sequence[Row], translation: TokenMap, k: int, *, batch: int = 16
) -> list[TokenScores]:
    """Score the response of every row with a local teacher, in order.

    Args:
        rows: Rows whose privileged prompts are in the teacher's own token IDs.
        translation: Maps the teacher's tokens to the student's.
        k: Number of tokens kept at each position.
    """
    model.eval().requires_grad_(False)
    logits, filler = logits_of(model), pad_id(translation.teacher)
    asked = [
        (row.student.response, None) if translation.same else translation.response(row.student.response)
        for row in rows
    ]
    texts = [(*row.teacher_prompt, *ids) for row, (ids, _) in zip(rows, asked, strict=True)]
    found: dict[int, TokenScores] = {}
    for chosen in by_length(texts, batch):
        hidden = response_states(
            model, [rows[n].teacher_prompt for n in chosen], [asked[n][0] for n in chosen], filler
        )
        for n, states in zip(chosen, hidden, strict=True):
            found[n] = _kept(logits, states, len(rows[n].student.response), asked[n][1], translation, k)
    return [found[n] for n in range(len(rows))]


def written(
    model: nn.Module,
    rows: Sequence[Row],
    tokenizer: PreTrainedTokenizerBase,
    student: PreTrainedTokenizerBase,
    *,
    max_new_tokens: int,
) -> list[Row]:
    """Replace the responses of non-English rows with the teacher's answers.

    An empty answer teaches nothing, and one truncated at the limit teaches a wrong end: the row is then
    returned unchanged (the same object), with the data's response.
    """
    asked, found = [n for n, row in enumerate(rows) if row.language != SOURCE], list(rows)
    prompts = [rows[n].teacher_prompt for n in asked]
    for place, text in ended(model, tokenizer, prompts, max_new_tokens=max_new_tokens, batch=16):
        if text:
            found[asked[place]] = rows[asked[place]].answering(encode_response(student, text))
    return found


def _kept(
    logits: Callable[[Tensor], Tensor],
    states: Float[Tensor, "theirs hidden"],
    length: int,
    pairs: list[tuple[int, int]] | None,
    translation: TokenMap,
    k: int,
) -> TokenScores:
    """Return the k likeliest tokens at the covered positions of a response."""
    if pairs is None:
        known = logits(states).float().log_softmax(-1)[:, : len(translation.student_bytes)]
        best = known.topk(min(k, known.shape[-1]), -1)
        return whole(best.indices.cpu(), best.values.cpu())
    at = torch.tensor([theirs for _, theirs in pairs], dtype=torch.long, device=states.device)
    ids, logprobs = translation.carried(logits(states[at]), k)
    return TokenScores(ids.cpu(), logprobs.cpu(), _mask(length, pairs))


def _mask(length: int, pairs: Sequence[tuple[int, int]]) -> Bool[Tensor, " response"]:
    """Return which tokens of a response are in pairs of equal tokens."""
    covered = torch.zeros(length, dtype=torch.bool)
    covered[[ours for ours, _ in pairs]] = True
    return covered


def _spans(tokens: Sequence[bytes], lead: int) -> Iterator[tuple[int, int]]:
    """Yield each token's byte span (start, end), counted from the first byte after `lead` leading spaces."""
    end = -lead
    for token in tokens:
        begin, end = end, end + len(token)
        yield begin, end


def _piece(token: str) -> bytes:
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        return bytes([int(token[3:5], 16)])
    return token.replace("▁", " ").encode()


def _letters(token: str) -> bytes | None:
    try:
        return bytes(LETTERS[letter] for letter in token)
    except KeyError:
        return token.encode()


LETTERS = {letter: byte for byte, letter in bytes_to_unicode().items()}
"""Byte that each letter stands for in byte-level vocabularies; printable bytes stand for themselves (Radford
et al. 2019, section 2.2, and their code)."""
