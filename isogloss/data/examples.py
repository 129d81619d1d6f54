"""What every data format is read into: the same instruction, with its response, in several languages."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Turn:
    """One instruction and its response in one language; no response yet means a teacher writes it."""

    instruction: str
    response: str | None = None


@dataclass(frozen=True, slots=True)
class ParallelExample:
    """One meaning in several languages.

    Attributes:
        turns: By our language codes, what is said in each.
        options: For a closed task, by language, the wording of each possible meaning; None: open task.
        group: What is divided as a whole: the premise, passage or utterance; the example itself if not given.
        source: Which of the settings' sources it comes from.
        own_response: Its responses are learned as they stand, whatever `distill.responses` says: the text is
            a translation, not an answer that somebody gave.
    """

    id: str
    task: str
    turns: Mapping[str, Turn]
    options: Mapping[str, Mapping[str, str]] | None = None
    group: str = ""
    source: int = 0
    own_response: bool = False

    def __post_init__(self) -> None:
        if not self.group:
            object.__setattr__(self, "group", self.id)
