"""From a turn to token ids, through the model's own chat template.

Prompt and response are tokenised apart, so the border between them never falls inside a token, and
the prompt is exactly what the model reads when it generates. A response ends with the template's
end-of-turn token. Which logits predict which response tokens is decided here and nowhere else.

What surrounds an answer is read off the template once, by rendering a turn whose texts are known:

- the prompt is the generation prompt. Where a finished turn has more than blanks before its answer (an
  empty thinking block, a channel), that is prompt too; a thinking block that the generation prompt opens
  and a finished turn lacks is left out. So nothing of it is ever supervised;
- outer blanks of a response are dropped, as many templates and our own reading of generated answers do;
  blanks that the template itself writes around an answer are kept, and belong to the response;
- control tokens spelled out inside a response are plain text.
"""

from collections.abc import Hashable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from isogloss.errors import ConfigError

ASKED = "isoglossinstruction"
SENTINEL = "isoglossresponse"


@dataclass(frozen=True)
class Encoded:
    """One row: what is read, what is answered (end of turn included), both as token ids."""

    prompt: tuple[int, ...]
    response: tuple[int, ...]


@dataclass(frozen=True)
class Frame:
    """What a template writes around an answer.

    Args:
        drop: End of the generation prompt that is no part of the prompt.
        add: What the prompt has after the generation prompt.
        opening: The prompt from the end of the user's text on.
        lead: Blanks before the answer.
        closing: What stands between the answer and the end of turn.
        end: The end-of-turn token.
        end_id: Its id.
        controls: Ids of all control tokens.
    """

    drop: str
    add: str
    opening: str
    lead: str
    closing: str
    end: str
    end_id: int
    controls: frozenset[int]


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase, instruction: str, system: str | None = None
) -> tuple[int, ...]:
    """The prompt's ids, up to where the model begins to answer."""
    return encode_chat(tokenizer, _messages(tokenizer, instruction, system))


def encode_chat(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]]) -> tuple[int, ...]:
    """As `encode_prompt`, for a conversation of several turns."""
    return _ids(tokenizer, _prompt(tokenizer, messages))


def encode_response(tokenizer: PreTrainedTokenizerBase, response: str) -> tuple[int, ...]:
    """The response's ids with the end of turn, the same whatever the prompt."""
    frame = _frame(tokenizer, _state(tokenizer))
    text = frame.lead + response.strip() + frame.closing
    found: tuple[int, ...] = ()
    # Read behind the template's own opening, because SentencePiece puts a blank before a text's first word.
    # Where the border would merge, or the text spells a control token, behind a new line or nothing.
    for before, plain in ((frame.opening, False), ("\n", True), ("", True)):
        border = _ids(tokenizer, before, plain)
        both = _ids(tokenizer, before + text, plain)
        found = both[len(border) :]
        if both[: len(border)] == border and frame.controls.isdisjoint(found):
            break
    return (*found, frame.end_id)


def encode(
    tokenizer: PreTrainedTokenizerBase, instruction: str, response: str, system: str | None = None
) -> Encoded:
    """A turn as a row."""
    return Encoded(encode_prompt(tokenizer, instruction, system), encode_response(tokenizer, response))


def written_behind(
    tokenizer: PreTrainedTokenizerBase, instruction: str, response: str, system: str | None = None
) -> tuple[str, str]:
    """What a finished turn has behind the prompt, and what of the prompt's end stands there no more."""
    messages = _messages(tokenizer, instruction, system)
    prompt = _prompt(tokenizer, messages)
    finished = _render(tokenizer, [*messages, {"role": "assistant", "content": response}], generate=False)
    pairs = enumerate(zip(prompt, finished, strict=False))
    common = next((n for n, (a, b) in pairs if a != b), min(len(prompt), len(finished)))
    return finished[common:], prompt[common:]


def end_of_turn(tokenizer: PreTrainedTokenizerBase) -> str:
    """The token that the template writes after an answer; where it writes none, the end of sequence."""
    return _frame(tokenizer, _state(tokenizer)).end


