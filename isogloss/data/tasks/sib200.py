"""SIB-200: the topic of a sentence, one of seven, in 205 languages (Adelani et al. 2024).

Its sentences are FLORES-200's: up to 996 an index is the line of FLORES dev, counted from 0. Asked in the
wording of the demo's topic task, with the seven categories below. Its train file is learned, its dev file
reported.
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
from isogloss.errors import DataError
from isogloss.languages import SOURCE

TASK = "sib200"
Table = dict[str, tuple[str, str]]
"""By index, the category and the text."""


def ask(code: str, text: str, *, phrasing: int = 0) -> str:
    """The instruction about a sentence, in one of the wordings, and the categories to choose from."""
    return f"{phrases(code).instruction('topic', phrasing, text=text)}\n{choices(code)}"


def choices(code: str) -> str:
    """The categories on one line, as they are worded in a language."""
    return " / ".join(labels()[code].values())


@cache
def labels() -> dict[str, dict[str, str]]:
    """By language, the wording of each category."""
    return yaml.safe_load((resources.files("isogloss.data.tasks") / "sib200.yaml").read_text("utf-8"))


def read(root: Path, split: str, languages: Sequence[str]) -> dict[str, Table]:
    """The sentences of a split by language.

    Raises:
        DataError: A file is missing or damaged.
    """
    return {lang.code: _read(root, split, lang.flores200 or "") for lang in languages_of(languages, root)}


def examples(root: Path, languages: Sequence[str], *, all_labels: bool) -> list[ParallelExample]:
    """The train file, in the languages whose labels are worded here; see `xnli.examples`."""
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
        )
        for index, (category, _) in tables[SOURCE].items()
    ]


def flores_lines(root: Path) -> frozenset[int]:
    """The lines of FLORES, counted from 0, that stand in a train or dev file under the data root.

    The official release numbers those of devtest on from dev's.
    """
    found = set()
    for folder in sorted((root / "sib-200").glob("*_*")):
        for split in ("train", "dev"):
            if path := plain_or_gz(folder / f"{split}.tsv"):
                found |= {row["index_id"] for row in read_table(path, ("index_id",))}
    return frozenset(int(index) for index in found if index.isdecimal())


def _unquoted(text: str) -> str:
    """The release quotes a text that holds quotation marks as CSV does, in some languages."""
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
            raise DataError(f"{row['category']!r} is no category; {hint}", path, line)
        if row["index_id"] in found:
            raise DataError(f"index {row['index_id']} occurs twice; keep one row", path, line)
        found[row["index_id"]] = row["category"], _unquoted(row["text"])
    if not found:
        raise DataError("the file has no row below its header", path)
    return found
