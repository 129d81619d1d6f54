"""Settings of what is measured."""

from typing import Annotated, Literal, get_args

from pydantic import (
    AfterValidator,
    Field,
)

from isogloss.config.base import Count, Others, Place, Settings, once

Suite = Literal[
    "demo",
    "massive",
    "flores101",
    "ntrex",
    "translation",
    "xnli",
    "pawsx",
    "sib200",
    "xcopa",
    "xquad",
    "mlqa",
    "xglue",
    "language_confusion",
    "parallel",
]
XglueTask = Literal["NER", "POS", "NC", "MLQA", "XNLI", "PAWSX", "QADSM", "WPR", "QAM", "QG", "NTG"]


class Xglue(Settings):
    """What the suite xglue holds."""

    path: Place | None = None
    """The unpacked folder xglue_full_dataset, or its archive; looked for in the data root if not given."""
    tasks: Annotated[tuple[XglueTask, ...], Field(min_length=1), AfterValidator(once)] = get_args(XglueTask)
    """Which tasks; the overall score is the mean over them."""
    skip_missing: bool = False
    """Leave out tasks and languages that are not there; else they are an error."""


class ParallelSuite(Settings):
    """What the suite parallel holds."""

    path: Place | None = None
    """Parallel JSON lines, as data of type parallel has them; with responses accuracy is measured too."""


class Translation(Settings):
    """What the suite translation measures."""

    spbleu: bool = True
    """Also BLEU on SentencePiece pieces; its model is fetched by sacrebleu on first use."""


class Evaluate(Settings):
    """What is measured before and after."""

    suites: Annotated[tuple[Suite, ...], Field(min_length=1), AfterValidator(once)] = ("demo",)
    """Suites, each with a table of its own in the report."""
    likelihood: Annotated[tuple[Suite, ...], AfterValidator(once)] = ()
    """Suites whose closed tasks are answered by the likeliest option; else the model writes its answer."""
    also: Others = ()
    """Languages that are measured but not taught; they answer through their family or the root."""
    split: Literal["dev", "test"] = "test"
    """Split of every suite that has it; choose settings on dev only. `experiments.ablate` and
    `experiments.compare_methods`, which are for choosing, take dev if not given."""
    items: Count = 210
    """Items per suite and language, at most."""
    sentences: Count = 300
    """Parallel sentences for retrieval, at most."""
    max_new_tokens: Count = 24
    """Longest answer."""
    batch_size: Count = 64
    """Prompts per forward."""
    layer: Count | None = None
    """Decoder layer for retrieval; chosen on dev sentences if not given."""
    xglue: Xglue = Xglue()
    """What the suite xglue holds."""
    translation: Translation = Translation()
    """What the suite translation measures."""
    parallel: ParallelSuite = ParallelSuite()
    """What the suite parallel holds."""
