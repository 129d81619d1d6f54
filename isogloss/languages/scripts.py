"""Scripts: which letters and signs belong to each script of the registry, by their Unicode names."""

from collections.abc import Mapping
from typing import Final

SCRIPTS: Final[Mapping[str, frozenset[str]]] = {
    "Jpan": frozenset({"CJK", "IDEOGRAPHIC", "HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA"}),
    "Hans": frozenset({"CJK", "IDEOGRAPHIC"}),
    "Hant": frozenset({"CJK", "IDEOGRAPHIC", "BOPOMOFO"}),
} | {
    code: frozenset({name})
    for code, name in {
        "Arab": "ARABIC",
        "Armn": "ARMENIAN",
        "Beng": "BENGALI",
        "Cyrl": "CYRILLIC",
        "Deva": "DEVANAGARI",
        "Ethi": "ETHIOPIC",
        "Geor": "GEORGIAN",
        "Grek": "GREEK",
        "Gujr": "GUJARATI",
        "Guru": "GURMUKHI",
        "Hang": "HANGUL",
        "Hebr": "HEBREW",
        "Khmr": "KHMER",
        "Knda": "KANNADA",
        "Laoo": "LAO",
        "Latn": "LATIN",
        "Mlym": "MALAYALAM",
        "Mymr": "MYANMAR",
        "Orya": "ORIYA",
        "Taml": "TAMIL",
        "Telu": "TELUGU",
        "Thai": "THAI",
    }.items()
}
"""By ISO 15924 code, the first words of the Unicode names of a script's letters and signs."""
