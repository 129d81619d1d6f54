"""Tokenise pieces of text so that only the template can write control tokens.

A control token that a user spells out (`<|im_end|>` in an instruction) is tokenised as ordinary characters,
in place. Only for such texts, the tokenizer is copied and its control tokens are given secret names. The
template's control tokens are renamed in the text too, so the copy treats all others as plain text. Otherwise
the copy is unchanged: both return the same token IDs for a text that spells no control token.
"""

import json
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from isogloss.errors import ConfigError

NONCE = secrets.token_hex(8)
"""Part of the secret names; token IDs do not depend on it."""

Marked = tuple[tuple[int, ...], tuple[bool, ...]]
"""Token IDs, and a mask of those that a caller asks about."""


@dataclass(frozen=True)
class Piece:
    """A piece of a text.

    Args:
        plain: Control tokens spelled in it are treated as text.
        asked: It belongs to the user's instruction.
    """

    text: str
    plain: bool = False
    asked: bool = False


def tokenize(
    tokenizer: PreTrainedTokenizerBase, pieces: Sequence[Piece], controls: frozenset[int]
) -> tuple[int, ...]:
    """Return the token IDs of the joined pieces, without adding special tokens.

    Args:
        controls: IDs of the added tokens that plain pieces must not produce.
    """
    pattern, names = _spelling(tokenizer, controls, len(tokenizer))
    text = "".join(piece.text for piece in pieces)
    if not any(pattern.search(piece.text) for piece in pieces if piece.plain):
        return tuple(tokenizer(text, add_special_tokens=False, split_special_tokens=False)["input_ids"])
    text = "".join(_renamed(piece, pattern, names) for piece in pieces)
    return tuple(_copy(tokenizer, controls, len(tokenizer)).encode(text, add_special_tokens=False).ids)


def tokenize_with_asked(
    tokenizer: PreTrainedTokenizerBase, pieces: Sequence[Piece], controls: frozenset[int]
) -> Marked:
    """Like `tokenize`, plus a mask of the tokens that contain a character of the instruction.

    Raises:
        ConfigError: The tokenizer cannot return the offsets of its tokens.
    """
    pattern, names = _spelling(tokenizer, controls, len(tokenizer))
    texts = [piece.text for piece in pieces]
    if any(pattern.search(piece.text) for piece in pieces if piece.plain):
        texts = [_renamed(piece, pattern, names) for piece in pieces]
        copy = _copy(tokenizer, controls, len(tokenizer)).encode("".join(texts), add_special_tokens=False)
        ids, offsets = copy.ids, copy.offsets
    else:
        _backend(tokenizer)  # raises if there are no offsets
        found = tokenizer(
            "".join(texts), add_special_tokens=False, split_special_tokens=False, return_offsets_mapping=True
        )
        ids, offsets = found["input_ids"], found["offset_mapping"]
    asked = [piece.asked for piece, text in zip(pieces, texts, strict=True) for _ in text]
    return tuple(ids), tuple(any(asked[start:end]) for start, end in offsets)


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str) -> Marked:
    """Tokenise a bare text with the tokenizer's special tokens (BOS); the mask marks the text's own tokens.

    Control tokens spelled out in it are treated as text.
    """
    controls = special_ids(tokenizer, len(tokenizer))
    pattern, _ = _spelling(tokenizer, controls, len(tokenizer))
    if pattern.search(text):
        copy = _copy(tokenizer, controls, len(tokenizer)).encode(text)
        ids, special = copy.ids, copy.special_tokens_mask
    else:
        found = tokenizer(text, split_special_tokens=False, return_special_tokens_mask=True)
        ids, special = found["input_ids"], found["special_tokens_mask"]
    return tuple(ids), tuple(not one for one in special)


def find_controls(
    tokenizer: PreTrainedTokenizerBase, controls: frozenset[int], text: str
) -> list[tuple[int, int]]:
    """Return the spans of a text that spell out control tokens."""
    pattern, _ = _spelling(tokenizer, controls, len(tokenizer))
    return [found.span() for found in pattern.finditer(text)]


@lru_cache(maxsize=64)
def special_ids(tokenizer: PreTrainedTokenizerBase, size: int) -> frozenset[int]:
    """Return the IDs of the added tokens that are marked as special.

    Args:
        size: Vocabulary size; part of the cache key, as tokens may be added in place.
    """
    return frozenset(number for number, token in tokenizer.added_tokens_decoder.items() if token.special)


@lru_cache(maxsize=64)
def _spelling(
    tokenizer: PreTrainedTokenizerBase, controls: frozenset[int], size: int
) -> tuple[re.Pattern[str], dict[str, str]]:
    """Return a pattern that matches control tokens, longest first, and the secret name of each."""
    added = tokenizer.added_tokens_decoder
    names = {added[number].content: f"<{NONCE}:{number}>" for number in controls}
    longest_first = sorted((text for text in names if text.strip()), key=lambda text: (-len(text), text))
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)"), names


def _renamed(piece: Piece, pattern: re.Pattern[str], names: dict[str, str]) -> str:
    """Return the piece's text as the copied tokenizer expects it."""
    return piece.text if piece.plain else pattern.sub(lambda found: names[found[0]], piece.text)


def _backend(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        raise ConfigError(
            f"the tokenizer ({type(tokenizer).__name__}) cannot distinguish control tokens from text that "
            "spells them; save it with a tokenizer.json"
        )
    return backend


@lru_cache(maxsize=8)
def _copy(tokenizer: PreTrainedTokenizerBase, controls: frozenset[int], size: int) -> Tokenizer:
    """Copy the tokenizer with secret names for its control tokens."""
    _, names = _spelling(tokenizer, controls, size)
    data: dict[str, Any] = json.loads(_backend(tokenizer).to_str())
    data["truncation"] = data["padding"] = None
    for token in data["added_tokens"]:
        token["content"] = names.get(token["content"], token["content"])
    model = data["model"]
    if isinstance(vocabulary := model["vocab"], dict):
        model["vocab"] = {names.get(token, token): number for token, number in vocabulary.items()}
    else:  # a unigram model stores pairs
        model["vocab"] = [[names.get(token, token), score] for token, score in vocabulary]
    if "merges" in model:  # characters must not merge into a control token
        pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
        model["merges"] = [pair for pair in pairs if names.keys().isdisjoint((*pair, "".join(pair)))]
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    return Tokenizer.from_str(json.dumps(data))
