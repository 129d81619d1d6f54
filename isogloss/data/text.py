"""Text: the one form in which everything that comes in is learned, asked and compared.

Files, tables and requests spell the same text in several ways: Vietnamese may be composed or not, and Windows
ends lines with two characters. A model reads each spelling as other tokens, so there is one rule, here.
"""

import unicodedata
from pathlib import Path
from typing import Any, Final

from isogloss.errors import DataError

_DROPPED: Final = ("\ufeff", "\0")


def canonical(text: str, what: str = "the text", path: Path | None = None, line: int | None = None) -> str:
    """The text in NFC, its lines ended by line feeds, without byte order marks and NUL.

    Nothing else changes: zero-width joiners and direction marks stay, as Persian and the scripts of India
    are written with them, and so do compatibility characters (full width, ligatures).

    Args:
        text: Any text.
        what: What the text is, for the message.
        path: The file that it stands in.
        line: Its line there, from 1.

    Raises:
        DataError: It holds half of a surrogate pair, which is no character and cannot be written as UTF-8.
    """
    if not is_unicode(text):
        message = f"{what} holds half of a surrogate pair; write the whole character"
        raise DataError(message, path, line)
    return _form(text)


def canonical_values(value: Any) -> Any:
    """A JSON value with each text in it, keys included, as `canonical` has it.

    Half a surrogate pair passes: a row may hold one in a field that nobody reads, so it is refused where
    a text is used.
    """
    if isinstance(value, str):
        return _form(value)
    if isinstance(value, dict):
        return {_form(key): canonical_values(one) for key, one in value.items()}
    if isinstance(value, list):
        return [canonical_values(one) for one in value]
    return value


def is_unicode(text: str) -> bool:
    """Whether the text can be written as UTF-8; JSON and Python may spell half of a surrogate pair."""
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
