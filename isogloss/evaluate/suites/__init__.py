"""Registry of suites: name, loader, and user-facing information."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from types import ModuleType
from typing import Any

from isogloss.config import Evaluate
from isogloss.errors import DataError
from isogloss.evaluate.items import SuiteData
from isogloss.evaluate.suites import (
    demo,
    flores101,
    language_confusion,
    massive,
    mlqa,
    ntrex,
    parallel,
    pawsx,
    sib200,
    translation,
    xcopa,
    xglue,
    xnli,
    xquad,
)


@dataclass(frozen=True)
class About:
    """What a suite measures, and where its data come from.

    Attributes:
        folders: Patterns of folders or archives under the data root, of which the first existing one is used;
            empty if the data are in the package or have a path setting.
    """

    measures: str
    languages: str
    licence: str
    source: str
    folders: tuple[str, ...] = ()


def _needing_root(suite: ModuleType) -> Callable[..., SuiteData]:
    @wraps(suite.load)
    def load(root: Path | None, *given: Any, **more: Any) -> SuiteData:
        if root is None:
            name = suite.__name__.rpartition(".")[2]
            raise DataError(f"the {name} suite needs a data root; set data_root or ISOGLOSS_DATA")
        return suite.load(root, *given, **more)

    return load


SUITES: dict[str, Callable[..., SuiteData]] = {
    "demo": demo.load,
    "massive": _needing_root(massive),
    "flores101": _needing_root(flores101),
    "xnli": _needing_root(xnli),
    "pawsx": _needing_root(pawsx),
    "sib200": _needing_root(sib200),
    "xcopa": _needing_root(xcopa),
    "xglue": xglue.load,
    "ntrex": _needing_root(ntrex),
    "translation": _needing_root(translation),
    "xquad": _needing_root(xquad),
    "mlqa": _needing_root(mlqa),
    "language_confusion": _needing_root(language_confusion),
    "parallel": parallel.load,
}
FLORES = ("flores101_dataset", "flores200_dataset", "floresp*", "flores*plus*")
ABOUT: dict[str, About] = {
    "demo": About("seven tasks and retrieval on unseen meanings", "15", "Apache-2.0", "the package"),
    "massive": About(
        "intents and scenarios of utterances",
        "25 here, 51 in all",
        "CC BY 4.0",
        "MASSIVE 1.0 or 1.1, amazon-massive-dataset-1.0.tar.gz",
        ("massive", "1.0", "1.1"),
    ),
    "flores101": About(
        "sentence retrieval with English",
        "101",
        "CC BY-SA 4.0",
        "FLORES-101 or FLORES-200, flores101_dataset.tar.gz",
        FLORES,
    ),
    "xnli": About(
        "inference", "15", "CC BY-NC 4.0", "XNLI-1.0.zip, or XGLUE's XNLI folder", ("XNLI-1.0", "XNLI")
    ),
    "pawsx": About(
        "paraphrases of nearly the same words",
        "en de es fr zh",
        "free for any purpose",
        "PAWS-X, x-final.tar.gz",
        ("pawsx", "x-final"),
    ),
    "sib200": About("topics of sentences", "15 here, 205 in all", "CC BY-SA 4.0", "SIB-200", ("sib-200",)),
    "xcopa": About("causes and effects", "en sw th tr vi zh", "CC BY 4.0", "XCOPA", ("xcopa",)),
    "xglue": About(
        "eleven tasks, by the benchmark's own metrics",
        "19 in all, 3 to 18 a task",
        "non-commercial research only",
        "XGLUE, xglue_full_dataset.tar.gz, or other releases of its parts",
        (
            "xglue_*",
            "XNLI-1.0",
            "XNLI",
            "pawsx",
            "x-final",
            "MLQA_V1",
            "udpos",
            "wikiann",
        ),
    ),
    "ntrex": About(
        "sentence retrieval with English, in news", "128", "CC BY-SA 4.0", "NTREX-128", ("NTREX-128",)
    ),
    "translation": About(
        "translation from and into English",
        "101",
        "CC BY-SA 4.0",
        "as flores101",
        FLORES,
    ),
    "xquad": About(
        "questions about a paragraph",
        "en ar de el es hi ro ru th tr vi zh",
        "CC BY-SA 4.0",
        "XQuAD",
        ("xquad",),
    ),
    "mlqa": About(
        "questions about a passage", "en ar de es hi vi zh", "CC BY-SA 3.0", "MLQA_V1.zip", ("MLQA_V1",)
    ),
    "language_confusion": About(
        "answers in the language asked for, by line and by word",
        "15",
        "Apache-2.0",
        "Language Confusion Benchmark, folder test_sets",
        ("language_confusion", "language_confusion_sample"),
    ),
    "parallel": About("your own instructions", "those of the file", "yours", "evaluate.parallel.path"),
}


def load_suite(
    name: str,
    root: Path | None,
    settings: Evaluate,
    languages: Sequence[str],
    items: int | None = None,
    sentences: int | None = None,
) -> SuiteData:
    """Load a suite according to the settings; a setting with the suite's name is passed on as its options.

    Args:
        items: Overrides `settings.items`.
        sentences: Overrides `settings.sentences`.

    Raises:
        DataError: The suite's data are missing or damaged.
    """
    more = {"options": getattr(settings, name)} if name in Evaluate.model_fields else {}
    most = settings.items if items is None else items
    lines = settings.sentences if sentences is None else sentences
    return SUITES[name](root, settings.split, languages, most, lines, **more)
