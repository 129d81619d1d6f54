"""Encode conversations as token IDs with the model's own chat template.

Prompt and response are tokenised separately, so the border between them never falls inside a token, and
the prompt is exactly what the model reads when it generates. A response ends with the template's
end-of-turn token. `response_positions` says which positions predict it; for several answers in one row,
`model.branches.predictors` does.

What surrounds a response is read from the template once, by rendering a turn with known texts:

- the prompt is the generation prompt. If a finished turn has more than white space before its response (an
  empty thinking block, a channel), that also belongs to the prompt; a thinking block that the generation
  prompt opens and a finished turn lacks is removed. So none of it is ever supervised;
- leading and trailing white space of a response is stripped, as many templates and our own parsing of
  generated responses do; white space that the template itself writes around a response is kept and belongs
  to the response;
- control tokens spelled out in a message, whoever wrote it, are plain text: only the template can end a
  turn;
- a template that writes today's date gets the fixed date `TODAY`.
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

from isogloss.data.tokens import Marked, Piece, find_controls, tokenize, tokenize_with_asked
from isogloss.errors import ConfigError

ASKED = "isoglossinstruction"
SENTINEL = "isoglossresponse"
HELD = secrets.token_hex(8)
"""With a number, the placeholder for a control token spelled in a message while the template is rendered."""
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
"""The date of every rendering, by strftime directive: training data must not depend on the calendar.

It is the default date of Llama 3's template.
"""


@dataclass(frozen=True)
class Encoded:
    """One row as token IDs: the prompt, and the response with its end-of-turn token."""

    prompt: tuple[int, ...]
    response: tuple[int, ...]
    instruction_mask: tuple[bool, ...] = ()
    """True for prompt tokens of the instruction itself, not of BOS or the template; empty means all count."""

    @property
    def tokens(self) -> int:
        """Number of tokens of prompt and response."""
        return len(self.prompt) + len(self.response)


@dataclass(frozen=True)
class Frame:
    """What a template writes around a response.

    Args:
        drop: End of the generation prompt that is not part of the prompt.
        add: Text of the prompt after the generation prompt.
        opening: The prompt from the end of the user's text on.
        lead: White space before the response.
        closing: Text between the response and the end of turn.
        end: The end-of-turn token.
        end_id: Its token ID.
        controls: IDs of control tokens: the special tokens, and other added tokens that the template writes
            around an instruction and its response, except thinking marks.
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
    """Return the prompt's token IDs, up to where the response begins."""
    return encode_chat(tokenizer, _messages(tokenizer, instruction, system))


def encode_prompt_with_text(
    tokenizer: PreTrainedTokenizerBase, instruction: str, system: str | None = None
) -> Marked:
    """Like `encode_prompt`, plus a mask of the tokens of the instruction itself.

    The mask excludes BOS, the template's text, a system text and the end of turn. It includes a token that
    merges the instruction's first or last character with the template's text.

    Raises:
        ConfigError: The template rewrites the instruction, or the tokenizer has no offsets.
    """
    held, spelled = _held(tokenizer, _messages(tokenizer, instruction, system))
    prompt = _prompt(tokenizer, held)
    before, behind = _around(tokenizer, _state(tokenizer), system)
    inside = prompt[len(before) : len(prompt) - len(behind)]
    asked = _pieces(inside, spelled, asked=True)
    words = "".join(piece.text for piece in asked)
    if before + inside + behind != prompt or words.strip() != instruction.strip():
        raise ConfigError("the chat template rewrites the user's text; set one that leaves it unchanged")
    pieces = [*_pieces(before, spelled), *asked, *_pieces(behind, spelled)]
    return tokenize_with_asked(tokenizer, pieces, _frame(tokenizer, _state(tokenizer)).controls)


def encode_chat(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]]) -> tuple[int, ...]:
    """Like `encode_prompt`, for a conversation of several turns."""
    held, spelled = _held(tokenizer, messages)
    pieces = _pieces(_prompt(tokenizer, held), spelled)
    return tokenize(tokenizer, pieces, _frame(tokenizer, _state(tokenizer)).controls)


def encode_response(tokenizer: PreTrainedTokenizerBase, response: str) -> tuple[int, ...]:
    """Return the response's token IDs with the end-of-turn token, independent of the prompt."""
    frame = _frame(tokenizer, _state(tokenizer))
    answer = [Piece(frame.lead), Piece(response.strip(), plain=True), Piece(frame.closing)]
    found: tuple[int, ...] = ()
    # Tokenised after the template's own opening, because SentencePiece puts a space before a text's first
    # word; if that merges tokens across the border, after a new line, and last without a prefix.
    for before in (frame.opening, "\n", ""):
        border = tokenize(tokenizer, [Piece(before)], frame.controls)
        both = tokenize(tokenizer, [Piece(before), *answer], frame.controls)
        found = both[len(border) :]
        if both[: len(border)] == border:
            break
    return (*found, frame.end_id)


