"""Token-by-token decoding of one batch, from which rows that have ended are dropped.

transformers' `generate` computes every row until the longest answer ends. Answers to closed tasks have a few
tokens, so most of its time would go into rows that have ended, each with a product with the whole head.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import Cache
from transformers.generation.streamers import BaseStreamer

from isogloss.model.cost import count_generated
from isogloss.model.decoder import causal_of

KEPT: Final = 0.75
"""Rows are dropped once at most this share of the batch is left: dropping copies all keys and values."""
Stopped = Callable[[Int[Tensor, "rows tokens"]], Sequence[bool]]


def decode(
    model: nn.Module,
    ids: Int[Tensor, "rows prompt"],
    mask: Int[Tensor, "rows seen"],
    *,
    ends: Sequence[int],
    pad: int,
    max_new_tokens: int,
    sample: bool = False,
    cache: Cache | None = None,
    chosen: Callable[[list[int]], None] = lambda rows: None,
    streamer: BaseStreamer | None = None,
    stopped: Stopped | None = None,
) -> Int[Tensor, "rows tokens"]:
    """Return the new tokens of each row, padded after its end; as many columns as the longest answer has.

    For models that cache only keys and values of every token (`keeps_keys_alone`).

    Args:
        ids: Prompts, padded on the left, without what is in the cache.
        mask: 1 for every token of prompt and cache, 0 for padding.
        ends: Tokens that end a row.
        pad: Token after a row's end.
        sample: Sample from the model's distribution instead of taking the likeliest token.
        cache: Keys and values of what precedes the prompts.
        chosen: Called before a forward pass whose batch has other rows than the one before, with their
            indices.
        streamer: Receives the prompts, then one token per row and step.
        stopped: Receives all rows' new tokens and returns which rows have ended for another reason.
    """
    rows = torch.arange(len(ids), device=ids.device)
    made = torch.full((len(ids), max_new_tokens), pad, device=ids.device)
    over = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
    final = torch.tensor(list(ends), device=ids.device)
    places = (mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
    placed = "position_ids" in inspect.signature(causal_of(model).forward).parameters
    if streamer is not None:
        streamer.put(ids.cpu())
    length = 0
    while length < max_new_tokens:
        named = {"position_ids": places} if placed else {}
        found = model(
            input_ids=ids,
            attention_mask=mask,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
            **named,
        )
        cache = found.past_key_values
        assert cache is not None
        tokens = _drawn(found.logits[:, -1].float(), sample)
        made[rows, length] = torch.where(over[rows], pad, tokens)
        length += 1
        if streamer is not None:
            streamer.put(made[:, length - 1].cpu())
        over[rows] |= torch.isin(tokens, final)
        if stopped is not None:
            over |= torch.tensor(stopped(made[:, :length]), device=over.device)
        left = (~over[rows]).nonzero().flatten()
        if not len(left):
            break
        if len(left) <= KEPT * len(rows) and _can_drop(cache):
            cache.batch_select_indices(left)
            rows, tokens, mask, places = rows[left], tokens[left], mask[left], places[left]
            chosen(rows.tolist())
        ids, places = tokens[:, None], places[:, -1:] + 1
        mask = torch.cat([mask, torch.ones_like(ids)], 1)
    if streamer is not None:
        streamer.end()
    count_generated(model, int((made[:, :length] != pad).sum()))
    return made[:, :length]


def _drawn(logits: Float[Tensor, "rows vocab"], sample: bool) -> Int[Tensor, " rows"]:
    return torch.multinomial(logits.softmax(-1), 1).flatten() if sample else logits.argmax(-1)


def _can_drop(cache: Cache) -> bool:
    layers = getattr(cache, "layers", ())
    return bool(layers) and all(hasattr(layer, "batch_select_indices") for layer in layers)
