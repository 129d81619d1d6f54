"""NTREX-128: sentence retrieval in news, formatted like FLORES; a test set only (Federmann et al. 2022)."""

from collections.abc import Sequence
from pathlib import Path

from isogloss.data.draw import sample
from isogloss.data.formats import flores
from isogloss.data.formats.lines import languages_of
from isogloss.errors import DataError
from isogloss.evaluate.items import SuiteData
from isogloss.languages import SOURCE

FOR_LAYER = 200
"""Lines for choosing the layer; they are not reported."""


def load(root: Path, split: str, languages: Sequence[str], items: int, sentences: int) -> SuiteData:
    """Load sentences after the first `FOR_LAYER`, in the languages that NTREX has; no items."""
    if split != "test":
        raise DataError(
            f"NTREX has no {split} split; remove ntrex from evaluate.suites or set evaluate.split=test"
        )
    there = [language.code for language in languages_of(languages, root) if language.ntrex]
    lines = flores.read_ntrex(root, [SOURCE, *there])
    after = range(FOR_LAYER, len(lines[SOURCE]))
    chosen = sample(after, sentences)
    return SuiteData(
        "ntrex",
        "128",
        "test",
        (),
        {code: tuple(texts[n] for n in chosen) for code, texts in lines.items()},
        {code: texts[:FOR_LAYER] for code, texts in lines.items()},
    )
