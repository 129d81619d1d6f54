"""XNLI: does a hypothesis follow from a premise? In fifteen languages (Conneau et al. 2018)."""

from collections.abc import Sequence
from pathlib import Path

from isogloss.data.draw import sample
from isogloss.data.examples import Turn
from isogloss.data.formats import xnli
from isogloss.data.tasks.xnli import LANGUAGES, TASK, ask, division, options
from isogloss.evaluate.items import Item, SuiteData
from isogloss.languages import SOURCE


def load(root: Path, split: str, languages: Sequence[str], items: int, sentences: int) -> SuiteData:
    """Load pairs of the split, spread over the labels, in the languages that XNLI has; no sentences.

    Of dev, only the part that is never trained on.
    """
    codes = [SOURCE, *(code for code in languages if code in LANGUAGES)]
    rows, notes = xnli.read(root, split, codes), ()
    if split == "dev":
        divided = division({row.id: row.premise[SOURCE] for row in rows})
        rows = [row for row in rows if not divided.learned(row.id)]
        split, notes = divided.split, (divided.note,)
    made = [
        Item(
            row.id,
            TASK,
            {
                code: Turn(ask(code, row.premise[code], row.hypothesis[code]), options(code)[row.label])
                for code in codes
            },
            {code: options(code) for code in codes},
            row.label,
            paraphrases=(ask(SOURCE, row.premise[SOURCE], row.hypothesis[SOURCE], phrasing=1),),
        )
        for row in sample(rows, items, key=lambda row: row.id, strata=lambda row: (row.label,))
    ]
    return SuiteData(TASK, "1.0", split, tuple(made), {}, notes=notes)
