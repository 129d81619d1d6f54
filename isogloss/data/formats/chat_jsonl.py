"""Chat format: JSON lines of {"messages": [{"role": …, "content": …}, …]}, optionally with id and language.

One user message and its answer are read, a system message being put before the instruction. Without an id
the line number serves; rows that share an id are the same item in several languages.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from isogloss.data.examples import ParallelExample
from isogloss.data.formats.lines import language_of, nearest, read_objects
from isogloss.data.formats.rows import Row, identifier, join, task_of, turn
from isogloss.errors import DataError

_ROLES: Final = ("system", "user", "assistant")


def read(path: Path, language: str = "en") -> list[ParallelExample]:
    """All conversations of the file.

    Args:
        path: The file.
        language: The language of the rows that name none.

    Raises:
        DataError: The file is missing, or a row is malformed or has several user turns.
    """
    return join(_rows(path, language_of(language, path).code), path)


def _rows(path: Path, default: str) -> Iterator[Row]:
    for line, row in read_objects(path):
        code = language_of(row.get("language", default), path, line).code
        if "messages" not in row:
            raise DataError(f"no key 'messages'; {nearest('messages', list(row))}", path, line)
        said = _messages(row["messages"], path, line)
        instruction = "\n\n".join(said[role] for role in ("system", "user") if said.get(role))
        if not said["user"].strip():
            instruction = ""  # system text alone asks nothing
        id = identifier(row.get("id", line), path, line)
        task = task_of(row.get("task"), path, line)
        yield Row(line, id, task, code, turn(instruction, said.get("assistant"), code, path, line))


def _messages(messages: Any, path: Path, line: int) -> dict[str, str]:
    if not isinstance(messages, list) or not messages:
        raise DataError("'messages' must be a list of a user message and its answer", path, line)
    pairs = [_message(message, path, line) for message in messages]
    roles = [role for role, _ in pairs]
    turns = max(roles.count("user"), roles.count("assistant"))
    if turns > 1:
        message = f"the conversation has {turns} turns; only single turns are read, so split it"
        raise DataError(message, path, line)
    if tuple(roles) not in {_ROLES, _ROLES[:2], _ROLES[1:], _ROLES[1:2]}:
        message = (
            f"the roles are {', '.join(roles)}; they must be user and assistant, after at most one system"
        )
        raise DataError(message, path, line)
    return dict(pairs)


def _message(message: Any, path: Path, line: int) -> tuple[str, str]:
    if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
        raise DataError("a message lacks its role or content; it must have both", path, line)
    role, content = message["role"], message["content"]
    if role not in _ROLES:
        raise DataError(f"{role!r} is not a role; {nearest(str(role), _ROLES)}", path, line)
    if not isinstance(content, str):
        raise DataError(f"the {role}'s content is a {type(content).__name__}; it must be a text", path, line)
    return role, content
