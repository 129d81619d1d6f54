"""What a suite provides to the evaluation: items to answer and sentences to retrieve. Model-independent."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from isogloss.data.examples import Turn


@dataclass(frozen=True)
class Item:
    """One question in several languages.

    Attributes:
        turns: Instruction and reference response by language. Without English, consistency is undefined.
        options: For a closed task, by language, the wording of each possible meaning; None: open task.
        gold: The meaning of the right answer: a key of `options`, or None if unknown.
        answer_language: By instruction language, the language expected of the answer, where it differs.
        measures: Measures computed per item; the suite's own score may compute more.
        longest: Tokens that an answer may need; used if larger than the setting `max_new_tokens`.
        paraphrases: Other wordings of the English instruction with the same answer.
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
    """Results of a benchmark's own metrics.

    Attributes:
        tasks: By task and metric: `mean` over the languages, and `languages`.
        more: Further results, such as an overall mean or the number of unreadable answers.
        files: Prediction files in the benchmark's own format, by relative path.
    """

    tasks: Mapping[str, Mapping[str, Mapping[str, Any]]]
    more: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)

    def plain(self) -> dict[str, Any]:
        """Return a JSON-serialisable dict, without the files."""
        return {"tasks": {task: dict(metrics) for task, metrics in self.tasks.items()}, **self.more}


def over_languages(values: Mapping[str, float]) -> dict[str, Any]:
    """Return a metric's values with their unweighted mean."""
    return {"mean": sum(values.values()) / len(values), "languages": dict(values)}


@dataclass(frozen=True)
class SuiteData:
    """A suite's items and parallel sentences: `sentences[code][i]` means the same for every code."""

    name: str
    revision: str
    split: str
    items: tuple[Item, ...]
    sentences: Mapping[str, tuple[str, ...]]
    layer_sentences: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Parallel sentences for choosing retrieval's layers and computing its statistics; never reported."""
    score: Callable[[Mapping[str, Mapping[str, str]]], Official] | None = None
    """Computes the benchmark's own metrics from answers by language and item ID."""
    notes: tuple[str, ...] = ()
    """Notes for readers of the scores."""
