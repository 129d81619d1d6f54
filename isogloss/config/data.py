"""Settings of the data sources: instructions and parallel text."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag, model_validator

from isogloss.config.base import Code, Count, Place, Positive, Settings, once, refusal

HUB = "hub:"
"""Prefix of a path that names a dataset on the Hub: hub:OWNER/NAME, optionally with /CONFIG and @REVISION."""


def on_hub(path: Path) -> bool:
    """Whether a path names a dataset on the Hub."""
    return str(path).startswith(HUB)


class Source(Settings):
    """Base class of the sources of instructions."""

    weight: Positive = 1.0
    """Sampling weight of the source. The items of a language are split between all sources that have the
    language, in proportion to their weights; what one source cannot fill goes to the others."""


class DemoData(Source):
    """The demo's instruction set, included in the package."""

    type: Literal["demo"] = "demo"
    """Kind of source: demo, massive, sib200, xnli, pawsx, mlqa, topic, parallel, chat or table."""
    english_items: Count = 8_000
    """Number of English items for stage 1."""


class LabelledData(Source):
    """A labelled dataset under the data root, turned into instructions."""

    english_items: Count | None = None
    """Maximum number of English items for stage 1, sampled by task and label; all items if not given."""
    responses: Literal["english", "all"] = "english"
    """Languages whose labels are used as responses: `english` only, or `all`. With `english` the other
    languages learn from this source only with `distill.responses: teacher`."""


class MassiveData(LabelledData):
    """MASSIVE: virtual-assistant utterances with intent, scenario and slots, parallel in 51 languages."""

    type: Literal["massive"] = "massive"
    """MASSIVE's train partition."""
    tasks: Annotated[tuple[Literal["intent", "scenario", "slot"], ...], AfterValidator(once)] = (
        "intent",
        "scenario",
        "slot",
    )
    """Tasks built from each utterance; slot is used in stage 1 only."""

    @model_validator(mode="after")
    def _for_both_stages(self) -> "MassiveData":
        if set(self.tasks) <= {"slot"}:
            raise refusal("tasks", "must include intent or scenario, as slot is used in stage 1 only")
        return self


class Sib200Data(LabelledData):
    """SIB-200: topic classification of sentences, with seven topics."""

    type: Literal["sib200"] = "sib200"
    """SIB-200's train file. Its sentences are lines of FLORES, which the FLORES suites do not report."""


class XnliData(LabelledData):
    """XNLI: natural language inference (does a hypothesis follow from a premise?)."""

    type: Literal["xnli"] = "xnli"
    """The part of XNLI's dev set that evaluation never reports."""


class PawsxData(LabelledData):
    """PAWS-X: paraphrase identification (do two sentences with nearly the same words mean the same?)."""

    type: Literal["pawsx"] = "pawsx"
    """The part of PAWS-X's dev set that evaluation never reports."""


class MlqaData(LabelledData):
    """MLQA: questions about a passage, answered with words from it. Stage 2 only uses them with the data's
    answers in each language (`responses: all`), as English ones would make the model answer in English."""

    type: Literal["mlqa"] = "mlqa"
    """The part of MLQA's dev set that evaluation never reports."""
    max_chars: Count = 1_000
    """Maximum passage length in characters; questions about longer passages are skipped."""


class TopicData(Source):
    """Topic classification on unlabelled parallel text, with SIB-200's labels. Answers are the model's."""

    type: Literal["topic"] = "topic"
    """Sentences of parallel text, for stage 2 only."""
    sentences: Annotated[
        tuple[Literal["tatoeba", "tico19", "course_text"], ...], Field(min_length=1), AfterValidator(once)
    ] = ("tatoeba", "tico19")
    """Sets of sentences under the data root, sampled in proportion to the square root of their sizes."""
    max_chars: Count = 400
    """Maximum sentence length in characters; pairs with a longer sentence are dropped."""


class FileData(Source):
    """A user's own file, folder or Hub dataset."""

    english_items: Count | None = None
    """Maximum number of English items for stage 1, sampled by task and label; all items if not given."""
    path: Place
    """File or folder, relative to the working directory, or a dataset on the Hub: hub:OWNER/NAME, optionally
    followed by /CONFIG and @REVISION."""
    split: str | None = None
    """Split of a folder or dataset to read. If not given, train where there are several."""


class ParallelFile(FileData):
    """Parallel data: one object with all languages per item, or one row per language, joined by id."""

    type: Literal["parallel"] = "parallel"
    """Parallel data, as JSON lines or another table."""


class ChatFile(FileData):
    """Chats: messages with a user and an assistant turn. Languages are joined by id."""

    type: Literal["chat"] = "chat"
    """Chats, as JSON lines or another table."""
    language: Code = "en"
    """Language of rows that do not name one."""


class TableFile(FileData):
    """A table (Parquet, CSV, JSON or Arrow), or a folder of tables with splits and shards."""

    type: Literal["table"] = "table"
    """A table, or a folder of them."""
    columns: dict[str, str]
    """Column map: from a field (id, task, language, instruction, response, sw.instruction …) to a column of
    the table, or to a template of columns such as "{premise} {hypothesis}"."""


AnySource = Annotated[
    DemoData
    | MassiveData
    | Sib200Data
    | XnliData
    | PawsxData
    | MlqaData
    | TopicData
    | ParallelFile
    | ChatFile
    | TableFile,
    Field(discriminator="type"),
]
ONE, SEVERAL = "one source", "several sources"
Data = Annotated[
    Annotated[AnySource, Tag(ONE)]
    | Annotated[Annotated[tuple[AnySource, ...], Field(min_length=1)], Tag(SEVERAL)],
    Discriminator(lambda given: SEVERAL if isinstance(given, list | tuple) else ONE),
]


class ParallelText(Settings):
    """Sentence pairs of English and another language, without a task, under the data root."""

    type: Literal["tatoeba", "tico19", "course_text", "massive"]
    """Source of the pairs. `tatoeba`: Tatoeba's sentences. `tico19`: TICO-19's sentences about health.
    `course_text`: course text, machine-translated. `massive`: MASSIVE's train utterances."""
    items: Count = 2_000
    """Maximum number of pairs per language."""
    low_resource_factor: Positive = 1.0
    """Factor for the number of pairs of low-resource languages; repeats pairs if the source has too few."""
    max_chars: Count = 400
    """Maximum sentence length in characters; pairs with a longer sentence are dropped."""
    use: Annotated[tuple[Literal["alignment", "translation"], ...], Field(min_length=1)] = (
        "alignment",
        "translation",
    )
    """How pairs are used. `alignment`: as bare sentences in the hidden-state term. `translation`: as
    instructions to translate, in both directions."""
