"""Signatures: one line with everything that determines a score, and the fields that comparable runs share.

A signature is `name:value` pairs joined by `|`. Two comparable runs agree on the measures, the data and the
method; they may differ in the subject (model and adapters).
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Final

from isogloss.evaluate.items import SuiteData
from isogloss.languages import SOURCE

RULER: Final = 7
"""Version of the measures. Increment when the computation of a measure, its layer or its interval changes, so
that scores are recomputed."""
SUBJECT: Final = frozenset({"model", "adapters", "template", "seed", "layer", "raw_layer", "isogloss"})
"""Fields that may differ between compared runs: the model, its adapters, its prompt template, the run's seed,
the best layers of each side, and the program's version.
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
"""Settings of `evaluate` that change no score, or that other fields specify more precisely (`path`: the data;
`split`: the suite's own, which may be a part of dev)."""

Fields = dict[str, str]


def signature(fields: Mapping[str, Any]) -> str:
    """Join the fields into one line."""
    return "|".join(f"{name}:{value}" for name, value in fields.items())


def fields_of(line: str) -> Fields:
    """Parse a signature into its fields."""
    return {name: value for name, _, value in (part.partition(":") for part in line.split("|"))}


def settings_fields(settings: Mapping[str, Any]) -> Fields:
    """Return evaluation settings as fields; a suite's own settings become `suite.name`."""
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
    """Return the first field that makes two signatures incomparable, or None."""
    names = [*a, *(name for name in b if name not in a)]
    return next((name for name in names if name not in SUBJECT and a.get(name) != b.get(name)), None)


def data_hashes(suite: SuiteData) -> dict[str, str]:
    """Return, by language, a 12-digit hexadecimal hash of its items and sentences."""
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
