"""Language confusion by line and by word (Marchisio et al. 2024, arXiv:2406.20052), for any language.

As the benchmark defines them, with four differences: an empty answer fails instead of being skipped; one too
short to be told from English does not count; scripts without spaces are counted by letter, or no line of Thai
would be long enough; an English word in a text of another script is any lower-case Latin one of more than 3
letters, which needs no word list.
"""

import re
import string
from collections.abc import Collection
from typing import Final

from isogloss.data.reading import readable
from isogloss.evaluate.fidelity import Detector, in_language
from isogloss.languages import languages

FEWEST: Final = 5
"""Tokens of a line that is judged."""
_STRIP: Final = str.maketrans("", "", string.punctuation)
_ENGLISH: Final = re.compile(r"(?<![A-Za-z])[a-z]{4,}(?![A-Za-z])")


def lines_pass(
    text: str, language: str, *, candidates: Collection[str], detector: Detector | None = None
) -> bool | None:
    """Whether every line of at least five tokens is in the language; None where it can be told of no line.

    Where no line is that long, the answer is judged as a whole. Without a letter or digit it fails.
    """
    text = _cut(text)
    if not readable(text):
        return False
    stripped = (line.translate(_STRIP).strip() for line in text.splitlines())
    lines = [line for line in stripped if _tokens(line, language) >= FEWEST] or [text]
    told = [in_language(line, language, candidates=candidates, detector=detector) for line in lines]
    return None if told.count(None) == len(told) else False not in told


def words_pass(text: str, language: str) -> bool | None:
    """Whether the answer has no English word; None in languages of Latin script, where that is not told."""
    if languages()[language].script == "Latn":
        return None
    return _ENGLISH.search(_cut(text)) is None


def harmonic(line: float, word: float | None) -> float:
    """LCPR: the harmonic mean of both pass rates; of lines alone where words are not told."""
    if word is None:
        return line
    return 2 * line * word / (line + word) if line + word else 0.0


def _cut(text: str) -> str:
    """Up to where a base model goes on with another question."""
    return text.split("\nQ:", 1)[0]


def _tokens(line: str, language: str) -> int:
    if languages()[language].unspaced:
        return sum(character.isalnum() for character in line)
    return len(line.split())
