"""Cached copies of tokenizers that no longer change.

Chat encoding checks a tokenizer's size at every turn, in case tokens were added, which takes longer than
encoding a phrase if the vocabulary is large. Parallel data encode the same English texts for every language.
"""

import copy
from typing import Any, TypeVar

from transformers import PreTrainedTokenizerBase

T = TypeVar("T", bound=PreTrainedTokenizerBase)


def of_fixed_size(tokenizer: T) -> T:
    """Return a copy of the tokenizer with its size cached."""
    size = len(tokenizer)
    return _changed(tokenizer, {"__len__": lambda self: size})


def unchanging(tokenizer: T) -> T:
    """Return a copy of the tokenizer with cached size and encodings, for counting tokens of many texts."""
    known: dict[tuple, Any] = {}
    kind: Any = type(tokenizer)

    def encode(self: Any, text: Any = None, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(text, str) or args:
            return kind.__call__(self, text, *args, **kwargs)
        key = (text, *sorted(kwargs.items()))
        if key not in known:
            known[key] = kind.__call__(self, text, **kwargs)
        return known[key]

    return _changed(of_fixed_size(tokenizer), {"__call__": encode})


def _changed(tokenizer: T, methods: dict[str, Any]) -> T:
    """Return a copy with replaced methods; it keeps the class name, by which transformers saves and loads."""
    kind: Any = type(tokenizer)
    found = copy.copy(tokenizer)
    found.__class__ = type(kind.__name__, (kind,), {"__module__": kind.__module__, **methods})
    return found
