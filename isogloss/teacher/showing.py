"""A row as a person reads it: the prompt with its control tokens, then every response token in brackets."""

from collections.abc import Iterator, Sequence

from transformers import PreTrainedTokenizerBase

OPEN, CLOSE = "⟦", "⟧"


def shown(
    tokenizer: PreTrainedTokenizerBase,
    prompt: Sequence[int],
    response: Sequence[int],
    reader: PreTrainedTokenizerBase | None = None,
) -> str:
    """The prompt's text, and behind it each response token between ⟦ and ⟧.

    Tokens that hold parts of one character stand in one bracket, with their number.

    Args:
        tokenizer: Of the response.
        reader: Of the prompt, where another model reads it.
    """
    marked = "".join(
        f"{OPEN}{text}{CLOSE}" if count == 1 else f"{OPEN}{text}{CLOSE}×{count}"
        for text, count in _characters(tokenizer, response)
    )
    return str((reader or tokenizer).decode(list(prompt))) + marked


def _characters(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> Iterator[tuple[str, int]]:
    """Texts of tokens, several together where the first alone is no whole character."""
    start = 0
    for end in range(1, len(ids) + 1):
        text = str(tokenizer.decode(list(ids[start:end])))
        if "�" not in text or end == len(ids):
            yield text, end - start
            start = end
