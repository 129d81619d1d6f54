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
- control tokens spelled out in a message, whoever wrote it, are plain text: nobody can end a turn but the
  template;
- a template that writes today's date writes that of `TODAY`.
"""

import re
import secrets
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any, Literal

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from isogloss.data.tokens import Marked, Piece, find_controls, tokenize, tokenize_alone, tokenize_with_asked
from isogloss.errors import ConfigError

ASKED = "isoglossinstruction"
SENTINEL = "isoglossresponse"
HELD = secrets.token_hex(8)
"""Stands with a number where a message spells a control token, while the template is rendered."""
TODAY = {
    "%Y": "2024",
    "%y": "24",
    "%m": "07",
    "%-m": "7",
    "%B": "July",
    "%b": "Jul",
    "%d": "26",
    "%-d": "26",
    "%e": "26",
    "%j": "208",
    "%A": "Friday",
    "%a": "Fri",
    "%H": "00",
    "%I": "12",
    "%M": "00",
    "%S": "00",
    "%p": "AM",
    "%F": "2024-07-26",
    "%D": "07/26/24",
    "%T": "00:00:00",
}
"""The day of every rendering, by strftime's directives: what is learned must not depend on the calendar.

It is the one that Llama 3's template itself falls back on.
"""


@dataclass(frozen=True)
class Encoded:
    """One row: what is read, what is answered (end of turn included), both as token ids."""

    prompt: tuple[int, ...]
    response: tuple[int, ...]
    instruction_mask: tuple[bool, ...] = ()
    """Which tokens of the prompt are the instruction itself, not BOS or the template; empty: all count."""

    @property
    def tokens(self) -> int:
        """Of both together."""
        return len(self.prompt) + len(self.response)


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
        controls: Ids of control tokens: the special ones, and those of the others that the template writes
            around a question and its answer, thinking marks aside.
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


def encode_prompt_with_text(
    tokenizer: PreTrainedTokenizerBase, instruction: str, system: str | None = None
) -> Marked:
    """As `encode_prompt`, and which of the ids hold the instruction itself.

    BOS, what the template writes, a system text and the end of turn do not. A token in which the text's first
    or last letter has grown together with the template's does.

    Raises:
        ConfigError: The template writes the instruction in other words, or the tokenizer knows no offsets.
    """
    held, spelled = _held(tokenizer, _messages(tokenizer, instruction, system))
    prompt = _prompt(tokenizer, held)
    before, behind = _around(tokenizer, _state(tokenizer), system)
    inside = prompt[len(before) : len(prompt) - len(behind)]
    asked = _pieces(inside, spelled, asked=True)
    words = "".join(piece.text for piece in asked)
    if before + inside + behind != prompt or words.strip() != instruction.strip():
        raise ConfigError("the chat template rewrites the user's text; set one that writes it as it is")
    pieces = [*_pieces(before, spelled), *asked, *_pieces(behind, spelled)]
    return tokenize_with_asked(tokenizer, pieces, _frame(tokenizer, _state(tokenizer)).controls)


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str) -> Marked:
    """A bare text's ids, with what the tokenizer puts around any text (BOS), and which are the text's own.

    Control tokens spelled out in it are text.
    """
    return tokenize_alone(tokenizer, text)


def encode_chat(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]]) -> tuple[int, ...]:
    """As `encode_prompt`, for a conversation of several turns."""
    held, spelled = _held(tokenizer, messages)
    pieces = _pieces(_prompt(tokenizer, held), spelled)
    return tokenize(tokenizer, pieces, _frame(tokenizer, _state(tokenizer)).controls)


def encode_response(tokenizer: PreTrainedTokenizerBase, response: str) -> tuple[int, ...]:
    """The response's ids with the end of turn, the same whatever the prompt."""
    frame = _frame(tokenizer, _state(tokenizer))
    answer = [Piece(frame.lead), Piece(response.strip(), plain=True), Piece(frame.closing)]
    found: tuple[int, ...] = ()
    # Read behind the template's own opening, because SentencePiece puts a blank before a text's first word;
    # where the border would merge, behind a new line or nothing.
    for before in (frame.opening, "\n", ""):
        border = tokenize(tokenizer, [Piece(before)], frame.controls)
        both = tokenize(tokenizer, [Piece(before), *answer], frame.controls)
        found = both[len(border) :]
        if both[: len(border)] == border:
            break
    return (*found, frame.end_id)


