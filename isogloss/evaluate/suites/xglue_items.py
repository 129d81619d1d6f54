"""Convert XGLUE's rows to items: instructions from the templates in `xglue.yaml`, and answer options."""

from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any

import yaml

from isogloss.data.examples import Turn
from isogloss.data.formats import xglue
from isogloss.data.formats.xglue import XglueRow
from isogloss.data.tasks import mlqa, pawsx, xnli
from isogloss.evaluate.items import Item
from isogloss.languages import SOURCE

LONGEST = {"NER": 256, "POS": 256, "MLQA": mlqa.LONGEST, "QG": 48, "NTG": 48}
"""Maximum tokens of an answer."""
MEASURES = {"NER": (), "POS": (), "QG": ("fidelity",), "NTG": ("fidelity",)}
"""Per-item measures of tasks that do not have all of them: a whole headline is hardly ever right."""
CUT = 1_500
"""Characters after which an article is truncated; not for the tasks in `SHARED`."""

SHARED = {"XNLI": xnli, "PAWSX": pawsx, "MLQA": mlqa}
"""Tasks that use the templates of the dataset of that name."""

Made = tuple[str, Item, Mapping[str, XglueRow]]
"""The task, an item of it, and its row in each language."""


def make_items(rows: Mapping[str, Mapping[str, Mapping[str, XglueRow]]]) -> list[Made]:
    """Build items from rows by task, language and ID."""
    return [
        (task, _item(task, id, twins), twins)
        for task, by_language in rows.items()
        for id, twins in _twins(task, by_language).items()
    ]


def ask(task: str, code: str, row: XglueRow) -> str:
    """Return a task's instruction for a row."""
    parts: dict[str, Any] = dict(row.parts)
    if task in SHARED:
        return SHARED[task].ask(code, **parts)
    parts = {name: text if len(text) <= CUT else f"{text[:CUT]} …" for name, text in parts.items()}
    if task in xglue.TAGS:
        text = " ".join("_".join(token.split()) for token in row.tokens)
        parts = {"text": text, "count": len(row.tokens), "tags": ", ".join(xglue.TAGS[task])}
    if task in wordings()["labels"]:
        parts["labels"] = ", ".join(labels(task, code).values())
    return wordings()["ask"][task][code].format(**parts)


def labels(task: str, code: str) -> dict[str, str]:
    """Return the wordings of a closed task's labels in a language."""
    if task == "XNLI":
        return xnli.options(code)
    if task == "PAWSX":
        return {label: pawsx.options(code)[name] for label, name in pawsx.LABELS.items()}
    return wordings()["labels"][task][code]


@cache
def wordings() -> dict[str, Any]:
    """Load the instruction templates and label wordings, by task and language."""
    return yaml.safe_load(
        resources.files("isogloss.evaluate.suites").joinpath("xglue.yaml").read_text("utf-8")
    )


def _twins(task: str, by_language: Mapping[str, Mapping[str, XglueRow]]) -> dict[str, dict[str, XglueRow]]:
    """Group rows into items: by ID if the task is parallel and the English label is equal, else singly."""
    found: dict[str, dict[str, XglueRow]] = {}
    english = by_language.get(SOURCE, {}) if task in xglue.PARALLEL else {}
    for code, rows in by_language.items():
        for id, row in rows.items():
            twin = english.get(id)
            same = twin is not None and (task == "MLQA" or row.gold == twin.gold)
            found.setdefault(f"{task}-{id}" if same else f"{task}-{id}-{code}", {})[code] = row
    return found


def _item(task: str, id: str, rows: Mapping[str, XglueRow]) -> Item:
    closed = task in xglue.LABELS
    options = {code: labels(task, code) for code in rows} if closed else None

    def response(code: str, row: XglueRow) -> str:
        if closed:
            return labels(task, code)[row.gold[0]]
        return " ".join(row.gold) if row.tokens else row.gold[0]

    return Item(
        id,
        task,
        {code: Turn(ask(task, code, row), response(code, row)) for code, row in rows.items()},
        options,
        next(iter(rows.values())).gold[0] if closed else None,
        measures=frozenset(MEASURES.get(task, ("consistency", "accuracy", "fidelity"))),
        longest=LONGEST.get(task),
    )
