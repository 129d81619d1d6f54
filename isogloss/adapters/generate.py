"""Greedy answers in batches, each row on its own path; knows no suite."""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedTokenizerBase

from isogloss.adapters.lora import TreeLora
from isogloss.data.chat import encode_prompt, end_of_turn, pad
from isogloss.data.text import canonical
from isogloss.model.decoder import causal_of, most_tokens
from isogloss.model.load import pad_id
from isogloss.model.prefix import Prefix

PROMPTS = 8192
"""Tokens of prompts that are answered together on a processor, whose memory long ones would fill."""


class Answer(NamedTuple):
    """What a model answers."""

    text: str
    """Without end of turn and special tokens, in the form of all texts (`data.text`)."""
    ended: bool
    """It ends where the model ended it, not where the limit of new tokens cut it."""


def answers(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, instructions: Sequence[str], **how: Any
) -> list[str]:
    """The texts of `whole_answers`, which takes the same arguments."""
    return [answer.text for answer in whole_answers(model, tokenizer, instructions, **how)]


@torch.no_grad()
def whole_answers(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    instructions: Sequence[str],
    *,
    languages: Sequence[str] | None = None,
    adapters: TreeLora | None = None,
    systems: Sequence[str | None] | None = None,
    batch: int = 64,
    max_new_tokens: int = 24,
    sample: bool = False,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> list[Answer]:
    """One answer per instruction, in their order.

    Args:
        languages: With adapters, whose path each row reads; without them the reference model answers.
        systems: System text of each row, where there is one.
        sample: Draw from the model's distribution; else the likeliest token each time.
    """
    systems = systems or [None] * len(instructions)
    prompts = [
        encode_prompt(tokenizer, text, system) for text, system in zip(instructions, systems, strict=True)
    ]
    order = sorted(range(len(prompts)), key=lambda number: len(prompts[number]))
    found = [Answer("", ended=False)] * len(prompts)
    ends = set(stops(model, tokenizer))
    done = 0
    for chosen in in_batches(order, prompts, batch, most_tokens(model, PROMPTS)):
        made = complete(
            model,
            tokenizer,
            [prompts[i] for i in chosen],
            languages=None if languages is None else [languages[i] for i in chosen],
            adapters=adapters,
            max_new_tokens=max_new_tokens,
            do_sample=sample,
        )
        texts = tokenizer.batch_decode(made, skip_special_tokens=True)
        for number, text, tokens in zip(chosen, texts, made.tolist(), strict=True):
            found[number] = Answer(canonical(text).strip(), ended=not ends.isdisjoint(tokens))
        done += len(chosen)
        progress(done, len(order))
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
    adapters: TreeLora | None = None,
    max_new_tokens: int,
    do_sample: bool = False,
    prefix: Prefix | None = None,
    **options: Any,
) -> Int[Tensor, "prompts tokens"]:
    """New tokens of one batch, greedy or drawn, padded behind each row's end of turn.

    Args:
        prefix: What the frozen model has read already, and every prompt goes on from.
        options: More of what transformers' `generate` takes, such as a streamer.

    Every token is the likeliest, or drawn from the model's own distribution; nothing that a model's folder
    says of generation acts but which tokens end an answer.
    """
    model.eval()
    device = next(model.parameters()).device
    if prefix is not None and not _in_window(
        model, [len(prefix.ids) + len(p) for p in prompts], max_new_tokens
    ):
        prompts, prefix = [(*prefix.ids, *prompt) for prompt in prompts], None
    ids, mask = (t.to(device) for t in pad([list(prompt) for prompt in prompts], pad_id(tokenizer), "left"))
    if prefix is not None:
        read = torch.tensor([prefix.ids], device=device).expand(len(ids), -1)
        ids, mask = torch.cat([read, ids], 1), torch.cat([torch.ones_like(read), mask], 1)
        options["past_key_values"] = prefix.fork(len(ids))
    if adapters is not None and languages is not None:
        adapters.set_path(languages)
    drawn = {"temperature": 1.0, "top_p": 1.0, "top_k": 0} if do_sample else {}
    settings = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=do_sample,
        use_cache=True,
        eos_token_id=stops(model, tokenizer),
        pad_token_id=pad_id(tokenizer),
        **drawn,
    )
    try:
        with _generating(model, settings):
            made = model.generate(  # type: ignore[operator]  # PeftModel and PreTrainedModel both generate
                input_ids=ids, attention_mask=mask, generation_config=settings, **options
            )
    finally:
        if adapters is not None:
            adapters.off()
    return made[:, ids.shape[1] :]


def _in_window(model: nn.Module, lengths: Sequence[int], more: int) -> bool:
    """Whether padding behind a prefix, which a sliding window counts as tokens, hides none of it."""
    window = getattr(causal_of(model).config.get_text_config(), "sliding_window", None)
    return len(set(lengths)) == 1 or not window or max(lengths) + more <= window


@contextmanager
def _generating(model: nn.Module, settings: GenerationConfig) -> Iterator[None]:
    """`generate` fills what its settings leave open from the model's own, which are these inside."""
    causal = causal_of(model)
    own = causal.generation_config
    causal.generation_config = settings
    try:
        yield
    finally:
        causal.generation_config = own


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
