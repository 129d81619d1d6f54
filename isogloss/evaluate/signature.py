"""Signatures: everything that makes a score, in one line, and what two runs must share to be compared.

A signature is `name:value` joined by `|`. What was measured, on which data and in which way must be the same
in both runs; who was measured, which is what a comparison is about, may differ.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Final

from isogloss.evaluate.items import SuiteData
from isogloss.languages import SOURCE

RULER: Final = 6
"""To be raised when a measure, its layer or its interval is computed otherwise: scores are then made anew."""
SUBJECT: Final = frozenset({"model", "adapters", "template", "seed", "layer", "raw_layer", "isogloss"})
"""What may differ between runs that are compared: the model, its adapters, what its prompts look like, the
run's seed, the layers that each side was found to be best at, and the program's version.
"""
NOT_SIGNED: Final = frozenset(
    {
        "suites",
        "also",
        "likelihood",
        "languages",
        "batch_size",
        "path",
        "items",
        "sentences",
        "layer",
        "split",
    }
)
"""Settings of `evaluate` that change no score, or that other fields tell more exactly (`path`: the data;
`split`: the suite's own, which may be a part of dev)."""

Fields = dict[str, str]


def signature(fields: Mapping[str, Any]) -> str:
    """As one line."""
    return "|".join(f"{name}:{value}" for name, value in fields.items())


def fields_of(line: str) -> Fields:
    """The fields of a signature."""
    return {name: value for name, _, value in (part.partition(":") for part in line.split("|"))}


def settings_fields(settings: Mapping[str, Any]) -> Fields:
    """The settings of an evaluation as fields; those of a suite as `suite.name`."""
    found: Fields = {}
    for name, value in settings.items():
        if name in NOT_SIGNED:
            continue
        if isinstance(value, Mapping):
            found |= {f"{name}.{below}": text for below, text in settings_fields(value).items()}
        else:
            found[name] = ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return found


def unlike(a: Mapping[str, str], b: Mapping[str, str]) -> str | None:
    """The first field that keeps two signatures' scores from being compared."""
    names = [*a, *(name for name in b if name not in a)]
    return next((name for name in names if name not in SUBJECT and a.get(name) != b.get(name)), None)


def data_hashes(suite: SuiteData) -> dict[str, str]:
    """By language, a hash of all that is asked, wanted and retrieved in it: 12 hexadecimal digits."""
    codes = dict.fromkeys([SOURCE, *(c for item in suite.items for c in item.turns), *suite.sentences])
    found = {}
    for code in codes:
        items = [
            (
                item.id,
                item.task,
                item.gold,
                (turn := item.turns[code]).instruction,
                turn.response,
                sorted((item.options or {}).get(code, {}).items()),
                sorted(item.measures),
            )
            for item in suite.items
            if code in item.turns
        ]
        sentences = [list(some.get(code, ())) for some in (suite.sentences, suite.layer_sentences)]
        text = json.dumps([items, sentences], ensure_ascii=False)
        found[code] = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:12]
    return found
