"""Cache of a translator's answers, one per text, language pair, translator and prompt."""

import hashlib
import json
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from isogloss.files import Journal
from isogloss.languages import SOURCE

VERSION = 2
"""Version of the cache key's contents."""


class Wanted(NamedTuple):
    """A text to translate, with its target (`code`) and source languages as isogloss codes."""

    text: str
    code: str
    source: str = SOURCE


@dataclass
class Spent:
    """Cost of answers: requests, prompt and completion tokens (where reported), and seconds."""

    requests: int = 0
    tokens_read: int = 0
    tokens_written: int = 0
    seconds: float = 0.0

    def add(self, other: "Spent") -> None:
        """Add another cost to this one, in place."""
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)


@dataclass(frozen=True)
class Answer:
    """A translation, or None with the reason in `why`.

    Attributes:
        spent: Cost of the answer; for texts translated together, the first one carries the whole cost.
    """

    text: str | None
    why: str = ""
    spent: Spent = field(default_factory=Spent)


class Translator(Protocol):
    """Interface of a translator; `run` stores each answer as soon as it arrives."""

    name: str
    """Name shown in the report."""

    @abstractmethod
    def identity(self, wanted: Wanted) -> list[Any]:
        """Return everything that the answer depends on, as JSON values (part of the cache key)."""

    @abstractmethod
    def plan(self, wanted: Sequence[Wanted]) -> str:
        """Return a one-line estimate of the cost."""

    @abstractmethod
    def run(
        self,
        wanted: Sequence[Wanted],
        keep: Callable[[Wanted, Answer], None],
        progress: Callable[[int, int], None],
    ) -> None:
        """Translate, pass each answer to `keep`, and report (done, total) to `progress`."""


def key_of(translator: Translator, wanted: Wanted) -> str:
    """Return the cache key: a hash of the text, its languages and the translator's identity."""
    content = [VERSION, *wanted, translator.identity(wanted)]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:24]


def journal(path: Path) -> Journal[Answer]:
    """Open the journal of cached answers in a file."""
    return Journal(path, _encode, _decode)


def _encode(answer: Answer) -> dict[str, Any]:
    said = {"why": answer.why} if answer.text is None else {"text": answer.text}
    return {**said, "spent": list(vars(answer.spent).values())}


def _decode(entry: Mapping[str, Any]) -> Answer:
    text, why = entry.get("text"), entry.get("why", "")
    if not isinstance(text, str | None) or not (isinstance(text, str) or why):
        raise ValueError("neither a translation nor a reason for its absence")
    return Answer(text, why, Spent(*entry["spent"]))
