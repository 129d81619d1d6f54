"""A tokenizer for counting: the same ids, and of what is asked again nothing is worked out anew.

Chat encoding asks for a tokenizer's size at every turn, in case tokens were added, which takes longer than to
encode a phrase where the vocabulary is large; parallel data ask for the same English texts in every language.
"""

import copy
from typing import Any, TypeVar

from transformers import PreTrainedTokenizerBase

T = TypeVar("T", bound=PreTrainedTokenizerBase)


def unchanging(tokenizer: T) -> T:
    """A tokenizer that is never changed from here on, for as long as many texts are counted."""
    size, known = len(tokenizer), {}
    kind: Any = type(tokenizer)

    class Unchanging(kind):
        def __len__(self) -> int:
            return size

        def __call__(self, text: Any = None, *args: Any, **kwargs: Any) -> Any:
            if not isinstance(text, str) or args:
                return kind.__call__(self, text, *args, **kwargs)
            key = (text, *sorted(kwargs.items()))
            if key not in known:
                known[key] = kind.__call__(self, text, **kwargs)
            return known[key]

    found = copy.copy(tokenizer)
    found.__class__ = Unchanging
    return found
