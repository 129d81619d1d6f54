"""Settings of where instructions and parallel text come from."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    Discriminator,
    Field,
    Tag,
    model_validator,
)

from isogloss.config.base import Code, Count, Place, Positive, Settings, once, refusal

HUB = "hub:"
"""How a path names a data set of the Hub: hub:OWNER/NAME, with /CONFIG and @REVISION behind it."""


def on_hub(path: Path) -> bool:
    """Whether a path names a data set of the Hub."""
    return str(path).startswith(HUB)


class Source(Settings):
    """Where instructions come from."""

    weight: Positive = 1.0
    """Its share of a language's items, in proportion to the weights of all sources that have the language;
    what one of them cannot fill goes to the others."""


class DemoData(Source):
    """The instruction set that comes with the package."""

    type: Literal["demo"] = "demo"
    """Which kind of data: demo, massive, sib200, xnli, pawsx, mlqa, topic, parallel, chat or table."""
    english_items: Count = 8_000
    """English items for stage 1."""


class LabelledData(Source):
    """A labelled set under the data root, put into instructions."""

    english_items: Count | None = None
    """English items for stage 1, drawn over tasks and labels; all of them if not given."""
    responses: Literal["english", "all"] = "english"
    """Whose labels are read: of English alone, or of every language."""


class MassiveData(LabelledData):
    """MASSIVE: virtual-assistant utterances with intent, scenario and slots, parallel in 51 languages."""

    type: Literal["massive"] = "massive"
    """MASSIVE's train partition."""
    tasks: Annotated[tuple[Literal["intent", "scenario", "slot"], ...], AfterValidator(once)] = (
        "intent",
        "scenario",
        "slot",
    )
    """What is asked about an utterance; slots are asked in stage 1 only."""

    @model_validator(mode="after")
    def _for_both_stages(self) -> "MassiveData":
        if set(self.tasks) <= {"slot"}:
            raise refusal("tasks", "must name intent or scenario, as slots are asked in stage 1 only")
        return self


class Sib200Data(LabelledData):
    """SIB-200: the topic of a sentence, one of seven."""

    type: Literal["sib200"] = "sib200"
    """SIB-200's train file; its sentences are lines of FLORES, which the suites then leave out."""


class XnliData(LabelledData):
    """XNLI: does a hypothesis follow from a premise."""

    type: Literal["xnli"] = "xnli"
    """The part of XNLI's dev set that is never reported."""


class PawsxData(LabelledData):
    """PAWS-X: do two sentences of nearly the same words mean the same."""

    type: Literal["pawsx"] = "pawsx"
    """The part of PAWS-X's dev set that is never reported."""


class MlqaData(LabelledData):
    """MLQA: a question about a passage, answered with words of it."""

    type: Literal["mlqa"] = "mlqa"
    """The part of MLQA's dev set that is never reported."""
    max_chars: Count = 1_000
    """Longest passage; questions about longer ones are not asked."""


class TopicData(Source):
    """Unlabelled parallel text, asked for its topic in SIB-200's words; the model answers in English."""

    type: Literal["topic"] = "topic"
    """Sentences of parallel text, for stage 2 alone."""
    sentences: Annotated[
        tuple[Literal["tatoeba", "tico19", "course_text"], ...], Field(min_length=1), AfterValidator(once)
    ] = ("tatoeba", "tico19")
    """Which sets under the data root, drawn by the square root of their sizes."""
    max_chars: Count = 400
    """Longest sentence; pairs with a longer one are left out."""


class FileData(Source):
    """A file of the user's own."""

    english_items: Count | None = None
    """English items for stage 1, drawn over tasks and labels; all of them if not given."""
    path: Place
    """The file or folder, relative to the folder where the command runs, or a data set of the hub as
    hub:OWNER/NAME, with /CONFIG and @REVISION behind it where they are needed."""
    split: str | None = None
    """Which part of a folder or data set is read; train where it holds several and none is named."""


class ParallelFile(FileData):
    """Parallel JSON lines: one object with all languages, or one row per language sharing an id."""

    type: Literal["parallel"] = "parallel"
    """A file of parallel JSON lines."""


class ChatFile(FileData):
    """Chats: messages with a user and an assistant turn; languages are joined by id."""

    type: Literal["chat"] = "chat"
    """Chats, as JSON lines or any other table."""
    language: Code = "en"
    """The language of the rows that name none."""


class TableFile(FileData):
    """Parquet, CSV, JSON or Arrow, or a folder of them with splits and shards, as data sets are published."""

    type: Literal["table"] = "table"
    """A table, or a folder of them."""
    columns: dict[str, str]
    """From our field (id, task, language, instruction, response, sw.instruction …) to the table's column."""


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
    """Pairs of sentences without any task, English and another language, under the data root."""

    type: Literal["tatoeba", "tico19", "course_text", "massive"]
    """Tatoeba's sentences, TICO-19's about health, course text (machine-translated), or MASSIVE's train
    utterances."""
    items: Count = 2_000
    """Pairs per language, at most."""
    low_resource_factor: Positive = 1.0
    """How many times as often a pair of a low-resource language is read."""
    max_chars: Count = 400
    """Longest sentence; pairs with a longer one are left out."""
    use: Annotated[tuple[Literal["alignment", "translation"], ...], Field(min_length=1)] = (
        "alignment",
        "translation",
    )
    """`alignment`: bare sentences, for the hidden-state term; `translation`: instructions, both ways."""
