"""PAWS-X: whether two sentences with nearly the same words have the same meaning (Yang et al. 2019).

Instructions use the wording of the demo's paraphrase task, with label words in the language. The training
files are machine translations and are not used: the dev set is divided by what the English sentences share.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from isogloss.data.demo.grammar import phrases
from isogloss.data.division import Division, components
from isogloss.data.examples import ParallelExample, Turn
from isogloss.data.formats.lines import plain_or_gz
from isogloss.data.formats.tab import read_table
from isogloss.data.tasks.wordings import english_wordings
from isogloss.errors import DataError
from isogloss.languages import SOURCE

TASK = "pawsx"
LABELS = {"0": "different", "1": "same"}
LANGUAGES = ("en", "de", "es", "fr", "zh")
UNTRANSLATED = "NS"
"""Marks an untranslated sentence in the release; pairs with one are skipped."""

Table = dict[str, dict[str, str]]
"""The columns of each row, by ID."""


def ask(code: str, first: str, second: str, *, phrasing: int = 0) -> str:
    """Return the instruction for a pair of sentences, in one of the phrasings."""
    return phrases(code).instruction("paraphrase", phrasing, first=first, second=second)


@cache
def options(code: str) -> dict[str, str]:
    """Return the wording of each label."""
    return phrases(code).labels("paraphrase")


def read(root: Path, split: str, code: str) -> Table:
    """Return the pairs of a split in one language, without untranslated ones.

    Raises:
        DataError: The file is missing or damaged.
    """
    wanted = root / "pawsx" / code / f"{split}_2k.tsv"
    path = plain_or_gz(wanted) or plain_or_gz(root / "x-final" / code / f"{split}_2k.tsv")
    if path is None:
        raise DataError(f"no PAWS-X {split} in {code}; put it there or leave the language out", wanted)
    found: Table = {}
    for line, row in enumerate(read_table(path, ("id", "sentence1", "sentence2", "label")), start=2):
        if row["label"] not in LABELS:
            raise DataError(f"the label is {row['label']!r}; it must be 0 or 1", path, line)
        if row["id"] in found:
            raise DataError(f"id {row['id']} occurs twice; keep one row of each", path, line)
        found[row["id"]] = row
    if not found:
        raise DataError("the file has no row below its header", path)
    return {id: row for id, row in found.items() if UNTRANSLATED not in (row["sentence1"], row["sentence2"])}


def division(pairs: Mapping[str, tuple[str, str]]) -> Division:
    """Divide the dev set; English pairs linked by similar sentences, even indirectly, are in one part."""
    return Division("PAWS-X", "sentence", components(pairs))


def pairs(table: Table) -> dict[str, tuple[str, str]]:
    """Return both sentences of each row."""
    return {id: (row["sentence1"], row["sentence2"]) for id, row in table.items()}


def examples(root: Path, languages: Sequence[str], *, all_labels: bool) -> list[ParallelExample]:
    """Return the part of dev for training, in the languages that PAWS-X has; see `xnli.examples`."""
    codes = [SOURCE, *(code for code in languages if code in LANGUAGES)]
    tables = {code: read(root, "dev", code) for code in codes}
    divided = division(pairs(tables[SOURCE]))
    found = []
    for id, english in tables[SOURCE].items():
        if not divided.learned(id):
            continue
        rows = {code: table[id] for code, table in tables.items() if id in table}
        if all_labels:  # some translated pairs have a different label
            rows = {code: row for code, row in rows.items() if row["label"] == english["label"]}
        label = LABELS[english["label"]]
        turns = {
            code: Turn(
                ask(code, row["sentence1"], row["sentence2"]),
                options(code)[label] if all_labels or code == SOURCE else None,
            )
            for code, row in rows.items()
        }
        texts = {code: options(code) for code in rows}
        again = english_wordings(TASK, first=english["sentence1"], second=english["sentence2"])
        found.append(ParallelExample(f"{TASK}-{id}", TASK, turns, texts, wordings=again))
    return found