def _state(tokenizer: PreTrainedTokenizerBase) -> Hashable:
    """What a frame depends on besides the tokenizer object, which may be changed in place."""
    if not tokenizer.chat_template:
        raise ConfigError("the tokenizer has no chat template; set chat_template")
    template = tokenizer.get_chat_template()
    tokens = (tokenizer.bos_token, tokenizer.eos_token, *tokenizer.all_special_tokens)
    return template, tokens, len(tokenizer)


@lru_cache(maxsize=64)
def _frame(tokenizer: PreTrainedTokenizerBase, state: Hashable) -> Frame:
    asked = [{"role": "user", "content": ASKED}]
    try:
        generation = _render(tokenizer, asked, generate=True)
        finished = _render(tokenizer, [*asked, {"role": "assistant", "content": SENTINEL}], generate=False)
    except Exception as error:  # a template refuses by raising whatever its author chose
        raise ConfigError(
            f"the chat template cannot write a question and its answer ({error}); set one that takes plain "
            "strings"
        ) from None
    if ASKED not in generation:
        raise ConfigError("the chat template leaves out the user's text; set one that takes plain strings")
    head, written, tail = finished.rpartition(SENTINEL)
    drop = add = lead = ""
    if written and head.startswith(generation):
        more = head.removeprefix(generation)
        lead, add = (more, "") if not more.strip() else ("", more)
    elif written and generation.startswith(head):
        more = generation.removeprefix(head)
        drop = more if more.rfind("<think>") > more.rfind("</think>") else ""
    prompt = generation.removesuffix(drop) + add
    added = tokenizer.added_tokens_decoder
    ends = sorted(
        (t.content for t in added.values() if t.content.strip() and written and t.content in tail),
        key=lambda token: (tail.index(token), -len(token)),
    )
    end = ends[0] if ends else tokenizer.eos_token
    if not isinstance(end, str):
        raise ConfigError("the chat template ends no turn and the tokenizer has no eos_token; set one")
    end_id = tokenizer.convert_tokens_to_ids(end)
    if not isinstance(end_id, int) or tokenizer.convert_ids_to_tokens(end_id) != end:
        raise ConfigError(f"the tokenizer has no token {end!r} to end a turn with; add it, or set eos_token")
    closing = tail[: tail.index(end)] if ends else ""
    controls = frozenset(number for number, token in added.items() if token.special)
    return Frame(drop, add, prompt.rpartition(ASKED)[2], lead, closing, end, end_id, controls)


def _prompt(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]]) -> str:
    frame = _frame(tokenizer, _state(tokenizer))
    return _render(tokenizer, messages, generate=True).removesuffix(frame.drop) + frame.add


def _messages(
    tokenizer: PreTrainedTokenizerBase, instruction: str, system: str | None
) -> list[dict[str, str]]:
    if system is None:
        return [{"role": "user", "content": instruction}]
    if _renders_system(tokenizer, _state(tokenizer)):
        return [{"role": "system", "content": system}, {"role": "user", "content": instruction}]
    return [{"role": "user", "content": f"{system}\n\n{instruction}"}]


@lru_cache(maxsize=64)
def _renders_system(tokenizer: PreTrainedTokenizerBase, state: Hashable) -> bool:
    messages = [{"role": "system", "content": SENTINEL}, {"role": "user", "content": ASKED}]
    try:
        text = _render(tokenizer, messages, generate=True)
    except Exception:  # a template refuses by raising whatever its author chose
        return False
    return SENTINEL in text and ASKED in text


def _render(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], *, generate: bool) -> str:
    # Hybrid templates insert a thinking block unless told not to, on one side only.
    options: dict[str, Any] = {"enable_thinking": False}
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generate, **options)
    assert isinstance(text, str)
    return text


def _ids(tokenizer: PreTrainedTokenizerBase, text: str, plain: bool = False) -> tuple[int, ...]:
    """Ids of a text that already has its control tokens; none are read from a plain one."""
    found = tokenizer(text, add_special_tokens=False, split_special_tokens=plain)
    return tuple(found["input_ids"])


def pad(
    rows: list[list[int]], value: int, side: Literal["left", "right"] = "right"
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
    rows = list(zip(starts, lengths, strict=True))
    assert all(0 < start <= width - length for start, length in rows), "a response leaves its row"
    spans = [
        torch.arange(start - 1, start - 1 + length) + number * width
        for number, (start, length) in enumerate(rows)
    ]
    return torch.cat(spans)
