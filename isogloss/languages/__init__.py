"""Which languages there are and what every data set calls them. Imports no torch."""

from isogloss.languages.registry import (
    XGLUE_TWELVE,
    Language,
    UnknownLanguageError,
    languages,
    resolve,
)

SOURCE = "en"
"""The language of stage 1, which all others follow."""

__all__ = ["SOURCE", "XGLUE_TWELVE", "Language", "UnknownLanguageError", "languages", "resolve"]
