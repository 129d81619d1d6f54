"""From a turn to token ids, through the model's own chat template.

Prompt and response are tokenised apart, so the border between them never falls inside a token, and
the prompt is exactly what the model reads when it generates. A response ends with the template's
end-of-turn token. Which logits predict which response tokens is decided here and nowhere else.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from isogloss.errors import ConfigError

SENTINEL = "isoglossresponse"


@dataclass(frozen=True)
class Encoded:
    """One row: what is read, what is answered (end of turn included), both as token ids."""

    prompt: tuple[int, ...]
    response: tuple[int, ...]


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase, instruction: str, system: str | None = None
) -> tuple[int, ...]:
    """The prompt's ids, up to where the model begins to answer."""
    text = _render(tokenizer, _messages(tokenizer, instruction, system), generate=True)
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


def encode_response(tokenizer: PreTrainedTokenizerBase, response: str) -> tuple[int, ...]:
    """The response's ids with the end of turn, the same whatever the prompt."""
    return tuple(tokenizer(response + end_of_turn(tokenizer), add_special_tokens=False)["input_ids"])


def encode(
    tokenizer: PreTrainedTokenizerBase, instruction: str, response: str, system: str | None = None
) -> Encoded:
    """A turn as a row."""
    return Encoded(encode_prompt(tokenizer, instruction, system), encode_response(tokenizer, response))


def end_of_turn(tokenizer: PreTrainedTokenizerBase) -> str:
    """The token that the template writes after an answer; the tokenizer's end of sequence where it writes none."""
    return _end_of_turn(tokenizer, tokenizer.chat_template or "")


@lru_cache(maxsize=64)
def _end_of_turn(tokenizer: PreTrainedTokenizerBase, template: str) -> str:
    messages = [{"role": "user", "content": "x"}, {"role": "assistant", "content": SENTINEL}]
    tail = _render(tokenizer, messages, generate=False).partition(SENTINEL)[2]
    specials = sorted(
        (t.content for t in tokenizer.added_tokens_decoder.values() if t.content and t.content in tail),
        key=lambda token: (tail.index(token), -len(token)),
    )
    if specials:
        return specials[0]
    if tokenizer.eos_token is None:
        raise ConfigError("the chat template ends no turn and the tokenizer has no eos_token; set one")
    return tokenizer.eos_token


def _messages(
    tokenizer: PreTrainedTokenizerBase, instruction: str, system: str | None
) -> list[dict[str, str]]:
    if system is None:
        return [{"role": "user", "content": instruction}]
    if _renders_system(tokenizer, tokenizer.chat_template or ""):
        return [{"role": "system", "content": system}, {"role": "user", "content": instruction}]
    return [{"role": "user", "content": f"{system}\n\n{instruction}"}]


@lru_cache(maxsize=64)
def _renders_system(tokenizer: PreTrainedTokenizerBase, template: str) -> bool:
    messages = [{"role": "system", "content": SENTINEL}, {"role": "user", "content": "x"}]
    try:
        return SENTINEL in _render(tokenizer, messages, generate=True)
    except Exception:  # a template refuses by raising whatever its author chose
        return False


def _render(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], *, generate: bool) -> str:
    if not tokenizer.chat_template:
        raise ConfigError("the tokenizer has no chat template; set tokenizer.chat_template")
    # Hybrid templates insert a thinking block unless told not to, on one side only.
    options: dict[str, Any] = {"enable_thinking": False}
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generate, **options)
    assert isinstance(text, str)
    return text


def pad(
    rows: list[list[int]], value: int, side: str = "right"
) -> tuple[Int[Tensor, "batch length"], Int[Tensor, "batch length"]]:
    """Ids padded to the longest row, and the mask that is 1 on real tokens."""
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), value)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    for number, row in enumerate(rows):
        span = slice(0, len(row)) if side == "right" else slice(width - len(row), width)
        ids[number, span] = torch.tensor(row)
        mask[number, span] = 1
    return ids, mask


def response_positions(starts: list[int], lengths: list[int], width: int) -> Int[Tensor, " tokens"]:
    """Where the hidden states lie that predict each response token, in a flattened (batch · width) batch.

    Token t is predicted from position t - 1: the one place where labels are shifted. Rows are padded
    on the right; `starts[b]` is the length of row b's prompt.
    """
    spans = [
        torch.arange(start - 1, start - 1 + length) + number * width
        for number, (start, length) in enumerate(zip(starts, lengths, strict=True))
    ]
    return torch.cat(spans)
