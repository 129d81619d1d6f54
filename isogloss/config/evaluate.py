"""Settings of the evaluation."""

from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, Field

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
CLOSED = ("demo", "massive", "xnli", "pawsx", "sib200", "xcopa", "xglue")
"""Suites with closed tasks, whose options can be scored by likelihood."""
TEST_ONLY = ("ntrex", "xquad")
"""Suites without a dev split."""
XglueTask = Literal["NER", "POS", "NC", "MLQA", "XNLI", "PAWSX", "QADSM", "WPR", "QAM", "QG", "NTG"]


class Xglue(Settings):
    """Options of the suite xglue."""

    path: Place | None = None
    """Unpacked folder xglue_full_dataset, or its archive; searched for in the data root if not given."""
    tasks: Annotated[tuple[XglueTask, ...], Field(min_length=1), AfterValidator(once)] = get_args(XglueTask)
    """Tasks to evaluate; the overall score is their mean."""
    skip_missing: bool = False
    """Skip tasks and languages whose data is missing; otherwise they raise an error."""


class ParallelSuite(Settings):
    """Options of the suite parallel."""

    path: Place | None = None
    """Your test file, in the layout of data type parallel. If it has responses, accuracy is measured too."""


class Translation(Settings):
    """Options of the suite translation."""

    spbleu: bool = True
    """Also compute spBLEU (BLEU on SentencePiece tokens); sacrebleu downloads its model on first use."""


class Evaluate(Settings):
    """What is measured, before and after stage 2."""

    suites: Annotated[tuple[Suite, ...], Field(min_length=1), AfterValidator(once)] = ("demo",)
    """Suites to evaluate; each gets its own table in the report."""
    likelihood: Annotated[tuple[Suite, ...], AfterValidator(once)] = ()
    """Suites whose closed tasks are scored by likelihood: the likeliest option is the answer. Only demo,
    massive, xnli, pawsx, sib200, xcopa and xglue have closed tasks. In all others the model generates its
    answer."""
    also: Others = ()
    """Languages to evaluate without training them; they use the adapter of their family or of the root."""
    split: Literal["dev", "test"] = "test"
    """Split to evaluate, in every suite that has it. Choose settings on dev only: `experiments.ablate` and
    `experiments.compare_methods`, which are for choosing settings, use dev if not given."""
    items: Count = 210
    """Maximum number of items per suite and language."""
    sentences: Count = 300
    """Maximum number of parallel sentences for retrieval."""
    max_new_tokens: Count = 24
    """Maximum length of generated answers in tokens, unless a suite allows more."""
    batch_size: Count = 64
    """Prompts per forward pass."""
    layer: Count | None = None
    """Decoder layer for retrieval; if not given, it is chosen on sentences that are not reported."""
    xglue: Xglue = Xglue()
    """Options of the suite xglue."""
    translation: Translation = Translation()
    """Options of the suite translation."""
    parallel: ParallelSuite = ParallelSuite()
    """Options of the suite parallel."""
