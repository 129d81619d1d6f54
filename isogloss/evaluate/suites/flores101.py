"""FLORES-101: sentence retrieval between English and each language (Goyal et al. 2022)."""

from collections.abc import Sequence
from pathlib import Path

from isogloss.data.formats import flores
from isogloss.errors import DataError
from isogloss.evaluate.items import SuiteData
from isogloss.languages import SOURCE

FOR_LAYER = 200
"""Lines of dev on which the layer is chosen; they are not reported."""


def load(root: Path | None, split: str, languages: Sequence[str], items: int, sentences: int) -> SuiteData:
    """Sentences of dev after the first 200, or of devtest; no items."""
    if root is None:
        raise DataError("the flores101 suite needs a data root; set data_root or ISOGLOSS_DATA")
    codes = [SOURCE, *languages]
    dev = flores.read(root, "dev", codes)
    chosen = {code: lines[FOR_LAYER:] for code, lines in dev.items()}
    if split == "test":
        chosen = flores.read(root, "devtest", codes)
    return SuiteData(
        name="flores101",
        revision="101",
        split="dev" if split == "dev" else "devtest",
        items=(),
        sentences={code: tuple(lines[:sentences]) for code, lines in chosen.items()},
        layer_sentences={code: tuple(lines[:FOR_LAYER]) for code, lines in dev.items()},
    )
