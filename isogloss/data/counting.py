"""Cached copies of tokenizers that no longer change.

Chat encoding checks a tokenizer's size at every turn, in case tokens were added, which takes longer than
encoding a phrase if the vocabulary is large. Parallel data encode the same English texts for every language.
"""

import copy
from typing import Any, Final, TypeVar

import numpy as np
from transformers import BatchEncoding, PreTrainedTokenizerBase

MOST_BYTES: Final = 1 << 26
"""Size of the cached encodings; when it is reached, all are forgotten."""
T = TypeVar("T", bound=PreTrainedTokenizerBase)


def of_fixed_size(tokenizer: T) -> T:
    """Return a copy of the tokenizer with its size cached."""
    size = len(tokenizer)
    return _changed(tokenizer, {"__len__": lambda self: size})


def unchanging(tokenizer: T) -> T:
    """Return a copy of the tokenizer with cached size and encodings, for counting tokens of many texts."""
    # Other caches hold the copy as long as the process lives, so this one must stay small.
    known: dict[tuple, dict[str, np.ndarray]] = {}
    size = 0
    kind: Any = type(tokenizer)

    def encode(self: Any, text: Any = None, *args: Any, **kwargs: Any) -> Any:
        nonlocal size
        if not isinstance(text, str) or args or "return_tensors" in kwargs:
            return kind.__call__(self, text, *args, **kwargs)
        key = (text, *sorted(kwargs.items()))
        if (found := known.get(key)) is None:
            encoded = kind.__call__(self, text, **kwargs)
            found = {name: np.asarray(value, np.int32) for name, value in encoded.items()}
            size += len(text) + sum(value.nbytes for value in found.values())
            if size > MOST_BYTES:
                known.clear()
                size = 0
            known[key] = found
        return BatchEncoding({name: value.tolist() for name, value in found.items()})

    return _changed(of_fixed_size(tokenizer), {"__call__": encode})


def _changed(tokenizer: T, methods: dict[str, Any]) -> T:
    """Return a copy with replaced methods; it keeps the class name, by which transformers saves and loads."""
    kind: Any = type(tokenizer)
    found = copy.copy(tokenizer)
    found.__class__ = type(kind.__name__, (kind,), {"__module__": kind.__module__, **methods})
    return found