def surely_within(texts: Sequence[str], template: int, limit: int) -> bool:
    """Return whether texts fit for certain, without tokenising: an ASCII character is at most one token.

    Args:
        template: Number of tokens that the template adds.
    """
    return all(map(str.isascii, texts)) and sum(map(len, texts)) + template <= limit


def encode(
    tokenizer: PreTrainedTokenizerBase, instruction: str, response: str, system: str | None = None
) -> Encoded:
    """Encode one turn as a row."""
    prompt, mask = encode_prompt_with_text(tokenizer, instruction, system)
    return Encoded(prompt, encode_response(tokenizer, response), mask)


def written_behind(
    tokenizer: PreTrainedTokenizerBase, instruction: str, response: str, system: str | None = None
) -> tuple[str, str]:
    """Return what a finished turn has after its common prefix with the prompt, and the rest of the prompt."""
    messages = _messages(tokenizer, instruction, system)
    prompt = _prompt(tokenizer, messages)
    finished = _render(tokenizer, [*messages, {"role": "assistant", "content": response}], generate=False)
    pairs = enumerate(zip(prompt, finished, strict=False))
    common = next((n for n, (a, b) in pairs if a != b), min(len(prompt), len(finished)))
    return finished[common:], prompt[common:]


def end_of_turn(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the token that the template writes after a response, or EOS if it writes none."""
    return _frame(tokenizer, _state(tokenizer)).end


def _state(tokenizer: PreTrainedTokenizerBase) -> Hashable:
    """Cache key: what a frame depends on besides the tokenizer object, which may be changed in place."""
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
    except Exception as error:  # templates raise whatever exception their author chose
        raise ConfigError(
            f"the chat template cannot render a question and its answer ({error}); set one that takes plain "
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
        raise ConfigError(
            "the chat template writes no end-of-turn token and the tokenizer has no eos_token; set one"
        )
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
    """Return the prompt's text before and after the user's text."""
    bare = _prompt(tokenizer, _held(tokenizer, _messages(tokenizer, ASKED, system))[0])
    before, _, behind = bare.rpartition(ASKED)
    return before, behind


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
    except Exception:  # templates raise whatever exception their author chose
        return False
    return SENTINEL in text and ASKED in text


def _render(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], *, generate: bool) -> str:
    # Without this option, hybrid templates insert a thinking block in only one of prompt and finished turn.
    options: dict[str, Any] = {"enable_thinking": False}
    template = _on_the_day() + tokenizer.get_chat_template()
    text = tokenizer.apply_chat_template(
        messages, chat_template=template, tokenize=False, add_generation_prompt=generate, **options
    )
    assert isinstance(text, str)
    return text


@cache
def _on_the_day() -> str:
    """Return a Jinja macro that fixes the date to `TODAY`, including its trailing new line."""
    date = "".join(f"|replace({directive!r},{text!r})" for directive, text in TODAY.items())
    return f"{{%- macro strftime_now(format) -%}}{{{{ format{date} }}}}{{%- endmacro %}}\n"


def _held(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[dict[str, str]]
) -> tuple[list[dict[str, str]], dict[str, str]]:
    """Replace each control token spelled in the messages by a placeholder; return both.

    This way a template that trims its messages still does so, and the control tokens that it writes itself
    remain distinguishable from those in the messages.
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
    """Split a rendering at the placeholders and restore the control tokens that its messages spell."""
    found = re.split(f"(<{HELD}:[0-9]+>)", text)
    return [Piece(spelled.get(part, part), asked or part in spelled, asked) for part in found]


def pad(
    rows: list[list[int]], value: int, side: Literal["left", "right"] = "right", *, width: int = 0
) -> tuple[Int[Tensor, "batch length"], Int[Tensor, "batch length"]]:
    """Pad token IDs to the longest row, or to `width` if it is greater; the mask is 1 on real tokens."""
    width = max(width, *map(len, rows))
    ids = torch.full((len(rows), width), value)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    for number, row in enumerate(rows):
        span = slice(0, len(row)) if side == "right" else slice(width - len(row), width)
        ids[number, span] = torch.tensor(row)
        mask[number, span] = 1
    return ids, mask


def response_positions(starts: list[int], lengths: list[int], width: int) -> Int[Tensor, " tokens"]:
    """Return the indices of the hidden states that predict each response token, in a flattened batch.

    Token t is predicted from position t - 1, so labels need no shift later. The batch is flattened to
    (batch · width). Rows are padded on the right; `starts[b]` is the length of row b's prompt.
    """
    rows = list(zip(starts, lengths, strict=True))
    assert all(0 < start <= width - length for start, length in rows), "a response does not fit into its row"
    spans = [
        torch.arange(start - 1, start - 1 + length) + number * width
        for number, (start, length) in enumerate(rows)
    ]
    return torch.cat(spans)
