"""Folder: read the files of a run once, independently of how they are shown.

Only `scores.json` is required. For every other file that is missing or damaged, `missing` holds one sentence
under its name, which the page prints in place of its section.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from isogloss.errors import RunError
from isogloss.files import read_json

SCHEMA: Final = 1

Row = Mapping[str, Any]


@dataclass(frozen=True)
class RunFolder:
    """The files of one run; None or empty if a file is in `missing`."""

    name: str
    scores: Row
    config: str | None
    ledger: list[Row]
    tree: list[Row]
    curves: list[Row]
    predictions: Mapping[str, tuple[list[Row], list[Row]]]
    missing: Mapping[str, str]


def read_folder(run: Path) -> RunFolder:
    """Read a run folder.

    Raises:
        RunError: `scores.json` is missing, is not JSON, has no suites, or has another schema.
    """
    missing: dict[str, str] = {}
    scores = _scores(run / "scores.json")
    return RunFolder(
        name=run.resolve().name,
        scores=scores,
        config=_text(run / "config.yaml", missing),
        ledger=_listed(run / "ledger.json", "stages", missing),
        tree=_listed(run / "tree.json", "nodes", missing),
        curves=_lines(run / "curves.jsonl", missing),
        predictions={
            suite: (
                _lines(run / f"predictions/{suite}.before.jsonl", missing, f"predictions/{suite}"),
                _lines(run / f"predictions/{suite}.after.jsonl", missing, f"predictions/{suite}"),
            )
            for suite in scores["suites"]
        },
        missing=missing,
    )


def _scores(path: Path) -> Row:
    if not path.is_file():
        raise RunError(f"{path} is missing; run `isogloss evaluate` first, which writes it")
    remedy = "remove it and run `isogloss evaluate` again"
    scores = read_json(path, "suites", remedy)
    if not isinstance(scores["suites"], dict):
        raise RunError(f"{path} has no suites; {remedy}")
    if scores.get("schema") != SCHEMA:
        raise RunError(f"{path} has schema {scores.get('schema')!r}; this version reads {SCHEMA}")
    return scores


def _text(path: Path, missing: dict[str, str], key: str | None = None) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        missing[key or path.name] = f"{path.name} is not in this run."
    except (OSError, ValueError):
        missing[key or path.name] = f"{path.name} cannot be read."
    return None


def _listed(path: Path, field: str, missing: dict[str, str]) -> list[Row]:
    text = _text(path, missing)
    if text is None:
        return []
    try:
        rows = json.loads(text)[field]
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise TypeError(field)
    except (ValueError, KeyError, TypeError):
        missing[path.name] = f"{path.name} has no list of {field} that can be read."
        return []
    return rows


def _lines(path: Path, missing: dict[str, str], key: str | None = None) -> list[Row]:
    text = _text(path, missing, key)
    rows: list[Row] = []
    damaged = 0
    for line in (text or "").split("\n"):  # not splitlines(): U+2028 may occur in a JSON string
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if isinstance(row, dict):
            rows.append(row)
        else:
            damaged += 1
    if damaged:  # a run stopped while writing leaves half a line
        missing[key or path.name] = f"{path.name}: lines that are not JSON objects were left out ({damaged})."
    return rows
