"""MLQA: extractive question answering about a passage, in seven languages (Lewis et al. 2020)."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from isogloss.data.tasks.mlqa import LANGUAGES, TASK, division, read
from isogloss.evaluate.items import SuiteData
from isogloss.evaluate.suites.xquad import questions, score
from isogloss.languages import SOURCE


def load(root: Path, split: str, languages: Sequence[str], items: int, sentences: int) -> SuiteData:
    """Load questions in the languages that MLQA has; no sentences.

    Of dev, only the part that is never trained on.
    """
    codes = [SOURCE, *(code for code in languages if code in LANGUAGES)]
    tables = {code: read(root, split, code) for code in codes}
    ids, notes = list(tables[SOURCE]), ()
    if split == "dev":
        divided = division(tables[SOURCE])
        ids = [id for id in ids if not divided.learned(id)]
        split, notes = divided.split, (divided.note,)
    # A question exists in English and some of the languages, so items are chosen per language.
    chosen = {
        item.id
        for code in codes[1:]
        for item in questions(TASK, tables, [id for id in ids if id in tables[code]], items)
    }
    made = questions(TASK, tables, [id for id in ids if id in chosen], len(ids))
    return SuiteData(TASK, "1.0", split, made, {}, score=partial(score, TASK, tables), notes=notes)
