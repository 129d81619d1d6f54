"""The common form of all data formats: one instruction with its response in several languages."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Turn:
    """One instruction and its response in one language; None if a teacher is to write the response."""

    instruction: str
    response: str | None = None


@dataclass(frozen=True, slots=True)
class ParallelExample:
    """One meaning in several languages.

    Attributes:
        turns: The turn in each language, by our language code.
        options: For a closed task, by language, the wording of each possible answer; None for an open task.
        source: Index of its source in the settings.
        own_response: Train on its responses as they are, whatever `distill.responses` says: no English answer
            can replace a translation, or words of a passage. Without a response, it is not used in stage 2.
        wordings: Other wordings of the English instruction that ask for the same answer. Only stage 1 reads
            them (`tune.vary_wording`); everything else takes the instruction as it stands in `turns`.
    """

    id: str
    task: str
    turns: Mapping[str, Turn]
    options: Mapping[str, Mapping[str, str]] | None = None
    source: int = 0
    own_response: bool = False
    wordings: tuple[str, ...] = ()
