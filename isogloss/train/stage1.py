"""Stage 1: fine-tune the base on selected English instructions; the result is the reference model."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import save_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from isogloss import processes
from isogloss.adapters.generate import PROMPTS, end_with_turn
from isogloss.adapters.lora import lora_config
from isogloss.config import Config, Tune
from isogloss.data import selection
from isogloss.data.chat import Encoded, encode, surely_within
from isogloss.data.examples import ParallelExample
from isogloss.data.selection import instruction_following_difficulty
from isogloss.errors import ConfigError
from isogloss.files import naming
from isogloss.languages import SOURCE
from isogloss.losses.fused import token_log_probs
from isogloss.model.decoder import by_length, causal_of, decoder_of, last_hidden, most_tokens, parts_of
from isogloss.model.load import load_weights, notices_folder, pad_id, positions
from isogloss.notices import write_derived_card
from isogloss.progress import Progress
from isogloss.train.batch import Ordered, Sample, collate
from isogloss.train.objective import Weights
from isogloss.train.order import english_order
from isogloss.train.trainer import ResponseTrainer, Watch, optimisation, train, training_arguments

ADAPTER = "stage1_adapter"
"""Subfolder of the reference model with the adapter to add to the base, if stage 1 used LoRA."""
USUAL = 2_048
"""Default maximum tokens per row of stage 1, if the model has as many positions."""
CARD = "# A base tuned on English instructions: the reference model of a run of isogloss"


def english_rows(examples: Sequence[ParallelExample], tokenizer: PreTrainedTokenizerBase) -> list[Encoded]:
    """Encode English turns as rows."""
    return [encode(tokenizer, *_turn(example)) for example in examples]


def _turn(example: ParallelExample) -> tuple[str, str]:
    """Return an example's English instruction and response; stage 1 has no example without a response."""
    turn = example.turns[SOURCE]
    assert turn.response is not None
    return turn.instruction, turn.response


def longest_row(config: Config) -> int:
    """Return the maximum tokens per row of stage 1: as configured, else the model's positions up to `USUAL`.

    Raises:
        ConfigError: The settings exceed the model's positions.
    """
    there = positions(config.model)
    asked = config.tune.max_tokens
    if asked is not None and there is not None and asked > there:
        raise ConfigError(f"tune.max_tokens is {asked}; the model has {there} positions")
    return asked or min(there or USUAL, USUAL)


def within(
    examples: Sequence[ParallelExample], tokenizer: PreTrainedTokenizerBase, limit: int
) -> selection.Selection:
    """Select the examples whose row has at most `limit` tokens, prompt and response together."""
    template = encode(tokenizer, "a", "a").tokens
    kept, dropped = [], []
    for example in examples:
        turn = example.turns[SOURCE]
        texts = turn.instruction, turn.response or ""
        tokens = 0 if surely_within(texts, template, limit) else encode(tokenizer, *texts).tokens
        if tokens <= limit:
            kept.append(example)
        else:
            why = f"{tokens} tokens; tune.max_tokens is {limit}"
            dropped.append(selection.Dropped(example.id, selection.TOO_LONG, why))
    return selection.Selection(tuple(kept), tuple(dropped))


@torch.no_grad()
def difficulty(
    base: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[ParallelExample],
    progress: Progress,
) -> list[float]:
    """Return how little each English instruction helps the base to predict its response; see `selection`."""
    losses = {instructed: [0.0] * len(examples) for instructed in (True, False)}
    done, most = 0, most_tokens(base, PROMPTS)
    for instructed, found in losses.items():
        turns = map(_turn, examples)
        rows = [encode(tokenizer, asked if instructed else "", response) for asked, response in turns]
        texts = [[*row.prompt, *row.response] for row in rows]
        for numbers in by_length(texts, 64, most):
            samples = [Sample(rows[number]) for number in numbers]
            collated = collate(samples, pad_id(tokenizer)).to(base.device)
            states = last_hidden(base, collated.ids, collated.mask).flatten(0, 1)[collated.positions]
            every = torch.arange(len(states), device=states.device)
            tokens = -token_log_probs(base, states, collated.response, every)[0]
            lengths = [len(rows[number].response) for number in numbers]
            for number, part in zip(numbers, tokens.split(lengths), strict=True):
                found[number] = max(0.0, part.mean().item())  # rounding may make it negative
            progress(done := done + len(numbers), 2 * len(examples))
    return instruction_following_difficulty(losses[True], losses[False])


