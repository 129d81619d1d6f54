"""SIB-200: the topic of a sentence, one of seven, in 205 languages (Adelani et al. 2024).

Its sentences come from FLORES-200: an index up to 996 is a line of FLORES dev, counted from 0. Instructions
use the wording of the demo's topic task, followed by the seven categories. The train file is used for
training, the test or dev file for reported scores.
"""

from collections.abc import Sequence
from functools import cache
from importlib import resources
from pathlib import Path

import yaml

from isogloss.data.demo.grammar import phrases
from isogloss.data.examples import ParallelExample, Turn
from isogloss.data.formats.lines import languages_of, nearest, plain_or_gz
from isogloss.data.formats.tab import read_table
from isogloss.data.tasks.wordings import english_wordings
from isogloss.errors import DataError
from isogloss.languages import SOURCE

TASK = "sib200"
Table = dict[str, tuple[str, str]]
"""Category and text of each row, by index."""


def ask(code: str, text: str, *, phrasing: int = 0) -> str:
    """Return the instruction for a sentence, in one of the phrasings, with the categories to choose from."""
    return f"{phrases(code).instruction('topic', phrasing, text=text)}\n{choices(code)}"


def choices(code: str) -> str:
    """Return the categories in a language on one line."""
    return " / ".join(labels()[code].values())


@cache
def labels() -> dict[str, dict[str, str]]:
    """Return the wording of each category by language."""
    return yaml.safe_load((resources.files("isogloss.data.tasks") / "sib200.yaml").read_text("utf-8"))


def read(root: Path, split: str, languages: Sequence[str]) -> dict[str, Table]:
    """Return the sentences of a split by language.

    Raises:
        DataError: A file is missing or damaged.
    """
    return {lang.code: _read(root, split, lang.flores200 or "") for lang in languages_of(languages, root)}


def examples(root: Path, languages: Sequence[str], *, all_labels: bool) -> list[ParallelExample]:
    """Return the train file in the languages that have label wordings here; see `xnli.examples`."""
    wordings = labels()
    codes = [SOURCE, *(code for code in languages if code in wordings)]
    tables = read(root, "train", codes)
    return [
        ParallelExample(
            f"{TASK}-{index}",
            TASK,
            {
                code: Turn(
                    ask(code, table[index][1]),
                    wordings[code][category] if all_labels or code == SOURCE else None,
                )
                for code, table in tables.items()
                if index in table
            },
            {code: wordings[code] for code in codes},
            wordings=tuple(f"{again}\n{choices(SOURCE)}" for again in english_wordings(TASK, text=text)),
        )
        for index, (category, text) in tables[SOURCE].items()
    ]


def flores_lines(root: Path) -> frozenset[int]:
    """Return the FLORES lines, counted from 0, that occur in a train or dev file under the data root.

    The official release continues the numbers of dev in devtest.
    """
    found = set()
    for folder in sorted((root / "sib-200").glob("*_*")):
        for split in ("train", "dev"):
            if path := plain_or_gz(folder / f"{split}.tsv"):
                found |= {row["index_id"] for row in read_table(path, ("index_id",))}
    return frozenset(int(index) for index in found if index.isdecimal())


def _unquoted(text: str) -> str:
    """Undo CSV quoting, which the release uses in some languages for a text with quotation marks."""
    inner = text[1:-1].replace('""', "")
    quoted = len(text) > 1 and text[0] == text[-1] == '"' and '"' not in inner
    return text[1:-1].replace('""', '"') if quoted else text


def _read(root: Path, split: str, code: str) -> Table:
    wanted = root / "sib-200" / code / f"{split}.tsv"
    path = plain_or_gz(wanted)
    if path is None:
        raise DataError(f"no SIB-200 {split} in {code}; put it there or leave the language out", wanted)
    found: Table = {}
    for line, row in enumerate(read_table(path, ("index_id", "category", "text")), start=2):
        if row["category"] not in labels()[SOURCE]:
            hint = nearest(row["category"], labels()[SOURCE])
            raise DataError(f"{row['category']!r} is not a category; {hint}", path, line)
        if row["index_id"] in found:
            raise DataError(f"index {row['index_id']} occurs twice; keep one row", path, line)
        found[row["index_id"]] = row["category"], _unquoted(row["text"])
    if not found:
        raise DataError("the file has no row below its header", path)
    return found
