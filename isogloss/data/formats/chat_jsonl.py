"""Chats: rows of messages in the common layouts of instruction data, optionally with an id and a language.

    {"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]}
    {"conversations": [{"from": "human", "value": "…"}, {"from": "gpt", "value": "…"}]}    ShareGPT
    {"prompt": "…", "completion": "…"}, each a text or a list of messages                  TRL
    {"instruction": "…", "input": "…", "output": "…"}                                      Alpaca
    {"instruction": "…", "context": "…", "response": "…"}                                  Dolly

A prompt's answer may also be its `response` or `output`. The first user message and its answer are read; a
system message, or the row's `system`, is put before the instruction, and the turns of `history` before the
row's own. The following are skipped and reported: later turns, as an example is one turn; rows in an unknown
language, without an instruction, with tools or with roles out of order; and rows whose answer is marked as
not for training (`"weight": 0`). Keys that are not read are named. Without an id, the line number is used;
rows that share an id are the same item in several languages. `records` lists the supported files.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from isogloss.data.examples import ParallelExample
from isogloss.data.formats.lines import kind_of, language_of, nearest
from isogloss.data.formats.records import Record, Tell, nobody, read_records
from isogloss.data.formats.turns import (
    LeftOut,
    Only,
    ParsedTurn,
    absent,
    identifier,
    join,
    language_or_none,
    parsed,
    present,
    task_of,
)
from isogloss.errors import DataError

_ROLES: Final = ("system", "user", "assistant")
_SAME: Final = {"developer": "system"}
_SENDERS: Final = {"human": "user", "gpt": "assistant"}
_TOOLS: Final = ("tools", "functions", "tool_calls", "function_call")
_TOOL_ROLES: Final = ("tool", "function", "function_call", "observation")
_NO_TOOLS: Final = ("", "[]", "{}", "null", "None")
_LEARNED: Final = ("weight", "loss", "learn", "train", "training")
"""Keys that mark a row or an answer as used for training or, with 0 or false, as not used."""
_MARKS: Final = {"1": True, "1.0": True, "true": True, "0": False, "0.0": False, "false": False}
_BY_TOKEN: Final = ("loss_mask", "train_mask", "train_detail", "training_detail", "assistant_masks")
"""Keys that mark parts of an answer."""
_LAYOUTS: Final = {
    "messages": (),
    "conversations": (),
    "prompt": ("completion", "response", "output"),
    "instruction": ("input", "context", "output", "response"),
}
"""The keys that identify a layout, and the others that it has."""
_READ: Final = {*("id", "task", "language", "lang", "system", "history"), *(*_TOOLS, *_LEARNED, *_BY_TOKEN)}
"""Keys that are read in every layout."""


class Message(NamedTuple):
    """One message, and whether it is to be trained on."""

    role: str
    content: str
    learned: bool


def read(
    path: Path,
    language: str = "en",
    *,
    split: str | None = None,
    tell: Tell = nobody,
    each: Callable[[LeftOut], object] = nobody,
    only: Only = iter,
) -> list[ParallelExample]:
    """Return the first turn of every conversation.

    Args:
        language: The language of rows that name none.
        path, split, tell, each, only: As in `parallel_jsonl.read`.

    Raises:
        DataError: The file is missing, a row is malformed or masks parts of an answer, or no row can be used.
    """
    default = language_of(language, path).code
    return join(_rows(path, default, split, tell), path, tell, each, only)


def _rows(path: Path, default: str, split: str | None, tell: Tell) -> Iterator[ParsedTurn | LeftOut]:
    unread: dict[str, None] = {}
    for record in read_records(path, split, tell=tell, kind="jsonl"):
        unread |= dict.fromkeys(_unread(record.cells))
        yield from _row(record, default)
    if unread:
        names = ", ".join(list(unread)[:8]) + (f" and {len(unread) - 8} more" if len(unread) > 8 else "")
        tell(f"{path}: not read: {names}")


def _unread(cells: Mapping[str, Any]) -> list[str]:
    has = present(cells)
    key = key_of(has)
    return [
        one for one in cells if one in has - _READ and one != key and one not in _LAYOUTS.get(key or "", ())
    ]


def _row(record: Record, default: str) -> Iterator[ParsedTurn | LeftOut]:
    cells = record.cells
    named = _first(cells, "language", "lang")
    code = default if absent(named) else language_or_none(named, record)
    if isinstance(code, LeftOut):
        yield code
        return
    if not _paired(cells.get("history")):
        error = record.error("'history' must be a list of pairs, each a user's text and its answer")
        yield LeftOut("{} whose history is not a list of pairs", error)
        return
    given = _given(record)
    if any(_calls_tools(one) for one in (cells, *given)):
        yield LeftOut("{} that call tools", record.error("it calls tools; remove such chats"))
        return
    messages = [_message(one, record) for one in given]
    if error := _disorder(messages, record):
        yield LeftOut("{} whose roles are out of order", error)
        return
    first = {message.role: message for message in messages[: 3 if messages[0].role == "system" else 2]}
    if not _learned(cells, record) or ("assistant" in first and not first["assistant"].learned):
        error = record.error("it is marked as not for training; at least one row must be used")
        yield LeftOut("{} that are marked as not for training", error)
        return
    said = {role: message.content for role, message in first.items()}
    instruction = "\n\n".join(said[role] for role in ("system", "user") if said.get(role))
    if not said["user"].strip():
        instruction = ""  # a system text alone is no instruction
    id = identifier(record.number if absent(cells.get("id")) else cells["id"], record)
    task = task_of(cells.get("task"), record)
    yield parsed(record, id, task, code, instruction, said.get("assistant"))
    if len(messages) > len(first):
        yield LeftOut("all after the first turn of {}", record.error("it has several turns"), whole=False)


def key_of(keys: Collection[str]) -> str | None:
    """Return the key that identifies the layout of a row with these keys; None for a row of no chat layout.

    A prompt beside an instruction, without a completion, is the whole row in a template, as in some copies of
    Alpaca.
    """
    copied = "instruction" in keys and "completion" not in keys
    return next((key for key in _LAYOUTS if key in keys and not (copied and key == "prompt")), None)


def _given(at: Record) -> list[Mapping[str, Any]]:
    """Return the messages of a row in any layout, as mappings with role and content."""
    cells = at.cells
    before, roles = (cells["history"] if _some(cells.get("history")) else ()), ("user", "assistant")
    messages = [
        *({"role": role, "content": said} for pair in before for role, said in zip(roles, pair, strict=True)),
        *_own(at),
    ]
    system = cells.get("system")
    if absent(system) or system == "" or messages[0].get("role") in ("system", "developer"):
        return messages
    return [{"role": "system", "content": system}, *messages]


def _paired(history: Any) -> bool:
    return not _some(history) or (
        isinstance(history, list)
        and all(isinstance(pair, list) and list(map(type, pair)) == [str, str] for pair in history)
    )


def _own(at: Record) -> list[Mapping[str, Any]]:
    cells = at.cells
    has = present(cells)
    key = key_of(has)
    if key == "messages":
        return _list(cells["messages"], "messages", at)
    if key == "conversations":
        return [
            {**one, "role": _SENDERS.get(one["from"], one["from"]), "content": one.get("value")}
            if isinstance(one.get("from"), str)
            else one
            for one in _list(cells["conversations"], "conversations", at)
        ]
    if key == "prompt":
        answer = _first(cells, *_LAYOUTS["prompt"])
        asked = _either(cells["prompt"], "user", at)
        return asked if absent(answer) else [*asked, *_either(answer, "assistant", at)]
    if key == "instruction":
        more, answer = _first(cells, "input", "context"), _first(cells, "output", "response")
        asked = cells["instruction"]
        if not (absent(more) or more == ""):
            if not (isinstance(asked, str) and isinstance(more, str)):
                raise at.error("'instruction' or its input is not text; write both as text")
            asked = f"{asked}\n\n{more}"
        said = [] if absent(answer) else [{"role": "assistant", "content": answer}]
        return [{"role": "user", "content": asked}, *said]
    raise at.error(f"no key 'messages'; {nearest('messages', list(cells))}")


def _first(cells: Mapping[str, Any], *keys: str) -> Any:
    """Return the value of the first of the keys that has one."""
    return next((cells[key] for key in keys if not absent(cells.get(key))), None)


def _either(value: Any, role: str, at: Record) -> list[Mapping[str, Any]]:
    """Wrap a text as a message with the role; return messages as they are."""
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    return _list(value, "prompt" if role == "user" else "completion", at)


def _list(messages: Any, key: str, at: Record) -> list[Mapping[str, Any]]:
    if not isinstance(messages, list) or not messages:
        raise at.error(f"{key!r} must be a list of a user message and its answer")
    if not all(isinstance(message, Mapping) for message in messages):
        raise at.error("a message lacks its role or content; it must have both")
    return messages


def _message(message: Mapping[str, Any], at: Record) -> Message:
    if not {"role", "content"} <= message.keys():
        raise at.error("a message lacks its role or content; it must have both")
    role, content = message["role"], message["content"]
    role = _SAME.get(role, role) if isinstance(role, str) else role
    if role not in _ROLES:
        raise at.error(f"{role!r} is not a role; {nearest(str(role), _ROLES)}")
    if isinstance(content, list) and content and all(_is_text(part) for part in content):
        content = "".join(part["text"] for part in content)
    if not isinstance(content, str):
        raise at.error(f"the {role}'s content is {kind_of(content)}; it must be text")
    return Message(role, content, role != "assistant" or _learned(message, at))


def _is_text(part: Any) -> bool:
    return isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str)


def _disorder(messages: list[Message], at: Record) -> DataError | None:
    """Return an error unless user and assistant alternate, after at most one system message."""
    roles = [message.role for message in messages]
    said = roles[1:] if roles[0] == "system" else roles
    if said and said == [("user", "assistant")[n % 2] for n in range(len(said))]:
        return None
    message = f"the roles are {', '.join(roles)}; they must be user and assistant, after at most one system"
    return at.error(message)


def _calls_tools(holder: Mapping[str, Any]) -> bool:
    return holder.get("role") in _TOOL_ROLES or any(_some(holder.get(key)) for key in _TOOLS)


def _some(tools: Any) -> bool:
    """Return whether tools are given, as a list or, as in LLaMA-Factory's files, as its JSON text."""
    return tools.strip() not in _NO_TOOLS if isinstance(tools, str) else not absent(tools) and bool(tools)


def _learned(holder: Mapping[str, Any], at: Record) -> bool:
    """Return whether a row or an answer is to be trained on, which it is unless marked otherwise."""
    for key in _BY_TOKEN:
        if not absent(holder.get(key)):
            raise at.error(
                f"{key!r} marks parts of an answer for training, which is not supported: answers are trained "
                "on as a whole, so remove the row or the key"
            )
    said = {key: holder[key] for key in _LEARNED if not absent(holder.get(key))}
    for key, value in said.items():
        if str(value).lower() not in _MARKS:
            raise at.error(f"{key!r} is {value!r}; it must be 1 or 0, for training or not")
    return all(_MARKS[str(value).lower()] for value in said.values())
