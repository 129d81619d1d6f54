"""Greedy answers in batches, each row on its own path; knows no suite."""

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from isogloss.data.chat import encode_prompt, end_of_turn, pad
from isogloss.model import most_tokens, pad_id
from isogloss.tree.carrier import Carrier

PROMPTS = 8192
"""Tokens of prompts that are answered together on a processor, whose memory long ones would fill."""


@torch.no_grad()
def answers(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    instructions: Sequence[str],
    *,
    languages: Sequence[str] | None = None,
    carrier: Carrier | None = None,
    systems: Sequence[str | None] | None = None,
    batch: int = 64,
    max_new_tokens: int = 24,
    sample: bool = False,
    progress: Callable[[int, int], None] = lambda done, of: None,
    cut: list[bool] | None = None,
) -> list[str]:
    """One answer per instruction, in their order, end of turn and special tokens removed.

    Args:
        languages: With a carrier, whose path each row reads; without it the reference model answers.
        systems: System text of each row, where there is one.
        sample: Draw from the model's distribution; else the likeliest token each time.
        cut: Filled with whether each answer had no end within `max_new_tokens`.
    """
    systems = systems or [None] * len(instructions)
    prompts = [
        encode_prompt(tokenizer, text, system) for text, system in zip(instructions, systems, strict=True)
    ]
    order = sorted(range(len(prompts)), key=lambda number: len(prompts[number]))
    found, unended = [""] * len(prompts), [False] * len(prompts)
    done, ends = 0, set(stops(model, tokenizer)) if prompts else set()
    for chosen in in_batches(order, prompts, batch, most_tokens(model, PROMPTS)):
        made = complete(
            model, tokenizer, [prompts[i] for i in chosen],
            languages=None if languages is None else [languages[i] for i in chosen],
            carrier=carrier, max_new_tokens=max_new_tokens, do_sample=sample,
        )  # fmt: skip
        texts = tokenizer.batch_decode(made, skip_special_tokens=True)
        for number, text, row in zip(chosen, texts, made.tolist(), strict=True):
            found[number], unended[number] = text.strip(), ends.isdisjoint(row)
        done += len(chosen)
        progress(done, len(order))
    if cut is not None:
        cut[:] = unended
    return found


def in_batches(
    order: Sequence[int], encoded: Sequence[Sequence[int]], rows: int, tokens: float
) -> Iterator[list[int]]:
    """Row numbers in this order, from the shortest row on, at most so many rows and tokens together."""
    made: list[int] = []
    for number in order:
        if made and (len(made) == rows or (len(made) + 1) * len(encoded[number]) > tokens):
            yield made
            made = []
        made.append(number)
    if made:
        yield made


@torch.no_grad()
def complete(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    *,
    languages: Sequence[str] | None = None,
    carrier: Carrier | None = None,
    max_new_tokens: int,
    do_sample: bool = False,
    **options: Any,
) -> Int[Tensor, "prompts tokens"]:
    """New tokens of one batch, greedy or drawn, padded behind each row's end of turn.

    Args:
        options: More of what transformers' `generate` takes, such as a streamer.
    """
    model.eval()
    device = next(model.parameters()).device
    ids, mask = (t.to(device) for t in pad([list(prompt) for prompt in prompts], pad_id(tokenizer), "left"))
    if carrier is not None and languages is not None:
        carrier.set_path(languages)
    try:
        made = model.generate(  # type: ignore[operator]  # PeftModel and PreTrainedModel both generate
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=max_new_tokens,
            do_sample=do_sample,
            temperature=1.0 if do_sample else None,
            top_p=1.0 if do_sample else None,
            top_k=0 if do_sample else None,
            eos_token_id=stops(model, tokenizer),
            pad_token_id=tokenizer.pad_token_id,
            **options,
        )
    finally:
        if carrier is not None:
            carrier.off()
    return made[:, ids.shape[1] :]


def stops(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids that end an answer: the template's end of turn, and what else the model was trained to end on."""
    own = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ends = [own] if isinstance(own, int) else list(own or ())
    stop: Any = tokenizer.convert_tokens_to_ids(end_of_turn(tokenizer))
    return list(dict.fromkeys([stop, *ends]))


def up_to_end(ids: Sequence[int], ends: Collection[int]) -> tuple[int, ...]:
    """New tokens up to the first that ends an answer, and with it; all of one that never ends."""
    end = next((place + 1 for place, token in enumerate(ids) if token in ends), len(ids))
    return tuple(ids[:end])
