"""Stage 1: selected English instructions tune the base; the result is the reference model."""

import random
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from isogloss import processes
from isogloss.config import Tune
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
from isogloss.languages import SOURCE
from isogloss.model import causal_of, head, last_hidden, pad_id, parts_of
from isogloss.teacher.prompts import NodeTexts, privileged_text

Progress = Callable[[int, int], None]


def lora_everywhere(model: torch.nn.Module, rank: int) -> LoraConfig:
    """Stage 1's LoRA: on every linear layer below the head."""
    return LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
        fan_in_fan_out=any(isinstance(m, Conv1D) for m in model.modules()),  # GPT-2's kind of linear layer
    )


def english_rows(
    examples: Sequence[ParallelExample],
    tokenizer: PreTrainedTokenizerBase,
    texts: NodeTexts,
    privileged: float,
    seed: int,
) -> list[Encoded]:
    """English turns as rows; a share of them once more as the teacher will read them.

    The second reading shows the model, in English alone, what the teacher's prompt looks like and
    that the answer to the twin helps.
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
        rows.append(encode(tokenizer, turn.instruction, turn.response, system))
    return rows


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
        model: torch.nn.Module = get_peft_model(base, lora_everywhere(base, settings.lora_rank))
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
    base = AutoModelForCausalLM.from_pretrained(causal_of(model).name_or_path, dtype=causal_of(model).dtype)
    there = get_peft_model(base, model.peft_config["default"])
    set_peft_model_state_dict(there, {n: p.cpu() for n, p in get_peft_model_state_dict(model).items()})
    return there
