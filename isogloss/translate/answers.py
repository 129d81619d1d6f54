"""Answers of a translator, kept by what was asked: each text, language, translator and prompt once."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from isogloss.files import Journal
from isogloss.languages import SOURCE

VERSION = 2
"""Of what a key stands for."""


class Wanted(NamedTuple):
    """A text that is to be said in a language, and the one that it is in; both by our codes."""

    text: str
    code: str
    source: str = SOURCE


@dataclass
class Spent:
    """What answers cost: requests, tokens read and written where the translator tells, and its seconds."""

    requests: int = 0
    tokens_read: int = 0
    tokens_written: int = 0
    seconds: float = 0.0

    def add(self, other: "Spent") -> None:
        """Count another's in."""
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)


@dataclass(frozen=True)
class Answer:
    """A translation, or why there is none.

    Attributes:
        spent: What it cost; of texts that are translated together the first has it all.
    """

    text: str | None
    why: str = ""
    spent: Spent = field(default_factory=Spent)


class Translator(Protocol):
    """Who translates; `run` keeps each answer as it comes."""

    name: str
    """For the report."""

    def identity(self, wanted: Wanted) -> list[Any]:
        """All that its answer depends on, as JSON values."""
        ...

    def plan(self, wanted: Sequence[Wanted]) -> str:
        """What the answers will cost, in one line."""
        ...

    def run(
        self,
        wanted: Sequence[Wanted],
        keep: Callable[[Wanted, Answer], None],
        progress: Callable[[int, int], None],
    ) -> None:
        """Translate, telling how many of how many are done."""
        ...


def key_of(translator: Translator, wanted: Wanted) -> str:
    """Names what is asked by its content and by who is asked in which words."""
    content = [VERSION, *wanted, translator.identity(wanted)]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:24]


def journal(path: Path) -> Journal[Answer]:
    """The answers that are kept in a file."""
    return Journal(path, _encode, _decode)


def _encode(answer: Answer) -> dict[str, Any]:
    said = {"why": answer.why} if answer.text is None else {"text": answer.text}
    return {**said, "spent": list(vars(answer.spent).values())}


def _decode(entry: Mapping[str, Any]) -> Answer:
    text, why = entry.get("text"), entry.get("why", "")
    if not isinstance(text, str | None) or not (isinstance(text, str) or why):
        raise ValueError("neither a translation nor why there is none")
    return Answer(text, why, Spent(*entry["spent"]))
