"""FLORES-101: sentence retrieval between English and each language (Goyal et al. 2022).

SIB-200's texts are lines of FLORES dev: where it lies in the data root, they may be learned, so they are
never reported, and choose the layer instead.
"""

from collections.abc import Sequence
from pathlib import Path

from isogloss.data.division import passages
from isogloss.data.draw import sample
from isogloss.data.formats import flores
from isogloss.data.tasks.sib200 import flores_lines
from isogloss.errors import DataError
from isogloss.evaluate.items import SuiteData
from isogloss.evaluate.leaks import WORDS
from isogloss.languages import SOURCE

FOR_LAYER = 200
"""Lines of dev on which the layer is chosen; they are not reported."""


def load(root: Path | None, split: str, languages: Sequence[str], items: int, sentences: int) -> SuiteData:
    """Sentences of dev but for those of SIB-200 and those that choose the layer, or of devtest; no items."""
    if root is None:
        raise DataError("the flores101 suite needs a data root; set data_root or ISOGLOSS_DATA")
    codes = [SOURCE, *languages]
    lines = dev = flores.read(root, "dev", codes)
    every = range(len(dev[SOURCE]))
    learned = flores_lines(root).intersection(every)
    first = [*(n for n in every if n in learned), *(n for n in every if n not in learned)]
    for_layer = _some(first[: max(FOR_LAYER, len(learned))], FOR_LAYER)
    taken = {passage for n in learned for passage in passages(dev[SOURCE][n], WORDS)} if learned else set()
    reported = [
        n
        for n in every
        if n not in learned and n not in for_layer and taken.isdisjoint(passages(dev[SOURCE][n], WORDS))
    ]
    name, notes = "dev", ()
    if split == "test":
        lines = flores.read(root, "devtest", codes)
        name, reported = "devtest", list(range(len(lines[SOURCE])))
    elif learned:
        name = f"dev ({len(reported)} lines without SIB-200's)"
        notes = (f"{len(learned)} lines of FLORES dev are SIB-200's and are not reported.",)
    chosen = _some(reported, sentences)
    return SuiteData(
        name="flores101",
        revision="101",
        split=name,
        items=(),
        sentences={code: tuple(texts[n] for n in chosen) for code, texts in lines.items()},
        layer_sentences={code: tuple(texts[n] for n in for_layer) for code, texts in dev.items()},
        notes=notes,
    )


def _some(lines: Sequence[int], most: int) -> list[int]:
    """So many lines, spread over the file, whose neighbours are of one article."""
    return sample(lines, most, key=str, strata=lambda n: ())
