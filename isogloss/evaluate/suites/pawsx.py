"""PAWS-X: do two sentences of nearly the same words mean the same (Yang et al. 2019).

Asked in the wording of the demo's paraphrase task, with label words in the language.
"""

from collections.abc import Sequence
from pathlib import Path

from isogloss.data.examples import Turn
from isogloss.data.formats.lines import plain_or_gz
from isogloss.data.formats.tab import read_table
from isogloss.demo.grammar import phrases
from isogloss.errors import DataError
from isogloss.evaluate.items import Item, SuiteData
from isogloss.languages import SOURCE

LABELS = {"0": "different", "1": "same"}
LANGUAGES = ("en", "de", "es", "fr", "zh")
UNTRANSLATED = "NS"
"""What stands in the release where a sentence was not translated; such pairs are left out everywhere."""


def load(root: Path | None, split: str, languages: Sequence[str], items: int, sentences: int) -> SuiteData:
    """Every k-th pair of the split, in the languages that it has; no sentences."""
    if root is None:
        raise DataError("the pawsx suite needs a data root; set data_root or ISOGLOSS_DATA")
    codes = [SOURCE, *(code for code in languages if code in LANGUAGES)]
    tables = {code: _read(root, split, code) for code in codes}
    whole = [
        number
        for number, row in tables[SOURCE].items()
        if all(
            number in table
            and UNTRANSLATED not in (table[number]["sentence1"], table[number]["sentence2"])
            and table[number]["label"] == row["label"]
            for table in tables.values()
        )
    ]
    made = []
    for number in whole[:: max(1, len(whole) // items)][:items]:
        label = LABELS[tables[SOURCE][number]["label"]]
        turns = {
            code: Turn(
                phrases(code).instruction(
                    "paraphrase", 0, first=table[number]["sentence1"], second=table[number]["sentence2"]
                ),
                phrases(code).label("paraphrase", label),
            )
            for code, table in tables.items()
        }
        options = {code: phrases(code).labels("paraphrase") for code in codes}
        made.append(Item(number, "pawsx", turns, options, label))
    return SuiteData("pawsx", "1.0", split, tuple(made), {})


def _read(root: Path, split: str, code: str) -> dict[str, dict[str, str]]:
    wanted = root / "pawsx" / code / f"{split}_2k.tsv"
    path = plain_or_gz(wanted) or plain_or_gz(root / "x-final" / code / f"{split}_2k.tsv")
    if path is None:
        raise DataError(f"no PAWS-X {split} in {code}; put it there or leave the language out", wanted)
    rows = read_table(path, ("id", "sentence1", "sentence2", "label"))
    for line, row in enumerate(rows, start=2):
        if row["label"] not in LABELS:
            raise DataError(f"the label is {row['label']!r}; it must be 0 or 1", path, line)
    found: dict[str, dict[str, str]] = {}
    for line, row in enumerate(rows, start=2):
        if row["id"] in found:
            raise DataError(f"id {row['id']} occurs twice; keep one row of each", path, line)
        found[row["id"]] = row
    if not found:
        raise DataError("the file has no row below its header", path)
    return found
