"""What a suite hands to the evaluation: items to answer and sentences to retrieve. Knows no model."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from isogloss.data.examples import Turn


@dataclass(frozen=True)
class Item:
    """One question in several languages.

    Attributes:
        turns: Instruction and reference response by language. Without English nothing is said of consistency.
        options: For a closed task, by language, the wording of each possible meaning; None: open task.
        gold: The meaning of the right answer: a key of the options, or None where nobody knows it.
        answer_language: The language that an answer must be in, where it is not the instruction's.
        measures: What is judged item by item; the suite's own score may judge more.
        longest: Tokens that an answer may need, where that is more than the settings give.
        paraphrases: Other wordings of the English instruction, the same question with the same answer.
    """

    id: str
    task: str
    turns: Mapping[str, Turn]
    options: Mapping[str, Mapping[str, str]] | None = None
    gold: str | None = None
    answer_language: Mapping[str, str] = field(default_factory=dict)
    measures: frozenset[str] = frozenset({"consistency", "accuracy", "fidelity"})
    longest: int | None = None
    paraphrases: tuple[str, ...] = ()


@dataclass(frozen=True)
class Official:
    """What a benchmark's own metrics say of all answers.

    Attributes:
        tasks: By task and metric: `mean` over the languages, and `languages`.
        more: Whatever else belongs to the score: an overall mean, how many answers could not be read.
        files: Prediction files in the benchmark's own form, by relative path.
    """

    tasks: Mapping[str, Mapping[str, Mapping[str, Any]]]
    more: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)

    def plain(self) -> dict[str, Any]:
        """As JSON, without the files."""
        return {"tasks": {task: dict(metrics) for task, metrics in self.tasks.items()}, **self.more}


def over_languages(values: Mapping[str, float]) -> dict[str, Any]:
    """A metric's values with their plain mean."""
    return {"mean": sum(values.values()) / len(values), "languages": dict(values)}


@dataclass(frozen=True)
class SuiteData:
    """A suite's items and its parallel sentences: `sentences[code][i]` mean the same for every code."""

    name: str
    revision: str
    split: str
    items: tuple[Item, ...]
    sentences: Mapping[str, tuple[str, ...]]
    layer_sentences: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Parallel sentences that give retrieval its layers and statistics; never those that are reported."""
    score: Callable[[Mapping[str, Mapping[str, str]]], Official] | None = None
    """The benchmark's own metrics: from answers by language and item id."""
    notes: tuple[str, ...] = ()
    """What a reader of the scores must know."""
