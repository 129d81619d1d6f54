"""Answers generated before training, stored in a file so that none is generated twice."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import nn
from transformers import AutoConfig, PreTrainedTokenizerBase

from isogloss.adapters.generate import answers_to
from isogloss.errors import RunError
from isogloss.files import read_lines, write_lines
from isogloss.model.fingerprint import file_hashes
from isogloss.model.load import load_tokenizer, model_folder

TOGETHER = 256
"""Answers written to the file at a time: the most that a killed run loses."""
VERSION = 3
"""Increase when answers are generated differently."""


class Answers:
    """Answers by example ID and prompt: another file may use the same ID for another example.

    Answers truncated at the token limit are stored as empty strings.

    Args:
        file: JSON Lines file; created with the first answer.
        by: Identifies how answers are generated: the model, its template and dtype, and the token limit.
            Answers generated in another way stay in the file and are ignored.
    """

    def __init__(self, file: Path, by: Mapping[str, Any] = MappingProxyType({})):
        self.file = file
        text = json.dumps({"version": VERSION, **by}, sort_keys=True)
        self.by = hashlib.sha256(text.encode()).hexdigest()[:12]
        remedy = "remove the file, and its answers are asked for again"
        entries = read_lines(file, remedy) if file.exists() else []
        if any(not {"id", "asked", "answer"} <= entry.keys() for entry in entries):
            raise RunError(f"{file} has lines without id, asked or answer; {remedy}")
        self.others = [entry for entry in entries if entry.get("by") != self.by]
        self.given: dict[tuple[str, str], Any] = {
            (str(e["id"]), str(e["asked"])): e["answer"] for e in entries if e.get("by") == self.by
        }

    def of(self, id: str, asked: str) -> Any:
        """Return the answer, or None if there is none yet."""
        return self.given.get((id, asked))

    def keep(self, new: Mapping[tuple[str, str], Any], *, write: bool = True) -> None:
        """Add answers and, if `write`, replace the file."""
        self.given.update(new)
        if not write:
            return
        ours = [
            {"id": id, "asked": asked, "by": self.by, "answer": one}
            for (id, asked), one in self.given.items()
        ]
        write_lines(self.file, [*self.others, *ours])


def identity(name: str) -> str:
    """Return an identifier of a model and its tokenizer: a hash of its files, or its commit on the Hub.

    Raises:
        ConfigError: There is no such model.
    """
    folder = Path(model_folder(name))
    if folder.is_dir():
        return "-".join(file_hashes(folder).values())
    load_tokenizer(name)  # raises if there is no such model
    return f"{name}@{AutoConfig.from_pretrained(name)._commit_hash}"


def ended(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    batch: int = 64,
) -> Iterator[tuple[int, str]]:
    """Return each prompt's index and greedy answer; one truncated at the limit is "", as its end is wrong."""
    made = answers_to(model, tokenizer, prompts, max_new_tokens=max_new_tokens, batch=batch)
    return enumerate(answer.text if answer.ended else "" for answer in made)
