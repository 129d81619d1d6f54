"""Batched generation, greedy or sampled, with a separate adapter path for each row."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import takewhile
from typing import Any, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer

from isogloss.adapters.decode import Stopped, decode
from isogloss.adapters.lora import TreeLora
from isogloss.data.chat import encode_prompt, end_of_turn
from isogloss.data.text import canonical
from isogloss.errors import RunError
from isogloss.model.decoder import by_length, causal_of, keeps_keys_alone, most_tokens, padded, text_config
from isogloss.model.load import pad_id, positions_of
from isogloss.model.prefix import Prefix

PROMPTS = 2048
"""Maximum prompt tokens in a batch on a CPU, where larger batches of long prompts are slower."""


class Answer(NamedTuple):
    """A generated response."""

    text: str
    """Without end of turn and special tokens; normalised as all texts are (`data.text`)."""
    ended: bool
    """True if the model ended the response, False if it was truncated at `max_new_tokens`."""


def answers(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, instructions: Sequence[str], **how: Any
) -> list[str]:
    """Return only the texts of `whole_answers`; same arguments."""
    return [answer.text for answer in whole_answers(model, tokenizer, instructions, **how)]


def whole_answers(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    instructions: Sequence[str],
    *,
    systems: Sequence[str | None] | None = None,
    **how: Any,
) -> list[Answer]:
    """Generate one response per instruction, in order.

    Args:
        systems: System message of each row, or None.
        how: Further arguments of `answers_to`.
    """
    systems = systems or [None] * len(instructions)
    prompts = [
        encode_prompt(tokenizer, text, system) for text, system in zip(instructions, systems, strict=True)
    ]
    return answers_to(model, tokenizer, prompts, **how)


def answers_to(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    *,
    languages: Sequence[str] | None = None,
    adapters: TreeLora | None = None,
    batch: int = 64,
    max_new_tokens: int = 24,
    sample: bool = False,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> list[Answer]:
    """Generate one response per prompt, given as token IDs, in order.

    Args:
        languages: Language of each row, which selects its adapter path; None for the reference model.
        sample: Sample from the model's distribution instead of greedy decoding.
    """
    found = [Answer("", ended=False)] * len(prompts)
    ends, done = set(stops(model, tokenizer)), 0
    for chosen in by_length(prompts, batch, most_tokens(model, PROMPTS)):
        made = complete(
            model,
            tokenizer,
            [prompts[i] for i in chosen],
            languages=None if languages is None else [languages[i] for i in chosen],
            adapters=adapters,
            max_new_tokens=max_new_tokens,
            sample=sample,
        )
        rows = made.tolist()
        # An end of turn need not be a special token.
        before = [list(takewhile(lambda token: token not in ends, row)) for row in rows]
        texts = tokenizer.batch_decode(before, skip_special_tokens=True)
        for number, text, tokens in zip(chosen, texts, rows, strict=True):
            found[number] = Answer(canonical(text).strip(), ended=not ends.isdisjoint(tokens))
        progress(done := done + len(chosen), len(prompts))
    return found


@torch.no_grad()
def complete(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    *,
    languages: Sequence[str] | None = None,
    adapters: TreeLora | None = None,
    max_new_tokens: int,
    sample: bool = False,
    prefix: Prefix | None = None,
    streamer: BaseStreamer | None = None,
    stopped: Stopped | None = None,
) -> Int[Tensor, "prompts tokens"]:
    """Generate the new tokens of one batch, padded after each row's end of turn.

    Args:
        sample: Sample from the model's unmodified distribution (temperature 1, no top-p or top-k) instead of
            greedy decoding. The checkpoint's generation settings are ignored, except for the tokens that end
            a response.
        prefix: Cached prefix, computed by the frozen model, that every prompt continues.
        streamer: As in `decode`.
        stopped: As in `decode`.
    """
    model.eval()
    if prefix is not None and not _in_window(
        model, [len(prefix.ids) + len(p) for p in prompts], max_new_tokens
    ):
        prompts, prefix = [(*prefix.ids, *prompt) for prompt in prompts], None
    longest = max(map(len, prompts), default=0) + (len(prefix.ids) if prefix else 0)
    if (most := positions_of(model)) is not None:
        if longest >= most:
            raise RunError(
                f"a prompt has {longest} tokens, but the model has only {most} positions; shorten it"
            )
        max_new_tokens = min(max_new_tokens, most - longest)
    ids, mask = padded(model, prompts, pad_id(tokenizer), "left")
    how: dict[str, Any] = {"max_new_tokens": max_new_tokens, "sample": sample, "streamer": streamer}
    how |= {"ends": stops(model, tokenizer), "pad": pad_id(tokenizer), "stopped": stopped}

    def chosen(rows: Sequence[int]) -> None:
        if adapters is not None and languages is not None:
            adapters.set_path([languages[row] for row in rows])

    chosen(range(len(prompts)))
    try:
        if not keeps_keys_alone(model):  # nor has it a prefix
            return _by_generate(model, ids, mask, **how)
        if prefix is not None:
            mask = torch.cat([mask.new_ones(len(ids), len(prefix.ids)), mask], 1)
            how["cache"] = prefix.fork(len(ids))
        return decode(model, ids, mask, chosen=chosen, **how)
    finally:
        if adapters is not None:
            adapters.off()


def _by_generate(
    model: nn.Module,
    ids: Int[Tensor, "prompts tokens"],
    mask: Int[Tensor, "prompts tokens"],
    *,
    ends: Sequence[int],
    pad: int,
    max_new_tokens: int,
    sample: bool,
    streamer: BaseStreamer | None,
    stopped: Stopped | None,
) -> Int[Tensor, "prompts tokens"]:
    """Decode with transformers, which knows the caches of recurrent layers."""
    start = ids.shape[1]

    def criterion(so_far: Tensor, scores: Any, **others: Any) -> Tensor:
        assert stopped is not None
        return torch.tensor(stopped(so_far[:, start:]), device=ids.device)

    settings = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=sample,
        use_cache=True,
        eos_token_id=list(ends),
        pad_token_id=pad,
        **({"temperature": 1.0, "top_p": 1.0, "top_k": 0} if sample else {}),
    )
    with _generating(model, settings):
        made = model.generate(  # type: ignore[operator]  # PeftModel and PreTrainedModel both generate
            input_ids=ids,
            attention_mask=mask,
            generation_config=settings,
            streamer=streamer,
            stopping_criteria=[criterion] if stopped else [],
        )
    return made[:, start:]


def _in_window(model: nn.Module, lengths: Sequence[int], more: int) -> bool:
    """Return whether the whole prefix stays visible: a sliding window counts padding after it as tokens."""
    window = getattr(text_config(model), "sliding_window", None)
    return len(set(lengths)) == 1 or not window or max(lengths) + more <= window


@contextmanager
def _generating(model: nn.Module, settings: GenerationConfig) -> Iterator[None]:
    """Replace the model's generation config, from which `generate` fills fields that are not set."""
    causal = causal_of(model)
    own = causal.generation_config
    causal.generation_config = settings
    try:
        yield
    finally:
        causal.generation_config = own


def stops(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the token IDs that end a response: the template's end of turn and the model's EOS tokens."""
    return list(dict.fromkeys([end_id(tokenizer), *_own(getattr(model, "generation_config", None))]))


def end_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the ID of the template's end-of-turn token."""
    found: Any = tokenizer.convert_tokens_to_ids(end_of_turn(tokenizer))
    return found


def end_with_turn(settings: GenerationConfig, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Add the end of turn to a saved model's EOS tokens, unless it is one; return whether it was added.

    transformers and vLLM stop at these alone, and would otherwise generate up to the limit.
    """
    stop, own = end_id(tokenizer), _own(settings)
    if stop not in own:
        settings.eos_token_id = [stop, *own]
    return stop not in own


def _own(settings: GenerationConfig | None) -> list[int]:
    own: int | list[int] | None = getattr(settings, "eos_token_id", None)
    return [own] if isinstance(own, int) else list(own or ())
