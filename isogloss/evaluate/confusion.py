"""Language confusion by line and by word (Marchisio et al. 2024, arXiv:2406.20052), for any language.

Differs from the benchmark in four ways: an empty answer fails instead of being skipped; an answer too short
to distinguish from English is not counted; in scripts without spaces, length is counted in letters and
digits, as no line of Thai would be long enough otherwise; in non-Latin scripts, any lower-case Latin word of
more than 3 letters counts as English, which needs no word list.
"""

import re
import string
from collections.abc import Collection
from typing import Final

from isogloss.data.reading import readable
from isogloss.evaluate.fidelity import in_language
from isogloss.languages import languages

FEWEST: Final = 5
"""Minimum tokens for a line to be judged."""
_STRIP: Final = str.maketrans("", "", string.punctuation)
_ENGLISH: Final = re.compile(r"(?<![A-Za-z])[a-z]{4,}(?![A-Za-z])")


def lines_pass(text: str, language: str, *, candidates: Collection[str]) -> bool | None:
    """Whether every line of at least `FEWEST` tokens is in the language; None if undecidable for every line.

    If no line is that long, the answer is judged as a whole. An answer without letters or digits fails.
    """
    text = _cut(text)
    if not readable(text):
        return False
    stripped = (line.translate(_STRIP).strip() for line in text.splitlines())
    lines = [line for line in stripped if _tokens(line, language) >= FEWEST] or [text]
    passed = [in_language(line, language, candidates=candidates) for line in lines]
    return None if passed.count(None) == len(passed) else False not in passed


def words_pass(text: str, language: str) -> bool | None:
    """Whether the answer has no English word; None for languages in Latin script, where it is undefined."""
    if languages()[language].script == "Latn":
        return None
    return _ENGLISH.search(_cut(text)) is None


def harmonic(line: float, word: float | None) -> float:
    """LCPR: the harmonic mean of the line and word pass rates, or the line rate if `word` is None."""
    if word is None:
        return line
    return 2 * line * word / (line + word) if line + word else 0.0


def _cut(text: str) -> str:
    """Cut the text where a base model continues with another question."""
    return text.split("\nQ:", 1)[0]


def _tokens(line: str, language: str) -> int:
    if languages()[language].unspaced:
        return sum(character.isalnum() for character in line)
    return len(line.split())
