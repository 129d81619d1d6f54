"""XNLI: does a hypothesis follow from a premise, in fifteen languages (Conneau et al. 2018).

Asked in the wording of the demo's inference task, with label words in the language.
"""

from collections.abc import Sequence
from pathlib import Path

from isogloss.data.examples import Turn
from isogloss.data.formats import xnli
from isogloss.demo.grammar import phrases
from isogloss.errors import DataError
from isogloss.evaluate.items import Item, SuiteData
from isogloss.languages import SOURCE


def load(root: Path | None, split: str, languages: Sequence[str], items: int, sentences: int) -> SuiteData:
    """Every k-th pair of the split, so that genres and labels are all met; no sentences."""
    if root is None:
        raise DataError("the xnli suite needs a data root; set data_root or ISOGLOSS_DATA")
    codes = [SOURCE, *languages]
    rows = xnli.read(root, split, codes)
    made = []
    for row in rows[:: max(1, len(rows) // items)][:items]:
        turns = {
            code: Turn(
                phrases(code).instruction(
                    "inference", 0, premise=row.premise[code], hypothesis=row.hypothesis[code]
                ),
                phrases(code).label("inference", row.label),
            )
            for code in codes
        }
        options = {code: phrases(code).labels("inference") for code in codes}
        made.append(Item(row.id, "xnli", turns, options, row.label))
    return SuiteData("xnli", "1.0", split, tuple(made), {})