def tune(
    base: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Encoded],
    settings: Tune,
    folder: Path,
    *,
    name: str,
    curve: Path,
    seed: int,
    dtype: torch.dtype,
    progress: Progress,
    compile: bool = False,
    report_to: Sequence[str] = (),
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, float]:
    """Train the reference model and write it to `folder` in `dtype`; return the trainer's counts.

    The folder only appears once it is complete; until then, checkpoints are stored next to it.

    Args:
        base: The base model; in float32 for full fine-tuning, as bfloat16 would round away most updates.
        name: The base's name in the settings.
        compile: As in `ResponseTrainer`.
        report_to: As in `training_arguments`.
        say: As in `train`.
    """
    work = folder.with_name(folder.name + ".work")
    order = english_order([row.tokens for row in rows], settings, seed)
    base.config.use_cache = False
    if settings.method == "lora":
        torch.manual_seed(seed)
        adapter = lora_config(base, settings.lora_rank, targets="all-linear", scaling=2.0)
        model: torch.nn.Module = get_peft_model(base, adapter)
    else:
        base.requires_grad_(False)
        top: Any = base.get_output_embeddings()
        for part in (decoder_of(base), top):
            part.requires_grad_(True)
        model = base
    steps = len(order) // settings.batch_size
    trainer = ResponseTrainer(
        model=model,
        args=training_arguments(
            work,
            steps=steps,
            **optimisation(settings),
            weight_decay=settings.weight_decay,
            seed=seed,
            bf16=dtype == torch.bfloat16,
            # A LoRA checkpoint is small; one of all weights and AdamW's two moments is not.
            save_every=max(20, steps // 20) if settings.method == "lora" else max(50, steps // 4),
            report_to=report_to,
        ),
        train_dataset=Ordered([Sample(row) for row in rows], order),
        weights=Weights(),
        pad_id=pad_id(tokenizer),
        compile=compile,
    )
    train(trainer, Watch(curve, "tune", max(1, steps // 60), progress), work, say)
    if processes.is_main():
        part = folder.with_name(folder.name + ".part")
        shutil.rmtree(part, ignore_errors=True)
        tuned: Any = base
        with naming(part):
            if settings.method == "lora":
                _write_adapter(model, part / ADAPTER, name)
                tuned = merged(_whole(model), part / ADAPTER)
            tuned.config.use_cache = True
            write_reference(tuned.to(dtype), tokenizer, part, name)
        part.rename(folder)
        shutil.rmtree(work, ignore_errors=True)
    processes.wait()
    return trainer.counts


def merged(base: Any, adapter: Path) -> Any:
    """Merge stage 1's adapter into the base."""
    return PeftModel.from_pretrained(base, str(adapter)).merge_and_unload()  # type: ignore[operator]


def write_reference(model: Any, tokenizer: PreTrainedTokenizerBase, folder: Path, base: str) -> None:
    """Write a reference model with its tokenizer, its card and the base's notices."""
    end_with_turn(model.generation_config, tokenizer)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_derived_card(folder, base, notices_folder(base), CARD)


def _write_adapter(model: Any, folder: Path, base: str) -> None:
    """Write the adapter in bfloat16; the reference model is then merged from this file, so both agree."""
    config = model.peft_config["default"]
    config.base_model_name_or_path, config.inference_mode = base, True
    config.save_pretrained(folder)
    # Otherwise PEFT queries the Hub for the base's configuration.
    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    state = {name: p.cpu().bfloat16().contiguous() for name, p in state.items()}
    save_file(state, folder / "adapter_model.safetensors", {"format": "pt"})


def _whole(model: Any) -> Any:
    """Return the base without adapters; a sharded model is reloaded whole into CPU memory."""
    if not parts_of(model):
        return model.unload()
    base = causal_of(model)
    return load_weights(base.name_or_path, base.dtype)
