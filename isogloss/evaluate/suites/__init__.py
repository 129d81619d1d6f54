"""The registry of suites: a name, what loads it, and what a user must know about it."""

from collections.abc import Callable
from dataclasses import dataclass

from isogloss.evaluate.items import SuiteData
from isogloss.evaluate.suites import demo, flores101, massive, pawsx, sib200, xcopa, xnli


@dataclass(frozen=True)
class About:
    """What a suite measures, and where its data come from.

    Attributes:
        folders: Where it is looked for under the data root, the first that is there; none: in the package.
    """

    measures: str
    languages: str
    licence: str
    source: str
    folders: tuple[str, ...] = ()


SUITES: dict[str, Callable[..., SuiteData]] = {
    "demo": demo.load,
    "massive": massive.load,
    "flores101": flores101.load,
    "xnli": xnli.load,
    "pawsx": pawsx.load,
    "sib200": sib200.load,
    "xcopa": xcopa.load,
}
ABOUT: dict[str, About] = {
    "demo": About("seven tasks and retrieval on unseen meanings", "15", "Apache-2.0", "the package"),
    "massive": About(
        "intents and scenarios of utterances", "14 here, 51 in all", "CC BY 4.0",
        "MASSIVE 1.0, amazon-massive-dataset-1.0.tar.gz", ("massive", "1.0"),
    ),
    "flores101": About(
        "sentence retrieval with English", "101", "CC BY-SA 4.0",
        "FLORES-101 or FLORES-200, flores101_dataset.tar.gz", ("flores101_dataset", "flores200_dataset"),
    ),
    "xnli": About(
        "inference", "15", "CC BY-NC 4.0", "XNLI-1.0.zip, or XGLUE's XNLI folder", ("XNLI-1.0", "XNLI")
    ),
    "pawsx": About(
        "paraphrases of nearly the same words", "en de es fr zh", "free for any purpose",
        "PAWS-X, x-final.tar.gz", ("pawsx", "x-final"),
    ),
    "sib200": About(
        "topics of sentences", "15 here, 205 in all", "CC BY-SA 4.0", "SIB-200", ("sib-200",)
    ),
    "xcopa": About("causes and effects", "en sw th tr vi zh", "CC BY 4.0", "XCOPA", ("xcopa",)),
}  # fmt: skip
