"""The work of a planned run: its rows, and models without storage to process them."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import TypeVar

import torch
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from isogloss.adapters.lora import TreeLora
from isogloss.adapters.tree import Tree
from isogloss.config import Config, with_overrides
from isogloss.data import selection
from isogloss.data.chat import Encoded, encode_response
from isogloss.data.counting import unchanging
from isogloss.data.examples import ParallelExample
from isogloss.data.tasks.wordings import vary_wordings
from isogloss.languages import SOURCE
from isogloss.model.load import (
    EMBEDDED,
    check_base,
    load_tokenizer,
    model_folder,
    skeleton,
)
from isogloss.pipeline.folder import ProgressReporter, Run
from isogloss.pipeline.training_rows import foreseen_rows
from isogloss.plan.machine import Machine
from isogloss.teacher.rows import Row
from isogloss.train.stage1 import english_rows, longest_row, within

T = TypeVar("T")
SAMPLE = 2_000
"""Maximum number of English examples of stage 1 that are encoded. If there are more, their lengths are
extrapolated from this sample, accurate within 1 %."""


@dataclass
class StagePlan:
    """Cost of a stage; `memory` is the peak per device, in bytes, by purpose."""

    stage: str
    tokens_forwarded: int = 0
    tokens_backpropagated: int = 0
    tokens_generated: int = 0
    flops: float = 0.0
    memory: dict[str, int] = field(default_factory=dict)
    disk: int = 0
    """Peak disk usage in bytes, checkpoints included."""
    kept: int = 0
    """Bytes that remain on disk after the stage."""

    @property
    def memory_bytes(self) -> int:
        return sum(self.memory.values())


class Work:
    """Rows and models of a planned run.

    Args:
        config: Settings of the run.
        machine: The machine that the plan is for.
    """

    def __init__(self, config: Config, machine: Machine):
        self.config, self.machine = config, machine
        # A folder that does not exist: the plan must not depend on what an earlier run left in the real one.
        self.run = Run(config.model_copy(update={"run": config.run / "planned"}), ProgressReporter())
        self.dtype = machine.dtype(config.dtype)
        self.notes: list[str] = []
        self.scored = 0
        """Number of English examples scored for difficulty; set by `english`."""
        self.tokenizer = unchanging(self._tokenizer())

    def changed(self, overrides: Iterable[str]) -> "Work":
        """Return a copy with other settings for batching and training, sharing the rows."""
        other = object.__new__(Work)
        other.__dict__ |= self.__dict__ | {"config": with_overrides(self.config, overrides)}
        other.dtype = self.machine.dtype(other.config.dtype)
        return other

    @cached_property
    def answer_length(self) -> Callable[[str], int]:
        """Return the tokens of an answer with its end of turn; many items share their options."""
        return cache(lambda wording: len(encode_response(self.tokenizer, wording)))

    @cached_property
    def english(self) -> list[Encoded]:
        """Rows of stage 1."""
        settings, examples = self.config.tune, self.run.english
        if settings.selection.enabled:
            examples = list(selection.select(examples, max_chars=settings.selection.max_chars).kept)
        limit = longest_row(self.config)
        if settings.vary_wording:
            examples = vary_wordings(examples, self.config.seed)
        examples = within(examples, self.tokenizer, limit).kept
        self.scored = len(examples)
        kept = examples[: max(1, round(settings.selection.keep * len(examples)))]
        return stretched(english_rows(spread(kept, SAMPLE), self.tokenizer), len(kept))

    @cached_property
    def rows(self) -> list[Row]:
        """Rows of stage 2."""
        return foreseen_rows(self.run, self.tokenizer)

    @cached_property
    def tree(self) -> Tree:
        return self.run.tree

    @property
    def parts(self) -> int:
        """Number of devices over which the frozen layers are sharded."""
        return self.machine.devices if self.config.shard else 1

    def model(self, dtype: torch.dtype) -> PreTrainedModel:
        """Return the model on the meta device, with the attention that `load_model` picks on the machine."""
        attention = None if self.machine.gpu else "eager"
        return skeleton(self.config.model, dtype=dtype, attn_implementation=attention).eval()

    def adapters(self) -> TreeLora:
        run = Run(self.config, ProgressReporter())
        return run.student(self.model(self.dtype), trained=False, tree=self.tree)

    def _tokenizer(self) -> PreTrainedTokenizerBase:
        folder = Path(model_folder(self.config.model))
        files = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "tekken.json")
        if folder.is_dir() and not any((folder / name).exists() for name in files):
            self.notes.append(
                f"{self.config.model} has no tokenizer: tokens are counted with the embedded one"
            )
            return load_tokenizer(EMBEDDED)
        tokenizer = self.run.base_tokenizer
        check_base(self.config.model, tokenizer, weights=False)
        return tokenizer


def spread(examples: Sequence[ParallelExample], most: int) -> list[ParallelExample]:
    """Return at most `most` examples, evenly spread over their lengths in English, including the longest."""
    if len(examples) <= most:
        return list(examples)

    def length(example: ParallelExample) -> int:
        turn = example.turns[SOURCE]
        return len(turn.instruction) + len(turn.response or "")

    ordered = sorted(examples, key=length)
    return [ordered[len(ordered) - 1 - n * (len(ordered) - 1) // (most - 1)] for n in range(most)]


def stretched(rows: Sequence[Encoded], count: int) -> list[Encoded]:
    """Extend a sample to `count` rows by repeating rows; the length distribution stays the same."""
    ordered = sorted(rows, key=lambda row: len(row.prompt) + len(row.response))
    return [ordered[(2 * n + 1) * len(ordered) // (2 * count)] for n in range(count)]
