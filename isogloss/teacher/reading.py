"""Batched forward passes of the frozen model: grouped by length, with shared prefixes and a signal cache."""

import time
from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from isogloss import processes
from isogloss.data.chat import pad, response_positions
from isogloss.model.cost import StageCost
from isogloss.model.decoder import by_length, decoder_of, last_hidden, mean_pool, padded, states_up_to
from isogloss.model.prefix import Prefix, prefill
from isogloss.teacher.cache import Part

SHARD = 16 << 20
"""Bytes of signals after which a shard is written."""
PATIENCE = 20.0
"""Seconds after which a smaller shard is written: about the most work that a killed run loses."""
FORWARD = 256
"""Approximate overhead, in tokens, of processing a group of rows separately."""


Set = tuple[tuple[int, ...], tuple[tuple[int, ...], ...]]
"""An English prompt and its possible answers, as token IDs."""


class CachedTensors:
    """One tensor per key, from the cache or computed now and added to it.

    Several processes divide the missing keys among them, and read the others' results from the cache.

    Args:
        part: Part of the cache, or None for no cache.
        cost: Accumulates the cost of computed tensors.
        meets: Whether every forward pass needs all processes, as with a sharded model.
        alone: Let this process compute all missing tensors, even if there are others.
    """

    def __init__(
        self,
        part: Part | None,
        keys: Sequence[bytes],
        cost: StageCost,
        meets: bool = False,
        *,
        alone: bool = False,
    ):
        self.part, self.keys, self.cost, self.meets = part, keys, cost, meets
        self.found = {} if part is None else part.read(keys)
        self.absent = {number for number, key in enumerate(keys) if key not in self.found}
        self.several = part is not None and processes.count() > 1 and not alone
        here = slice(processes.index(), None, processes.count()) if self.several else slice(None)
        self.share = set(sorted(self.absent)[here])
        """Indices of the keys that this process computes."""
        self.fresh: dict[bytes, Tensor] = {}
        self.spent = StageCost("")
        """Cost of `fresh`; added to `cost` once they are written, as a killed run computes them again."""
        self.since = time.monotonic()

    def chosen(self, together: Sequence[int]) -> list[int]:
        """Return the indices of a batch that this process computes.

        If it has none but forward passes need all processes, return the first one that another computes.
        """
        own = [number for number in together if number in self.share]
        return own or [number for number in together if self.meets and number in self.absent][:1]

    def keep(self, numbers: Sequence[int], tensors: Sequence[Tensor]) -> None:
        # Moved or cloned: a view would keep a whole batch of states in memory.
        fresh = {
            self.keys[n]: t.to("cpu", copy=True)
            for n, t in zip(numbers, tensors, strict=True)
            if n in self.share
        }
        self.found |= fresh
        self.fresh |= fresh
        waited = time.monotonic() - self.since
        if waited > PATIENCE or sum(t.nbytes for t in self.fresh.values()) >= SHARD:
            self.flush()

    def flush(self) -> None:
        if self.part is not None:
            self.spent.cache_bytes_written += self.part.write(self.fresh)
        self.cost.take(self.spent)
        self.fresh, self.spent, self.since = {}, StageCost(""), time.monotonic()

    def join(self) -> None:
        """Finish: flush, wait for all processes, and read their results from the cache."""
        self.flush()
        if self.several and self.part is not None:
            processes.wait()
            self.found |= self.part.read([self.keys[n] for n in sorted(self.absent - self.share)])

    def tensors(self) -> list[Tensor]:
        return [self.found[key] for key in self.keys]


Asked = tuple[tuple[int, ...], tuple[bool, ...]]
"""Token IDs of a prompt, and a mask of the instruction's own tokens; an empty mask means all tokens."""


def pooled_states(
    model: nn.Module,
    texts: Sequence[Asked],
    kept: CachedTensors,
    layer: int,
    pad_id: int,
    batch: int,
) -> Iterator[tuple[list[int], list[Tensor]]]:
    """Yield the missing hidden states after a layer, mean-pooled over the instruction's own tokens."""
    for places in by_length([ids for ids, _ in texts], batch):
        if chosen := kept.chosen(places):
            ids, mask = padded(model, [texts[n][0] for n in chosen], pad_id)
            own = [list(map(int, texts[n][1])) or [1] * len(texts[n][0]) for n in chosen]
            states = states_up_to(model, ids, mask, [layer])[layer]
            kept.spent.teacher_tokens += int(mask.sum())
            yield chosen, list(mean_pool(states, pad(own, 0)[0].to(mask.device)).split(1))


