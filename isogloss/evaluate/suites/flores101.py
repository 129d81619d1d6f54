"""FLORES-101: sentence retrieval between English and each language (Goyal et al. 2022).

SIB-200's texts are lines of FLORES dev. If it is in the data root, they may be trained on, so they are used
to choose the layer and are never reported.
"""

from collections.abc import Sequence
from pathlib import Path

from isogloss.data.division import passages
from isogloss.data.draw import sample
from isogloss.data.formats import flores
from isogloss.data.tasks.sib200 import flores_lines
from isogloss.evaluate.items import SuiteData
from isogloss.evaluate.leaks import WORDS
from isogloss.languages import SOURCE

FOR_LAYER = 200
"""Lines of dev for choosing the layer; they are not reported."""


def load(root: Path, split: str, languages: Sequence[str], items: int, sentences: int) -> SuiteData:
    """Load sentences of dev or devtest; no items.

    Lines of dev are not reported if they are in SIB-200, share a passage with a line that is, or are used to
    choose the layer.
    """
    codes = [SOURCE, *languages]
    lines = dev = flores.read(root, "dev", codes)
    every = range(len(dev[SOURCE]))
    learned = flores_lines(root).intersection(every)
    first = sorted(every, key=lambda n: n not in learned)
    # Lines are sampled from the whole file, as neighbouring ones come from one article.
    for_layer = sample(first[: max(FOR_LAYER, len(learned))], FOR_LAYER)
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
        notes = (f"{len(learned)} lines of FLORES dev are in SIB-200 and are not reported.",)
    chosen = sample(reported, sentences)
    return SuiteData(
        name="flores101",
        revision=flores.release(root, "dev" if split == "dev" else "devtest", codes),
        split=name,
        items=(),
        sentences={code: tuple(texts[n] for n in chosen) for code, texts in lines.items()},
        layer_sentences={code: tuple(texts[n] for n in for_layer) for code, texts in dev.items()},
        notes=notes,
    )
