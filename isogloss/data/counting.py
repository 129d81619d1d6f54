"""Tokenizers that are never changed from here on, of which nothing is asked twice.

Chat encoding asks for a tokenizer's size at every turn, in case tokens were added, which takes longer than to
encode a phrase where the vocabulary is large; parallel data ask for the same English texts in every language.
"""

import copy
from typing import Any, TypeVar

from transformers import PreTrainedTokenizerBase

T = TypeVar("T", bound=PreTrainedTokenizerBase)


def of_fixed_size(tokenizer: T) -> T:
    """The tokenizer, whose size is counted once."""
    size = len(tokenizer)
    return _changed(tokenizer, {"__len__": lambda self: size})


def unchanging(tokenizer: T) -> T:
    """A tokenizer of a fixed size that keeps what it has encoded, for as long as many texts are counted."""
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
    """A copy with other methods under the same class name, by which transformers saves and loads it."""
    kind: Any = type(tokenizer)
    found = copy.copy(tokenizer)
    found.__class__ = type(kind.__name__, (kind,), {"__module__": kind.__module__, **methods})
    return found
