"""Prefix caching: keys and values of a shared prefix, computed once and copied for each batch."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from transformers import DynamicCache

from isogloss.model.branches import ATTENTION
from isogloss.model.decoder import decoder_of, layer_types


@dataclass(frozen=True)
class Prefix:
    """A prefix's tokens, and their keys and values in every layer, as one row."""

    ids: tuple[int, ...]
    cache: DynamicCache

    def fork(self, rows: int) -> DynamicCache:
        """Copy the cache for `rows` rows; the original is unchanged."""
        forked = copy.deepcopy(self.cache)
        forked.batch_repeat_interleave(rows)
        return forked


@torch.no_grad()
def prefill(model: nn.Module, ids: Sequence[int]) -> Prefix | None:
    """Compute a prefix; None if the architecture caches anything but every token's keys and values."""
    if not layer_types(model) <= ATTENTION:
        return None
    cache = DynamicCache()
    text = torch.tensor([list(ids)], device=next(model.parameters()).device)
    decoder_of(model)(
        input_ids=text, attention_mask=torch.ones_like(text), past_key_values=cache, use_cache=True
    )
    return Prefix(tuple(ids), cache) if cache.get_seq_length() == len(ids) else None
