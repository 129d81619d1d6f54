"""Display a row for people: the prompt with its control tokens, then every response token in brackets."""

from collections.abc import Iterator, Sequence

from transformers import PreTrainedTokenizerBase

OPEN, CLOSE = "⟦", "⟧"


def shown(
    tokenizer: PreTrainedTokenizerBase,
    prompt: Sequence[int],
    response: Sequence[int],
    reader: PreTrainedTokenizerBase | None = None,
) -> str:
    """Return the prompt's text, followed by each response token between ⟦ and ⟧.

    Tokens that make up one character share a bracket, followed by their number.

    Args:
        tokenizer: Decodes the response, and the prompt unless `reader` is given.
        reader: Tokenizer of the prompt, if another model reads it.
    """
    marked = "".join(
        f"{OPEN}{text}{CLOSE}" if count == 1 else f"{OPEN}{text}{CLOSE}×{count}"
        for text, count in _characters(tokenizer, response)
    )
    return str((reader or tokenizer).decode(list(prompt))) + marked


def _characters(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> Iterator[tuple[str, int]]:
    """Yield the text of each token, and 1; tokens that make up one character are merged and counted."""
    start = 0
    for end in range(1, len(ids) + 1):
        text = str(tokenizer.decode(list(ids[start:end])))
        if "�" not in text or end == len(ids):
            yield text, end - start
            start = end
