"""Registry: one entry per language, found by any code or name that a data set uses for it.

All facts are in `languages.yaml`; this module only reads them, rejects clashes and looks languages up.
It must not depend on models, tensors, data files or a run's settings.
Flow: languages.yaml → languages() → an index of normalised spellings → resolve().
"""

import difflib
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, Final, Literal

import yaml

XGLUE_TWELVE: Final = ("ar", "bg", "el", "es", "fr", "hi", "ru", "sw", "th", "tr", "ur", "vi")
_SLIP: Final = 0.85
"""Minimum similarity at which a spelling counts as a typo of a name (Swahilli: 0.93)."""


class UnknownLanguageError(ValueError):
    """No language has this code or name; the one-line message suggests the nearest."""


@dataclass(frozen=True, slots=True)
class Language:
    """One language in one script; the header of `languages.yaml` describes the fields."""

    code: str
    name: str
    autonym: str
    bcp47: str
    iso639_3: str
    flores101: str
    flores200: str
    ntrex: str | None
    xglue: str | None
    massive: str | None
    script: str
    direction: Literal["ltr", "rtl"]
    family: tuple[str, ...]
    resource: Literal["high", "middle", "low"]
    flores_plus: str = ""
    also: tuple[str, ...] = ()

    @property
    def unspaced(self) -> bool:
        """Whether its script writes no spaces between words."""
        return self.script in ("Hans", "Hant", "Jpan", "Khmr", "Laoo", "Mymr", "Thai")

    def codes(self) -> tuple[str, ...]:
        """Return every code of this language once, ours first.

        ISO 639-3 names a language and not its script, so a second script (zh-Hant) leaves those
        codes to the plain entry (zh).
        """
        bare = () if "-" in self.code else (self.iso639_3, self.flores_plus.split("_")[0])
        spellings = (self.code, self.bcp47, *bare, self.flores101, self.flores200, self.flores_plus)
        spellings += (self.ntrex, self.xglue, self.massive, *self.also)
        return tuple(dict.fromkeys(s for s in spellings if s is not None))


@cache
def languages() -> dict[str, Language]:
    """Return all languages by our code, in file order.

    Cached: copy the dictionary before changing it.

    Raises:
        TypeError: An entry lacks a field or has an unknown one.
        ValueError: Two languages claim the same code or name.
    """
    text = resources.files("isogloss.languages").joinpath("languages.yaml").read_text(encoding="utf-8")
    rows = yaml.safe_load(text)
    table = {code: _entry(code, row) for code, row in rows.items()}
    index_spellings(table)
    return table


def resolve(code: str) -> Language:
    """Return the language with this code (of any data set), English name or native name.

    Ignores case and the difference between `_` and `-`.

    Raises:
        UnknownLanguageError: No language has this code or name.
    """
    language = _index().get(_normalise(code))
    if language is None:
        raise UnknownLanguageError(_refusal(code))
    return language


def index_spellings(table: Mapping[str, Language]) -> dict[str, Language]:
    """Map every normalised spelling to its language.

    Raises:
        ValueError: Two languages claim the same spelling.
    """
    index: dict[str, Language] = {}
    for language in table.values():
        for spelling in (*language.codes(), language.name, language.autonym):
            owner = index.setdefault(_normalise(spelling), language)
            if owner is not language:
                raise ValueError(
                    f"{spelling!r} means both {owner.code} and {language.code}; drop one of them"
                )
    return index


def _entry(code: str, row: Mapping[str, Any]) -> Language:
    names = {"flores_plus": row["flores200"], "also": (), **row}
    return Language(code=code, **{**names, "family": tuple(row["family"]), "also": tuple(names["also"])})


@cache
def _index() -> dict[str, Language]:
    return index_spellings(languages())


def _normalise(spelling: str) -> str:
    # NFC after case folding, as keyboards differ in how they compose letters of Odia or Yoruba.
    return unicodedata.normalize("NFC", spelling.strip().casefold()).replace("_", "-")


def _refusal(code: str) -> str:
    nearest = _nearest(_normalise(code))
    if nearest is None:
        return f"{code!r} is not a known language code; use one such as sw, swh_Latn or Swahili"
    language = _index()[nearest]
    spelling = next((s for s in language.codes() if _normalise(s) == nearest), language.code)
    return f"{code!r} is not a known language code; did you mean {spelling} ({language.name})?"


def _nearest(key: str) -> str | None:
    """Return the known spelling that was probably meant, or None.

    A known language part (swa in swa_Latn2) settles the language; only its spellings are then considered.
    Another code of two or three letters is rarely a typo and more likely one of the 7,000 languages that are
    missing here, so nothing is suggested. Anything longer may be a name with a typo or two.
    """
    part = key.split("-")[0]
    if known := _index().get(part):
        return _closest(key, [_normalise(s) for s in known.codes()], 0.0)
    return _closest(key, list(_index()), _SLIP) if len(part) > 3 and len(key) > 4 else None


def _closest(key: str, spellings: list[str], cutoff: float) -> str | None:
    return next(iter(difflib.get_close_matches(key, spellings, n=1, cutoff=cutoff)), None)
