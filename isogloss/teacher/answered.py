"""Answers that a model has written before training, kept in a file so that none is asked for twice."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase

from isogloss.files import read_lines, write_lines
from isogloss.generate import PROMPTS, complete, in_batches, stops, up_to_end
from isogloss.model import most_tokens

TOGETHER = 256
"""Answers that are written at a time: what a killed run loses at most."""


class Answers:
    """By id and what was asked under it: another file's example of the same id is another example.

    An answer that did not end is kept as an empty one.
    """

    def __init__(self, file: Path):
        self.file = file
        entries = read_lines(file) if file.exists() else ()
        self.given: dict[tuple[str, str], Any] = {
            (str(e["id"]), str(e.get("asked"))): e["answer"] for e in entries
        }

    def of(self, id: str, asked: str) -> Any:
        """The answer; None: there is none yet."""
        return self.given.get((id, asked))

    def keep(self, new: Mapping[tuple[str, str], Any], *, write: bool = True) -> None:
        """Add answers, and to the file too, which is replaced whole."""
        self.given.update(new)
        if not write:
            return
        write_lines(
            self.file, [{"id": id, "asked": asked, "answer": one} for (id, asked), one in self.given.items()]
        )


def ended(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    batch: int = 64,
) -> Iterator[tuple[int, str]]:
    """Each prompt's number and greedy answer, short prompts first.

    One that has no end within the limit is empty: cut short it would teach a wrong end.
    """
    ends = set(stops(model, tokenizer))
    order = sorted(range(len(prompts)), key=lambda number: len(prompts[number]))
    for chosen in in_batches(order, prompts, batch, most_tokens(model, PROMPTS)):
        made = complete(model, tokenizer, [prompts[n] for n in chosen], max_new_tokens=max_new_tokens)
        for number, ids in zip(chosen, made.tolist(), strict=True):
            *said, last = up_to_end(ids, ends)
            text = str(tokenizer.decode(said, skip_special_tokens=True)).strip() if last in ends else ""
            yield number, text
