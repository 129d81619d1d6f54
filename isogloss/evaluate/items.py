"""What a suite hands to the evaluation: items to answer and sentences to retrieve. Knows no model."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from isogloss.data.examples import Turn


@dataclass(frozen=True)
class Item:
    """One question in several languages.

    Attributes:
        turns: Instruction and reference response by language; English is always there.
        options: For a closed task, by language, the wording of each possible meaning; None: open task.
        gold: The meaning of the right answer: a key of the options, or None where nobody knows it.
        answer_language: The language that an answer must be in, where it is not the instruction's.
    """

    id: str
    task: str
    turns: Mapping[str, Turn]
    options: Mapping[str, Mapping[str, str]] | None = None
    gold: str | None = None
    answer_language: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class SuiteData:
    """A suite's items and its parallel sentences: `sentences[code][i]` mean the same for every code."""

    name: str
    revision: str
    split: str
    items: tuple[Item, ...]
    sentences: Mapping[str, tuple[str, ...]]
    layer_sentences: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Parallel sentences on which the retrieval layer may be chosen; never those that are reported."""
