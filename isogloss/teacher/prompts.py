"""The teacher's prompt: node texts on the language's path, English twin with its answer, the instruction.

A prompt over the limit raises an error; truncation would drop the instruction or the texts.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from importlib import resources
from itertools import chain
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from isogloss.adapters.tree import Node
from isogloss.config.yaml_io import load_yaml
from isogloss.data.chat import encode_prompt, written_behind
from isogloss.data.examples import Turn
from isogloss.errors import ConfigError
from isogloss.languages import UnknownLanguageError, resolve


class TooLongError(ConfigError):
    """A prompt is over the limit."""


@dataclass(frozen=True)
class NodeTexts:
    """The texts of the tree's nodes."""

    root: str
    families: Mapping[str, str] = field(default_factory=dict)
    languages: Mapping[str, str] = field(default_factory=dict)
    tasks: Mapping[str, str] = field(default_factory=dict)
    answers: Mapping[str, Mapping[str, Mapping[str, str]]] = field(default_factory=dict)
    """By language and task: the wording of each English answer word in the language."""

    def of(self, node: Node) -> str | None:
        match node.level:
            case "root":
                return self.root
            case "family":
                return self.families.get(node.name)
            case "language":
                return self.languages.get(node.name)


@cache
def load_texts(path: Path | None = None) -> NodeTexts:
    """Load node texts from a YAML file, or those that come with the package.

    Raises:
        ConfigError: The file is missing or malformed.
    """
    source = resources.files("isogloss.teacher") / "texts.yaml" if path is None else path
    if not source.is_file():
        raise ConfigError(f"distill.texts: {source} does not exist")
    entries = load_yaml(source)
    allowed = tuple(field.name for field in fields(NodeTexts))
    entries = {k: v for k, v in entries.items() if v is not None} if isinstance(entries, dict) else {}
    if "root" not in entries or set(entries) - set(allowed):
        raise ConfigError(f"{source}: node texts have the keys {', '.join(allowed)}; root is required")
    _check_text(entries["root"], f"{source}: root")
    for name in [name for name in entries if name != "root"]:
        entries[name] = _section(name, entries[name], source)
    return NodeTexts(**entries)


def _section(name: str, given: Any, source: object) -> dict[str, Any]:
    """Check the texts under one key of the file, and return them by canonical name."""
    if not isinstance(given, dict):
        raise ConfigError(f"{source}: {name} must be a mapping of names to texts")
    found: dict[str, Any] = {}
    for key, text in given.items():
        if text is None:
            continue
        own = _code(str(key), source) if name in ("languages", "answers") else str(key)
        if own in found:
            raise ConfigError(f"{source}: {name}: {key} is another name of {own}; give one of them")
        check = _check_answers if name == "answers" else _check_text
        check(text, f"{source}: {name}.{own}")
        found[own] = text
    return found


def _check_text(text: Any, where: str) -> None:
    if not isinstance(text, str):
        raise ConfigError(f"{where} must be a text")


def _check_answers(tasks: Any, where: str) -> None:
    """Check that the answer words of a language are a mapping of tasks to mappings of words."""
    words = [one for one in tasks.values() if one is not None] if isinstance(tasks, dict) else [tasks]
    if not all(isinstance(one, dict) and None not in one.values() for one in words):
        raise ConfigError(f"{where} must map each task to its English answer words and their wordings")
    # YAML reads an unquoted `true` as a boolean, which the prompt would spell `True`.
    if other := [word for one in words for word in chain(*one.items()) if not isinstance(word, str)]:
        raise ConfigError(f"{where}: {other[0]} is not a text; put it in quotes")


def _code(spelling: str, source: object) -> str:
    """Resolve any code of a language to the canonical one."""
    try:
        return resolve(spelling).code
    except UnknownLanguageError as error:
        raise ConfigError(f"{source}: {error}") from None


def privileged_text(
    texts: NodeTexts,
    path: tuple[Node, ...],
    task: str,
    twin: Turn | None,
    *,
    answer: bool = True,
) -> str:
    """Build the system text: node texts from root to leaf, the task's text, English twin and its answer."""
    lines = [text for node in path if (text := texts.of(node))]
    if task in texts.tasks:
        lines.append(texts.tasks[task])
    if path and (words := texts.answers.get(path[-1].name, {}).get(task)):
        # No space before a word, so that it has the same tokens as at the beginning of an answer.
        lines.append("; ".join(f"{english}={word}" for english, word in words.items()))
    if twin is not None:
        # On its own it gets no label: a label lowers agreement with the English answer.
        alone = not lines and not answer
        lines.append(twin.instruction if alone else f"English: {twin.instruction}")
        if answer and twin.response is not None:
            lines.append(f"→ {twin.response}")
    return "\n".join(lines)


def teacher_prompt(
    tokenizer: PreTrainedTokenizerBase, system: str, instruction: str, *, limit: int, row: str
) -> tuple[int, ...]:
    """Return the token IDs of the teacher's prompt.

    Raises:
        TooLongError: It is longer than `limit` tokens.
    """
    prompt = encode_prompt(tokenizer, instruction, system)
    if len(prompt) > limit:
        raise TooLongError(
            f"the teacher's prompt for {row} has {len(prompt)} tokens and the limit is {limit}; "
            "raise distill.max_prompt_length" + (" or shorten the node texts" if system else "")
        )
    return prompt


def check_texts(texts: NodeTexts, path: tuple[Node, ...]) -> None:
    """Check that every node on a path has a text.

    Raises:
        ConfigError: A node has no text.
    """
    keys = {"family": "families", "language": "languages"}
    for node in path:
        if not texts.of(node):
            where = f"under {keys[node.level]} " if node.level in keys else ""
            raise ConfigError(
                f"the node {node.name} has no text and distill.require_texts is true; "
                f"write one {where}in the file of distill.texts"
            )


def check_response(
    tokenizer: PreTrainedTokenizerBase, system: str, instruction: str, response: str, *, row: str
) -> None:
    """Check that the template formats the response the same after the teacher's and the student's prompt.

    The response's token IDs are appended to both prompts, so both always score the same tokens. But if the
    template formats answers differently after a system text, these are not the tokens that the teacher
    expects.

    Raises:
        ConfigError: The two differ.
    """
    ours, theirs = (written_behind(tokenizer, instruction, response, text) for text in (None, system))
    if ours != theirs:
        said = [f"{one!r}" + (f" in place of {gone!r}" if gone else "") for one, gone in (theirs, ours)]
        raise ConfigError(
            f"the chat template writes the response of {row} after the teacher's prompt as {said[0]} and "
            f"after the student's as {said[1]}; set chat_template to one that writes both alike"
        )