def read_states(
    model: nn.Module,
    rows: Sequence[tuple[tuple[tuple[int, ...], tuple[int, ...]], str]],
    kept: CachedTensors,
    pad_id: int,
    batch: int,
) -> Iterator[tuple[list[int], list[Tensor]]]:
    """Yield the last hidden states at response positions of the missing rows; shared prefixes are read once.

    Batches are formed over all rows, cached or not, so that a resumed run is bit-identical to an
    uninterrupted one.

    Args:
        rows: ((prompt, response), language) of each row.
        kept: Tensors of these rows, cached or missing.
    """
    prompts, responses = [prompt for (prompt, _), _ in rows], [response for (_, response), _ in rows]
    for group, shared in groups(prompts, [language for _, language in rows]):
        prefix: Prefix | None = None
        for places in by_length([prompts[n] + responses[n] for n in group], batch):
            chosen = kept.chosen([group[place] for place in places])
            if not chosen:
                continue
            if shared and prefix is None:
                prefix = prefill(model, prompts[group[0]][:shared])
                shared = 0 if prefix is None else shared
                kept.spent.teacher_tokens += shared
            texts = [(*prompts[n][shared:], *responses[n]) for n in chosen]
            ids, mask = padded(model, texts, pad_id)
            kept.spent.teacher_tokens += int(mask.sum())
            hidden = last_hidden(model, ids, mask) if prefix is None else _behind(model, prefix, ids, mask)
            lengths = [len(responses[n]) for n in chosen]
            starts = [len(prompts[n]) - shared for n in chosen]
            at = response_positions(starts, lengths, ids.shape[1]).to(ids.device)
            yield chosen, list(hidden.flatten(0, 1)[at].split(lengths))


def groups(prompts: Sequence[tuple[int, ...]], languages: Sequence[str]) -> list[tuple[list[int], int]]:
    """Group rows by shared prompt prefix; return each group with its prefix length in tokens.

    The length is 0 for rows where a shared prefix does not pay. Rows of one language share its path and thus
    its node texts. With prompts sorted by token IDs, those with a common prefix are adjacent, so a group is a
    contiguous range; a range is split wherever its parts save more tokens than the whole.
    """
    apart: list[tuple[list[int], int]] = []
    plain: list[int] = []
    for code in dict.fromkeys(languages):
        order = sorted((n for n, one in enumerate(languages) if one == code), key=lambda n: prompts[n])
        for group, shared in _stretches(order, prompts)[1]:
            if shared:
                apart.append((group, shared))
            else:
                plain.extend(group)
    return ([(sorted(plain), 0)] if plain else []) + apart


def _stretches(
    order: list[int], prompts: Sequence[tuple[int, ...]]
) -> tuple[int, list[tuple[list[int], int]]]:
    """Return the number of tokens saved, and the groups that save them."""
    if len(order) < 2:
        return 0, [(order, 0)]
    common = [common_length(prompts[a], prompts[b]) for a, b in pairwise(order)]
    least = min(common)
    # A prompt's last token predicts the response's first token, so it is never part of the prefix.
    shared = min(least, min(len(prompts[n]) for n in order) - 1)
    saved = max(0, (len(order) - 1) * shared - FORWARD)
    whole = [(order, shared if saved else 0)]
    if least == max(common):
        return saved, whole
    cuts = [0, *(place + 1 for place, one in enumerate(common) if one == least), len(order)]
    parts = [_stretches(order[a:b], prompts) for a, b in pairwise(cuts)]
    if (theirs := sum(one for one, _ in parts)) > saved:
        return theirs, [group for _, groups in parts for group in groups]
    return saved, whole


def common_length(one: Sequence[int], other: Sequence[int]) -> int:
    """Return the length of the common prefix."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))


def _behind(model: nn.Module, prefix: Prefix, ids: Tensor, mask: Tensor) -> Tensor:
    """Return the last hidden states of rows that continue a shared prefix."""
    (rows, width), start = ids.shape, len(prefix.ids)
    return decoder_of(model)(
        input_ids=ids,
        attention_mask=torch.cat([mask.new_ones(rows, start), mask], 1),
        position_ids=torch.arange(start, start + width, device=ids.device)[None].expand(rows, -1),
        past_key_values=prefix.fork(rows),
        use_cache=True,
    ).last_hidden_state
