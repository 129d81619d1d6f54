"""XCOPA: choose the likelier of two causes or effects (Ponti et al. 2020); English is from COPA."""

from collections.abc import Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from isogloss.data.draw import sample
from isogloss.data.examples import Turn
from isogloss.data.formats.lines import is_text, plain_or_gz, read_objects
from isogloss.errors import DataError
from isogloss.evaluate.items import Item, SuiteData
from isogloss.languages import SOURCE

KEYS = ("premise", "choice1", "choice2", "question", "label", "idx")
FILES = {"dev": "val", "test": "test"}


def load(root: Path, split: str, languages: Sequence[str], items: int, sentences: int) -> SuiteData:
    """Load premises, spread over question and answer, in the languages with templates; no sentences.

    Whether a cause or an effect is asked for is taken from English: the Thai and Turkish files say `effect`
    in every row, also where premise and choices are those of an English cause.
    """
    codes = [SOURCE, *(code for code in languages if code in questions())]
    tables = {code: _read(root, FILES[split], code) for code in codes}
    english = tables[SOURCE]
    shared = [
        idx
        for idx, row in english.items()
        if all(idx in table and table[idx]["label"] == row["label"] for table in tables.values())
    ]
    strata = {idx: (english[idx]["question"], str(english[idx]["label"])) for idx in shared}
    made = []
    for idx in sample(shared, items, strata=strata.__getitem__):
        gold = str(english[idx]["label"])
        options = {code: {"0": t[idx]["choice1"], "1": t[idx]["choice2"]} for code, t in tables.items()}
        turns = {
            code: Turn(
                questions()[code][english[idx]["question"]].format(
                    premise=table[idx]["premise"], first=options[code]["0"], second=options[code]["1"]
                ),
                options[code][gold],
            )
            for code, table in tables.items()
        }
        made.append(Item(str(idx), "xcopa", turns, options, gold))
    return SuiteData("xcopa", "1.0", split, tuple(made), {})


@cache
def questions() -> dict[str, dict[str, str]]:
    """Return the question templates for causes and effects by language."""
    source = resources.files("isogloss.evaluate.suites").joinpath("xcopa.yaml")
    return yaml.safe_load(source.read_text("utf-8"))


def _read(root: Path, split: str, code: str) -> dict[int, dict[str, Any]]:
    wanted = root / "xcopa" / "data" / code / f"{split}.{code}.jsonl"
    path = plain_or_gz(wanted)
    if path is None:
        raise DataError(f"no XCOPA {split} in {code}; put it there or leave the language out", wanted)
    found: dict[int, dict[str, Any]] = {}
    for line, row in read_objects(path):
        if missing := [key for key in KEYS if key not in row]:
            raise DataError(f"the object has no {', '.join(missing)}", path, line)
        for key in KEYS[:3]:
            if not is_text(row[key]) or not row[key].strip():
                raise DataError(f"{key} is {row[key]!r}; it must be a text", path, line)
        if not isinstance(row["idx"], int):
            raise DataError(f"idx is {row['idx']!r}; it must be a whole number", path, line)
        # By their text, as 1.0 and true equal 1.
        if row["question"] not in ("cause", "effect") or repr(row["label"]) not in ("0", "1"):
            asked = f"question is {row['question']!r} and label {row['label']!r}"
            raise DataError(f"{asked}; they must be cause or effect, and 0 or 1", path, line)
        if row["idx"] in found:
            raise DataError(f"idx {row['idx']} occurs twice; keep one row", path, line)
        found[row["idx"]] = row
    if not found:
        raise DataError("the file is empty; it must hold one object a line", path)
    return found
