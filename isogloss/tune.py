"""Stage 1: selected English instructions tune the base; the result is the reference model."""

import random
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from isogloss import processes
from isogloss.config import Config, Tune
from isogloss.data import selection
from isogloss.data.chat import Encoded, encode
from isogloss.data.examples import ParallelExample
from isogloss.data.selection import instruction_following_difficulty
from isogloss.distill.rows import schedule
from isogloss.distill.trainer import (
    Ordered,
    ResponseTrainer,
    Sample,
    Watch,
    Weights,
    collate,
    train,
    training_arguments,
)
from isogloss.errors import ConfigError
from isogloss.languages import SOURCE
from isogloss.model import causal_of, head, last_hidden, load_weights, pad_id, parts_of, positions
from isogloss.teacher.prompts import NodeTexts, privileged_text

Progress = Callable[[int, int], None]
USUAL = 2_048
"""Tokens of stage 1's longest row, unless the settings say so or the model has fewer positions."""


def english_rows(
    examples: Sequence[ParallelExample],
    tokenizer: PreTrainedTokenizerBase,
    texts: NodeTexts,
    privileged: float,
    seed: int,
    limit: int | None = None,
) -> list[Encoded]:
    """English turns as rows; a share of them once more as the teacher will read them.

    The second reading shows the model, in English alone, what the teacher's prompt looks like and
    that the answer to the twin helps. One of more than `limit` tokens is not read so.
    """
    rows = []
    for example in examples:
        turn = example.turns[SOURCE]
        assert turn.response is not None
        rows.append(encode(tokenizer, turn.instruction, turn.response))
    for example in random.Random(seed).sample(examples, round(privileged * len(examples))):
        turn = example.turns[SOURCE]
        assert turn.response is not None
        system = texts.root + "\n" + privileged_text(texts, (), example.task, turn)
        behind = encode(tokenizer, turn.instruction, turn.response, system)
        if limit is None or behind.tokens <= limit:
            rows.append(behind)
    return rows


def longest_row(config: Config) -> int:
    """Tokens of the longest row of stage 1: what the settings say, else the model's positions.

    Raises:
        ConfigError: The settings ask for more than the model has.
    """
    there = positions(config.model)
    asked = config.tune.max_tokens
    if asked is not None and there is not None and asked > there:
        raise ConfigError(f"tune.max_tokens is {asked}; the model has {there} positions")
    return asked or min(there or USUAL, USUAL)


def within(
    examples: Sequence[ParallelExample], tokenizer: PreTrainedTokenizerBase, limit: int
) -> selection.Selection:
    """The examples whose row has at most `limit` tokens, prompt and response together."""
    lengths = [
        encode(tokenizer, turn.instruction, turn.response or "").tokens
        for turn in (example.turns[SOURCE] for example in examples)
    ]
    both = list(zip(examples, lengths, strict=True))
    return selection.Selection(
        tuple(example for example, tokens in both if tokens <= limit),
        tuple(
            selection.Dropped(example.id, selection.TOO_LONG, f"{tokens} tokens; tune.max_tokens is {limit}")
            for example, tokens in both
            if tokens > limit
        ),
    )


@torch.no_grad()
def difficulty(
    base: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[ParallelExample],
    progress: Progress,
    batch: int = 64,
) -> list[float]:
    """How little each English instruction helps the base to foresee its response; see `selection`."""
    losses: dict[bool, list[float]] = {True: [], False: []}
    for told, found in losses.items():
        for start in range(0, len(examples), batch):
            encoded = []
            for example in examples[start : start + batch]:
                turn = example.turns[SOURCE]
                assert turn.response is not None
                row = encode(tokenizer, turn.instruction if told else "", turn.response)
                encoded.append(Sample(row))
            collated = collate(encoded, pad_id(tokenizer)).to(next(base.parameters()).device)
            states = last_hidden(base, collated.ids, collated.mask).flatten(0, 1)[collated.positions]
            tokens = F.cross_entropy(head(base, states).float(), collated.response, reduction="none")
            lengths = [len(sample.encoded.response) for sample in encoded]
            found.extend(part.mean().item() for part in tokens.split(lengths))
            progress(len(losses[True]) + len(losses[False]), 2 * len(examples))
    return instruction_following_difficulty(losses[True], losses[False])


def tune(
    base: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Encoded],
    settings: Tune,
    folder: Path,
    *,
    curve: Path,
    seed: int,
    dtype: torch.dtype,
    progress: Progress,
    compile: bool = False,
) -> dict[str, float]:
    """Train and write the reference model to `folder`, in `dtype`; returns the trainer's counts.

    The folder appears at the end, whole; checkpoints lie beside it until then.

    Args:
        base: In float32 where all of it is tuned; of what steps add to bfloat16 most is rounded away.
        compile: As in `ResponseTrainer`.
    """
    work = folder.with_name(folder.name + ".work")
    lengths = [len(row.prompt) + len(row.response) for row in rows]
    draws = max(settings.batch, round(len(rows) * settings.epochs))
    order = schedule(
        [SOURCE] * len(rows), draws, balance=1.0, batch=settings.batch, lengths=lengths, seed=seed
    )
    base.config.use_cache = False
    if settings.method == "lora":
        torch.manual_seed(seed)
        config = LoraConfig(
            r=settings.lora_rank,
            lora_alpha=2 * settings.lora_rank,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        )
        model: torch.nn.Module = get_peft_model(base, config)
    else:
        base.requires_grad_(True)
        model = base
    steps = len(order) // settings.batch
    trainer = ResponseTrainer(
        model=model,
        args=training_arguments(
            work, steps=steps, batch=settings.batch, accumulate=settings.accumulate,
            lr=settings.lr, weight_decay=0.01, seed=seed, bf16=dtype == torch.bfloat16,
            save_every=max(50, steps // 4),
        ),
        train_dataset=Ordered([Sample(row) for row in rows], order),
        weights=Weights(),
        pad_id=pad_id(tokenizer),
        compile=compile,
    )  # fmt: skip
    train(trainer, Watch(curve, "tune", max(1, steps // 60), progress), work)
    if processes.is_main():
        tuned: Any = base
        if settings.method == "lora":
            tuned = (_put_together(model) if parts_of(base) else model).merge_and_unload()  # type: ignore
        tuned.config.use_cache = True
        part = folder.with_name(folder.name + ".part")
        shutil.rmtree(part, ignore_errors=True)
        tuned.to(dtype).save_pretrained(part)
        tokenizer.save_pretrained(part)
        part.rename(folder)
        shutil.rmtree(work, ignore_errors=True)
    processes.wait()
    return trainer.counts


def _put_together(model: Any) -> Any:
    """The LoRA of a model that lies in parts, on the base read anew, whole and on the host."""
    base = load_weights(causal_of(model).name_or_path, causal_of(model).dtype)
    there = get_peft_model(base, model.peft_config["default"])
    set_peft_model_state_dict(there, {n: p.cpu() for n, p in get_peft_model_state_dict(model).items()})
    return there
