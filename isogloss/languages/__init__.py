"""The known languages and their codes in every data set. Does not import torch."""

from isogloss.languages.registry import XGLUE_TWELVE, Language, UnknownLanguageError, languages, resolve

SOURCE = "en"
"""The language of stage 1, on which all others build."""

__all__ = ["SOURCE", "XGLUE_TWELVE", "Language", "UnknownLanguageError", "languages", "resolve"]
