"""PAWS-X: do two sentences with nearly the same words mean the same? (Yang et al. 2019)"""

from collections.abc import Sequence
from pathlib import Path

from isogloss.data.draw import sample
from isogloss.data.examples import Turn
from isogloss.data.tasks.pawsx import LABELS, LANGUAGES, TASK, ask, division, options, pairs, read
from isogloss.evaluate.items import Item, SuiteData
from isogloss.languages import SOURCE


def load(root: Path, split: str, languages: Sequence[str], items: int, sentences: int) -> SuiteData:
    """Load pairs that all its languages have with the same label, spread over the labels; no sentences.

    Of dev, only the part that is never trained on.
    """
    codes = [SOURCE, *(code for code in languages if code in LANGUAGES)]
    tables = {code: read(root, split, code) for code in codes}
    english, notes = tables[SOURCE], ()
    whole = [
        id
        for id, row in english.items()
        if all(id in table and table[id]["label"] == row["label"] for table in tables.values())
    ]
    if split == "dev":
        divided = division(pairs(english))
        whole = [id for id in whole if not divided.learned(id)]
        split, notes = divided.split, (divided.note,)
    made = []
    for id in sample(whole, items, strata=lambda id: (english[id]["label"],)):
        label = LABELS[english[id]["label"]]
        turns = {
            code: Turn(ask(code, table[id]["sentence1"], table[id]["sentence2"]), options(code)[label])
            for code, table in tables.items()
        }
        again = ask(SOURCE, english[id]["sentence1"], english[id]["sentence2"], phrasing=1)
        wordings = {code: options(code) for code in codes}
        made.append(Item(id, TASK, turns, wordings, label, paraphrases=(again,)))
    return SuiteData(TASK, "1.0", split, tuple(made), {}, notes=notes)