def surely_within(texts: Sequence[str], template: int, limit: int) -> bool:
    """Whether texts must fit, unencoded: a letter of ASCII is a token at most.

    Args:
        template: Tokens that the template adds.
    """
    return all(map(str.isascii, texts)) and sum(map(len, texts)) + template <= limit


def encode(
    tokenizer: PreTrainedTokenizerBase, instruction: str, response: str, system: str | None = None
) -> Encoded:
    """A turn as a row."""
    prompt, mask = encode_prompt_with_text(tokenizer, instruction, system)
    return Encoded(prompt, encode_response(tokenizer, response), mask)


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
    thinking = ("<think>", "</think>")
    controls = frozenset(
        number
        for number, token in added.items()
        if token.special
        or (
            token.content.strip() and token.content in generation + finished and token.content not in thinking
        )
    )
    return Frame(drop, add, prompt.rpartition(ASKED)[2], lead, closing, end, end_id, controls)


def _prompt(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]]) -> str:
    frame = _frame(tokenizer, _state(tokenizer))
    return _render(tokenizer, messages, generate=True).removesuffix(frame.drop) + frame.add


@lru_cache(maxsize=1024)
def _around(tokenizer: PreTrainedTokenizerBase, state: Hashable, system: str | None) -> tuple[str, str]:
    """What a prompt has before and behind the user's text."""
    bare = _prompt(tokenizer, _held(tokenizer, _messages(tokenizer, ASKED, system))[0])
    before, _, behind = bare.rpartition(ASKED)
    return before, behind


def _asking(instruction: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": instruction}]


def _messages(
    tokenizer: PreTrainedTokenizerBase, instruction: str, system: str | None
) -> list[dict[str, str]]:
    if system is None:
        return _asking(instruction)
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
    template = _on_the_day() + tokenizer.get_chat_template()
    text = tokenizer.apply_chat_template(
        messages, chat_template=template, tokenize=False, add_generation_prompt=generate, **options
    )
    assert isinstance(text, str)
    return text


@cache
def _on_the_day() -> str:
    """Jinja for the calendar of `TODAY`; the new line behind it belongs to it."""
    date = "".join(f"|replace({directive!r},{text!r})" for directive, text in TODAY.items())
    return f"{{%- macro strftime_now(format) -%}}{{{{ format{date} }}}}{{%- endmacro %}}\n"


def _held(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[dict[str, str]]
) -> tuple[list[dict[str, str]], dict[str, str]]:
    """The messages with a placeholder for each control token that they spell, and what each stands for.

    So a template that trims its messages does so as ever, and what it writes itself is told from their texts.
    """
    controls, spelled, held = _frame(tokenizer, _state(tokenizer)).controls, {}, []
    for message in messages:
        text, end = message["content"], 0
        parts: list[str] = []
        for start, stop in find_controls(tokenizer, controls, text):
            place = f"<{HELD}:{len(spelled)}>"
            spelled[place] = text[start:stop]
            parts += [text[end:start], place]
            end = stop
        held.append({**message, "content": "".join([*parts, text[end:]])})
    return held, spelled


def _pieces(text: str, spelled: Mapping[str, str], *, asked: bool = False) -> list[Piece]:
    """A rendering with the control tokens that its messages spell back in their places."""
    found = re.split(f"(<{HELD}:[0-9]+>)", text)
    return [Piece(spelled.get(part, part), asked or part in spelled, asked) for part in found]


def pad(
    rows: list[list[int]], value: int, side: Literal["left", "right"] = "right", *, width: int = 0
) -> tuple[Int[Tensor, "batch length"], Int[Tensor, "batch length"]]:
    """Ids padded to the longest row, or to a greater width, and the mask that is 1 on real tokens."""
    width = max(width, *map(len, rows))
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
