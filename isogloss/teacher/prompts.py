"""What the teacher reads: the texts on a language's path, the English twin with its answer, the instruction.

A prompt over the limit is refused, never cut: a cut would take away the instruction or the texts.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from importlib import resources
from pathlib import Path

import yaml
from transformers import PreTrainedTokenizerBase

from isogloss.adapters.tree import Node
from isogloss.config.yaml_io import Loader
from isogloss.data.chat import encode_prompt, written_behind
from isogloss.data.examples import Turn
from isogloss.errors import ConfigError
from isogloss.languages import UnknownLanguageError, resolve


@dataclass(frozen=True)
class NodeTexts:
    """The text of every node that has one."""

    root: str
    families: Mapping[str, str] = field(default_factory=dict)
    languages: Mapping[str, str] = field(default_factory=dict)
    tasks: Mapping[str, str] = field(default_factory=dict)
    answers: Mapping[str, Mapping[str, Mapping[str, str]]] = field(default_factory=dict)
    """By language and task, how each English answer word is said: the text of a task's node."""

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
    """The texts of a YAML file; without one, those that come with the package.

    Raises:
        ConfigError: The file is missing or has other keys.
    """
    source = resources.files("isogloss.teacher") / "texts.yaml" if path is None else path
    if not source.is_file():
        raise ConfigError(f"distill.texts: {source} does not exist")
    try:
        entries = yaml.load(source.read_text("utf-8"), Loader=Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{source}: not YAML: {getattr(error, 'problem', error)}") from None
    allowed = tuple(field.name for field in fields(NodeTexts))
    entries = {k: v for k, v in entries.items() if v is not None} if isinstance(entries, dict) else {}
    if "root" not in entries or set(entries) - set(allowed):
        raise ConfigError(f"{source}: node texts have the keys {', '.join(allowed)}, root at least")
    if plain := [name for name in entries if name != "root" and not isinstance(entries[name], dict)]:
        raise ConfigError(f"{source}: {plain[0]} must be a mapping of names to texts")
    for name in ("languages", "answers"):
        if name in entries:
            entries[name] = {_code(str(key), source): value for key, value in entries[name].items()}
    for name, value in entries.items():
        inner = value if isinstance(value, dict) else {"": value}
        for key, text in inner.items():
            if name != "answers" and not isinstance(text, str | None):
                raise ConfigError(f"{source}: {f'{name}.{key}'.rstrip('.')} must be a text")
    return NodeTexts(**entries)


def _code(spelling: str, source: object) -> str:
    """A language by any of its codes."""
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
    """The system text: node texts from root to leaf, the task's, then the English twin and its answer."""
    lines = [text for node in path if (text := texts.of(node))]
    if task in texts.tasks:
        lines.append(texts.tasks[task])
    if path and (words := texts.answers.get(path[-1].name, {}).get(task)):
        # No blank before a word: it is then the same tokens as at the beginning of an answer.
        lines.append("; ".join(f"{english}={word}" for english, word in words.items()))
    if twin is not None:
        # Alone it is read as it stands: a label in front of it costs agreement with the English answer.
        alone = not lines and not answer
        lines.append(twin.instruction if alone else f"English: {twin.instruction}")
        if answer and twin.response is not None:
            lines.append(f"→ {twin.response}")
    return "\n".join(lines)


def teacher_prompt(
    tokenizer: PreTrainedTokenizerBase, system: str, instruction: str, *, limit: int, row: str
) -> tuple[int, ...]:
    """The teacher's prompt as ids.

    Raises:
        ConfigError: It is longer than `limit` tokens.
    """
    prompt = encode_prompt(tokenizer, instruction, system)
    if len(prompt) > limit:
        raise ConfigError(
            f"the teacher's prompt for {row} has {len(prompt)} tokens and the limit is {limit}; "
            "raise distill.max_prompt_length or shorten the node texts"
        )
    return prompt


def check_texts(texts: NodeTexts, path: tuple[Node, ...]) -> None:
    """Every node on a path says something.

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
    """Behind the teacher's prompt the template writes the response as it does behind the student's.

    Ids are appended as ids, so both always score the same tokens; but of a template that writes an answer in
    another way where a system text stands before, these would not be what the teacher expects to say.

    Raises:
        ConfigError: The two differ.
    """
    ours, theirs = (written_behind(tokenizer, instruction, response, text) for text in (None, system))
    if ours != theirs:
        said = [f"{one!r}" + (f" in place of {gone!r}" if gone else "") for one, gone in (theirs, ours)]
        raise ConfigError(
            f"the chat template writes the response of {row} behind the teacher's prompt as {said[0]} and "
            f"behind the student's as {said[1]}; set chat_template to one that writes both alike"
        )
