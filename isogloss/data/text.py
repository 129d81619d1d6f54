"""Text: the canonical form of all input, used in training, in prompts and for comparison.

Files, tables and requests encode the same text in several ways: Vietnamese may or may not be composed, and
Windows ends lines with two characters. A model sees different tokens for each, so the rule is defined once,
here.
"""

import unicodedata
from pathlib import Path
from typing import Any, Final

from isogloss.errors import DataError

_DROPPED: Final = ("\ufeff", "\0")


def canonical(text: str, what: str = "the text", path: Path | None = None, line: int | None = None) -> str:
    """Return the text in NFC, with line feeds as line endings, without byte order marks and NUL.

    Nothing else changes: zero-width joiners and direction marks stay, because Persian and the scripts of
    India are written with them, and so do compatibility characters (full width, ligatures).

    Args:
        text: Any text.
        what: Name of the text in the error message.
        path: The file that contains it.
        line: Its line in the file, from 1.

    Raises:
        DataError: It contains half of a surrogate pair, which is not a character and cannot be written as
            UTF-8.
    """
    if not is_unicode(text):
        raise DataError(f"{what} contains half of a surrogate pair; write the whole character", path, line)
    return _form(text)


def canonical_values(value: Any) -> Any:
    """Apply the form of `canonical` to all text in a JSON value, keys included.

    Half a surrogate pair passes: a row may contain one in an unused field, so the error is raised where a
    text is used.
    """
    if isinstance(value, str):
        return _form(value)
    if isinstance(value, dict):
        return {_form(key): canonical_values(one) for key, one in value.items()}
    if isinstance(value, list):
        return [canonical_values(one) for one in value]
    return value


def is_unicode(text: str) -> bool:
    """Return whether the text can be written as UTF-8; JSON and Python allow half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _form(text: str) -> str:
    if text.isascii() and "\r" not in text and "\0" not in text:
        return text
    for mark in _DROPPED:
        text = text.replace(mark, "")
    return unicodedata.normalize("NFC", text.replace("\r\n", "\n").replace("\r", "\n"))
