"""How the frozen model reads many texts: shared prefixes once, like lengths together, cached ones once."""

import time
from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from isogloss import processes
from isogloss.data.chat import pad, response_positions
from isogloss.model.cost import StageCost
from isogloss.model.decoder import decoder_of, last_hidden, mean_pool, states_up_to
from isogloss.model.prefix import Prefix, prefill
from isogloss.teacher.cache import Cache, Part, row_key

SHARD = 16 << 20
"""Bytes of signals that are written together."""
PATIENCE = 20.0
"""Seconds after which signals are written even if they are fewer: the most that a killed run loses."""
FORWARD = 256
"""Tokens that it costs about to read a group of rows apart from the others."""


Set = tuple[tuple[int, ...], tuple[tuple[int, ...], ...]]
"""An English prompt and the answers that may follow it."""


class CachedTensors:
    """One tensor for each key: those that the cache has, and those that are read now and kept in it.

    Several processes share out what is absent, and find in the cache what the others have read.

    Args:
        meets: Every forward needs all processes.
        alone: This process reads all that is absent, whatever others do.
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
        """What this process is to read."""
        self.fresh: dict[bytes, Tensor] = {}
        self.spent = StageCost("")
        """What the fresh ones cost: counted when they are safe, as a killed process reads them again."""
        self.since = time.monotonic()

    def chosen(self, together: Sequence[int]) -> list[int]:
        """What this process reads of some that are read together.

        Where it has none of them and a forward needs it, the first that another reads.
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
        """After the last: what the other processes have read is there too."""
        self.flush()
        if self.several and self.part is not None:
            processes.wait()
            self.found |= self.part.read([self.keys[n] for n in sorted(self.absent - self.share)])

    def tensors(self) -> list[Tensor]:
        return [self.found[key] for key in self.keys]


Asked = tuple[tuple[int, ...], tuple[bool, ...]]
"""A prompt's ids, and which of them hold the instruction itself; where nobody has said, all count."""


def pooled_part(cache: Cache | None, layer: int) -> Part | None:
    """Where the cache keeps mean states of a layer."""
    return cache and cache.part(signal="pooled", layer=layer)


def pooled_key(text: Asked) -> bytes:
    """What they are kept by: the ids, and which of them are pooled."""
    return row_key(text[0], list(map(int, text[1])))


def pooled_states(
    model: nn.Module,
    texts: Sequence[Asked],
    kept: CachedTensors,
    layer: int,
    pad_id: int,
    batch: int,
) -> Iterator[tuple[list[int], list[Tensor]]]:
    """States of the absent texts after a layer, mean over the instruction's own tokens."""
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
    fork: bool,
) -> Iterator[tuple[list[int], list[Tensor]]]:
    """Last hidden states at response positions of the absent rows, ((prompt, response), language) each.

    Batches are laid out for all rows, so that what a killed run had read and what it had not are read as in
    an unbroken one, to the bit.
    """
    prompts = [prompt for (prompt, _), _ in rows]
    for group, shared in groups(prompts, [language for _, language in rows], fork):
        prefix: Prefix | None = None
        for places in by_length([rows[n][0][0] + rows[n][0][1] for n in group], batch):
            chosen = kept.chosen([group[place] for place in places])
            if not chosen:
                continue
            if shared and prefix is None:
                prefix = prefill(model, prompts[group[0]][:shared])
                shared = 0 if prefix is None else shared
                kept.spent.teacher_tokens += shared
            texts = [(*rows[n][0][0][shared:], *rows[n][0][1]) for n in chosen]
            ids, mask = padded(model, texts, pad_id)
            kept.spent.teacher_tokens += int(mask.sum())
            hidden = last_hidden(model, ids, mask) if prefix is None else _behind(model, prefix, ids, mask)
            lengths = [len(rows[n][0][1]) for n in chosen]
            starts = [len(prompts[n]) - shared for n in chosen]
            at = response_positions(starts, lengths, ids.shape[1]).to(ids.device)
            yield chosen, list(hidden.flatten(0, 1)[at].split(lengths))


def groups(
    prompts: Sequence[tuple[int, ...]], languages: Sequence[str], fork: bool
) -> list[tuple[list[int], int]]:
    """Rows that are read together, and how many tokens all their prompts begin with; 0: not worth it.

    The rows of a language share a path, and in it their node texts. In the order of their ids prompts that
    begin alike are neighbours, so a group is a stretch; of a stretch and its parts what saves more tokens.
    """
    if not fork:
        return [(list(range(len(prompts))), 0)]
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
    """Tokens saved, and the groups that save them."""
    if len(order) < 2:
        return 0, [(order, 0)]
    common = [_common(prompts[a], prompts[b]) for a, b in pairwise(order)]
    least = min(common)
    # A prompt's last token predicts the response's first, so it is read with the response.
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


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens both begin with."""
    for place, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return place
    return min(len(one), len(other))


def _behind(model: nn.Module, prefix: Prefix, ids: Tensor, mask: Tensor) -> Tensor:
    """Last hidden states of rows that stand behind one prefix."""
    rows, width = ids.shape
    start = len(prefix.ids)
    return decoder_of(model)(
        input_ids=ids,
        attention_mask=torch.cat([mask.new_ones(rows, start), mask], 1),
        position_ids=torch.arange(start, start + width, device=ids.device)[None].expand(rows, -1),
        past_key_values=prefix.fork(rows),
        use_cache=True,
    ).last_hidden_state


def padded(model: nn.Module, texts: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Ids and mask of texts of unlike length, where the model lies."""
    device = next(model.parameters()).device
    ids, mask = pad([list(text) for text in texts], pad_id)
    return ids.to(device), mask.to(device)


def by_length(texts: Sequence[tuple[int, ...]], batch: int) -> list[list[int]]:
    """Numbers of the texts in batches of like length."""
    order = sorted(range(len(texts)), key=lambda number: len(texts[number]))
    return [order[i : i + batch] for i in range(0, len(order), batch)]
