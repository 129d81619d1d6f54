"""SIB-200: the topic of a sentence, one of seven, in 205 languages (Adelani et al. 2024)."""

from collections.abc import Sequence
from pathlib import Path

from isogloss.data.draw import sample
from isogloss.data.examples import Turn
from isogloss.data.tasks.sib200 import TASK, ask, labels, read
from isogloss.evaluate.items import Item, SuiteData
from isogloss.languages import SOURCE


def load(root: Path, split: str, languages: Sequence[str], items: int, sentences: int) -> SuiteData:
    """Load sentences of the split, spread over topics, in the languages with templates; no retrieval."""
    codes = [SOURCE, *(code for code in languages if code in labels())]
    tables = read(root, split, codes)
    english = tables[SOURCE]
    shared = [
        index
        for index, (category, _) in english.items()
        if all(table.get(index, ("", ""))[0] == category for table in tables.values())
    ]
    made = []
    for index in sample(shared, items, strata=lambda index: (english[index][0],)):
        category = english[index][0]
        turns = {
            code: Turn(ask(code, table[index][1]), labels()[code][category]) for code, table in tables.items()
        }
        again = ask(SOURCE, english[index][1], phrasing=1)
        options = {code: labels()[code] for code in codes}
        made.append(Item(index, TASK, turns, options, category, paraphrases=(again,)))
    return SuiteData(TASK, "1.0", split, tuple(made), {})
