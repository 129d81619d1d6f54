"""SIB-200: the topic of a sentence, one of seven, in 205 languages (Adelani et al. 2024).

Its sentences are FLORES-200's, aligned by index. Asked in the wording of the demo's topic task.
"""

from collections.abc import Sequence
from functools import cache
from importlib import resources
from pathlib import Path

import yaml

from isogloss.data.examples import Turn
from isogloss.data.formats.lines import languages_of, nearest, plain_or_gz
from isogloss.data.formats.tab import read_table
from isogloss.demo.grammar import phrases
from isogloss.errors import DataError
from isogloss.evaluate.items import Item, SuiteData
from isogloss.languages import SOURCE


def load(root: Path | None, split: str, languages: Sequence[str], items: int, sentences: int) -> SuiteData:
    """Every k-th sentence of the split, in the languages whose labels are worded here; no sentences."""
    if root is None:
        raise DataError("the sib200 suite needs a data root; set data_root or ISOGLOSS_DATA")
    codes = [SOURCE, *(code for code in languages if code in labels())]
    tables = {lang.code: _read(root, split, lang.flores200 or "") for lang in languages_of(codes, root)}
    shared = [
        index
        for index, (category, _) in tables[SOURCE].items()
        if all(table.get(index, ("", ""))[0] == category for table in tables.values())
    ]
    made = []
    for index in shared[:: max(1, len(shared) // items)][:items]:
        category = tables[SOURCE][index][0]
        turns = {
            code: Turn(phrases(code).instruction("topic", 0, text=table[index][1]), labels()[code][category])
            for code, table in tables.items()
        }
        again = phrases(SOURCE).instruction("topic", 1, text=tables[SOURCE][index][1])
        options = {code: labels()[code] for code in codes}
        made.append(Item(index, "sib200", turns, options, category, paraphrases=(again,)))
    return SuiteData("sib200", "1.0", split, tuple(made), {})


@cache
def labels() -> dict[str, dict[str, str]]:
    """By language, the wording of each category."""
    source = resources.files("isogloss.evaluate.suites").joinpath("sib200.yaml")
    return yaml.safe_load(source.read_text("utf-8"))


def _read(root: Path, split: str, code: str) -> dict[str, tuple[str, str]]:
    wanted = root / "sib-200" / code / f"{split}.tsv"
    path = plain_or_gz(wanted)
    if path is None:
        raise DataError(f"no SIB-200 {split} in {code}; put it there or leave the language out", wanted)
    found: dict[str, tuple[str, str]] = {}
    for line, row in enumerate(read_table(path, ("index_id", "category", "text")), start=2):
        if row["category"] not in labels()[SOURCE]:
            hint = nearest(row["category"], labels()[SOURCE])
            raise DataError(f"{row['category']!r} is no category; {hint}", path, line)
        if row["index_id"] in found:
            raise DataError(f"index {row['index_id']} occurs twice; keep one row", path, line)
        found[row["index_id"]] = row["category"], row["text"]
    if not found:
        raise DataError("the file has no row below its header", path)
    return found
