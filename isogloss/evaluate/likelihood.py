"""Closed tasks without generation: the option that the model finds likeliest.

Flow: prompts → keys and values once → each option behind them → log-probability of the whole answer.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedTokenizerBase

from isogloss.data.chat import encode, pad
from isogloss.model import decoder_of, head, pad_id
from isogloss.tree.carrier import Carrier


@torch.no_grad()
def log_probabilities(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    instructions: Sequence[str],
    options: Sequence[Mapping[str, str]],
    *,
    languages: Sequence[str] | None = None,
    carrier: Carrier | None = None,
    batch: int = 64,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> list[dict[str, float]]:
    """ln p(option and end of turn | instruction) of every option of every instruction, in nats.

    The end of turn belongs to the answer, so the options are whole answers and their probabilities add up to
    no more than 1: no option gains by being the beginning of another, and no length has to be divided out.

    Args:
        options: By meaning, the wordings that may answer each instruction.
        languages: With a carrier, whose path each row reads; without it the reference model is asked.
    """
    model.eval()
    encoded = [
        {key: encode(tokenizer, text, wording) for key, wording in wordings.items()}
        for text, wordings in zip(instructions, options, strict=True)
    ]
    prompts = [next(iter(one.values())).prompt for one in encoded]
    order = sorted(range(len(prompts)), key=lambda number: len(prompts[number]))
    found: list[dict[str, float]] = [{} for _ in prompts]
    for start in range(0, len(order), batch):
        chosen = order[start : start + batch]
        if carrier is not None and languages is not None:
            carrier.set_path([languages[i] for i in chosen])
        try:
            scores = _score(
                model,
                [prompts[i] for i in chosen],
                [[one.response for one in encoded[i].values()] for i in chosen],
                pad_id(tokenizer),
            )
        finally:
            if carrier is not None:
                carrier.off()
        for number, row in zip(chosen, scores, strict=True):
            found[number] = dict(zip(encoded[number], row, strict=True))
        progress(start + len(chosen), len(order))
    return found


def _score(
    model: nn.Module, prompts: Sequence[Sequence[int]], options: Sequence[Sequence[Sequence[int]]], blank: int
) -> list[list[float]]:
    """Rows × their options; prompts are padded on the left, so that every option begins at one place."""
    device = next(model.parameters()).device
    ids, mask = (t.to(device) for t in pad([list(prompt) for prompt in prompts], blank, "left"))
    cache = DynamicCache()
    first = _log_softmax(model, _read(model, ids, mask, cache)[:, -1:])
    scores: list[list[float]] = [[] for _ in prompts]
    for place in range(max(map(len, options))):
        # A row with fewer options reads an end of its own, which nobody counts.
        answers = [list(row[place]) if place < len(row) else [blank] for row in options]
        behind, there = (t.to(device) for t in pad(answers, blank))
        logits = first
        if behind.shape[1] > 1:
            hidden = _read(model, behind[:, :-1], torch.cat([mask, there[:, :-1]], 1), cache)
            logits = torch.cat([first, _log_softmax(model, hidden)], 1)
            cache.crop(1 - behind.shape[1])
        each = logits.gather(-1, behind[..., None])[..., 0] * there
        for number, total in enumerate(each.sum(1).tolist()):
            if place < len(options[number]):
                scores[number].append(total)
    return scores


def _read(model: nn.Module, ids: Tensor, mask: Tensor, cache: Any) -> Tensor:
    """Last hidden states of `ids`, which stand at the end of what the mask covers."""
    positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
    return decoder_of(model)(
        input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
    ).last_hidden_state


def _log_softmax(model: nn.Module, hidden: Tensor) -> Tensor:
    logits = head(model, hidden.flatten(0, 1)).unflatten(0, hidden.shape[:2])
    return torch.log_softmax(logits.float(), -1)
