"""Signals: what the reference model says about each row, computed once before training.

Two kinds. *Hidden*: teacher and student share the frozen head, so the teacher's last hidden states at
response positions are an exact signal of H numbers per token (2·H bytes in bfloat16): the head turns them
into full logits at the student's step. *Top-k*: the k likeliest tokens and the rest, 4·k bytes per token
whatever the model, and the only form that a served teacher gives. A loss takes either and does not know
where it came from.

Flow: rows → by content from the cache, else read, many together → kept in the cache → `Signal`.
"""

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, pairwise
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import DynamicCache

from isogloss import processes
from isogloss.data.chat import pad, response_positions
from isogloss.languages import SOURCE
from isogloss.losses.fused import frozen_head
from isogloss.losses.topk import TopK, pack, unpack
from isogloss.model.branches import branched_hidden, branches_fit, layout
from isogloss.model.cost import Meter, Stage
from isogloss.model.decoder import causal_of, decoder_of, head, last_hidden, mean_pool, parts_of, states_up_to
from isogloss.teacher.cache import Cache, Part, row_key
from isogloss.teacher.rows import Row

Kind = Literal["hidden", "top_k"]
LOGITS = 1 << 25
"""Logits in memory at a time."""
SHARD = 16 << 20
"""Bytes of signals that are written together,"""
PATIENCE = 20.0
"""or what was read in so many seconds: what a killed run loses at most."""
FORWARD = 256
"""Tokens that it costs about to read a group of rows apart from the others."""


@dataclass(frozen=True)
class Signal:
    """What one row's loss needs of the reference model."""

    teacher: Float[Tensor, "tokens hidden"] | TopK | None
    """What it says of the response under the privileged prompt: last hidden states, or what was kept of the
    distribution; None: not asked for."""
    twin: Float[Tensor, " hidden"]
    """Mean-pooled state of the English twin's prompt, after the layer that the hidden-state term reads."""
    covered: Bool[Tensor, " response"] | None = None
    """Which response tokens `teacher` speaks of; None: all. Another tokenizer cuts some otherwise."""
    options: Float[Tensor, " options"] | None = None
    """ln probability of each of the row's answer options, in English behind the English twin alone."""


@torch.no_grad()
def hidden_signals(
    model: nn.Module,
    rows: Sequence[Row],
    *,
    layer: int,
    pad_id: int,
    kind: Kind = "hidden",
    k: int = 32,
    teacher: bool = True,
    batch: int = 64,
    cache: Cache | None = None,
    cost: Stage | None = None,
    fork: bool = True,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> list[Signal]:
    """Signals of all rows, in their order; the model must be the reference model, carriers off.

    Rows of like length share a forward; equal twins, and equal rows, are read once.

    Args:
        layer: Decoder layer of the twins' states.
        kind: What is kept of the teacher; `k` belongs to `top_k`.
        teacher: Without it English rows alone are scored, which keep to what the model answers itself: a loss
            without a divergence needs no more.
        cache: Where signals are looked for, and kept.
        cost: Gets calls, hits, what was really read, operations and bytes written.
        fork: Read the node texts that prompts begin with once for all of them.
    """
    model.eval()
    cost = Stage("") if cost is None else cost
    meter, before = Meter(model, 0.0), replace(cost)
    twins = list(dict.fromkeys((row.twin_prompt, row.twin_asked) for row in rows))
    scored = [row for row in rows if _read_alone(row, teacher)]
    distinct = list({(row.teacher_prompt, row.student.response): row.language for row in scored}.items())
    meets = bool(parts_of(model))
    pooled = Kept(_pooled_part(cache, layer), list(map(_pooled_key, twins)), cost, meets)
    about: dict[str, Any] = {"signal": kind} | ({"k": k} if kind == "top_k" else {})
    said = Kept(cache and cache.part(**about), [row_key(*texts) for texts, _ in distinct], cost, meets)
    cost.cached_hits += len(distinct) - len(said.absent)
    if said.several:
        processes.wait()  # all must have seen the same before anything is added
    vocab, work = causal_of(model).config.get_text_config().vocab_size, len(distinct) + len(twins)
    done = work - len(pooled.absent) - len(said.absent)
    with meter.counting():
        for chosen, states in _pooled(model, twins, pooled, layer, pad_id, batch):
            pooled.spent.add(meter)
            pooled.keep(chosen, states)
            progress(done := done + len(chosen), work)
        pooled.join()
        fixed = frozen_head(model)
        for chosen, states in _read(model, distinct, said, pad_id, batch, fork):
            if kind == "top_k":
                logits = (fixed.logits(one) if fixed else head(model, one) for one in states)
                states = [pack(TopK.of(one, k), vocab) for one in logits]
            said.spent.add(meter)
            said.spent.teacher_calls += len(chosen)
            said.keep(chosen, states)
            progress(done := done + len(chosen), work)
        said.join()
    chances = _option_signals(model, rows, pad_id, batch, cache, cost, progress) if teacher else {}
    if said.several:
        cost.over_processes(before)
    found = {
        texts: unpack(one, vocab) if kind == "top_k" else one
        for (texts, _), one in zip(distinct, said.tensors(), strict=True)
    }
    vectors = dict(zip(twins, pooled.tensors(), strict=True))
    return [
        Signal(
            found.get((row.teacher_prompt, row.student.response)) if _read_alone(row, teacher) else None,
            vectors[row.twin_prompt, row.twin_asked][0],
            options=chances.get((row.twin_prompt, row.twin_options)),
        )
        for row in rows
    ]


def _read_alone(row: Row, teacher: bool) -> bool:
    """Whether the teacher scores a row's response token by token; of answer sets it is asked for the set."""
    return not row.bare and (row.language == SOURCE or (teacher and not row.options))


Set = tuple[tuple[int, ...], tuple[tuple[int, ...], ...]]
"""An English prompt and the answers that may follow it."""


def _option_signals(
    model: nn.Module,
    rows: Sequence[Row],
    pad_id: int,
    batch: int,
    cache: Cache | None,
    cost: Stage,
    progress: Callable[[int, int], None],
) -> dict[Set, Float[Tensor, " options"]]:
    """ln probability of every option, end of turn included, behind the English twin; one reading a meaning.

    The options of a prompt are read in one row (`branches`), each as if it stood there alone.
    """
    sets = list(dict.fromkeys((row.twin_prompt, row.twin_options) for row in rows if row.options))
    if not sets or not branches_fit(model):  # then such rows have cross-entropy alone
        return {}
    meets = bool(parts_of(model))
    kept = Kept(cache and cache.part(signal="options"), [row_key(p, *o) for p, o in sets], cost, meets)
    cost.cached_hits += len(sets) - len(kept.absent)
    if kept.several:
        processes.wait()
    meter, done = Meter(model, 0.0), len(sets) - len(kept.absent)
    with meter.counting():
        for places in _by_length([(*p, *chain(*o)) for p, o in sets], batch):
            chosen = kept.chosen(places)
            if not chosen:
                continue
            laid = [layout(len(sets[n][0]), [len(o) for o in sets[n][1]]) for n in chosen]
            ids, mask = _padded(model, [(*sets[n][0], *chain(*sets[n][1])) for n in chosen], pad_id)
            branch, place = (
                pad(part, fill)[0].to(ids.device)
                for part, fill in (([one for one, _, _ in laid], -1), ([one for _, one, _ in laid], 0))
            )
            kept.spent.teacher_tokens += int(mask.sum())
            kept.spent.teacher_calls += len(chosen)
            hidden = branched_hidden(model, ids, branch, place)
            at, options = [], [option for n in chosen for option in sets[n][1]]
            for row, (n, (_, _, starts)) in enumerate(zip(chosen, laid, strict=True)):
                for start, option in zip(starts, sets[n][1], strict=True):
                    # The prompt's last token predicts every answer's first.
                    before = [len(sets[n][0]) - 1, *range(start, start + len(option) - 1)]
                    at += [row * ids.shape[1] + one for one in before]
            said = _log_probs(
                model, hidden.flatten(0, 1)[at], torch.tensor([*chain(*options)]).to(ids.device)
            )
            scores = torch.stack([one.sum() for one in said.split([len(option) for option in options])])
            found = list(scores.split([len(sets[n][1]) for n in chosen]))
            kept.spent.add(meter)
            kept.keep(chosen, found)
            progress(done := done + len(chosen), len(sets))
        kept.join()
    return dict(zip(sets, kept.tensors(), strict=True))


def _log_probs(model: nn.Module, states: Tensor, ids: Tensor) -> Float[Tensor, " tokens"]:
    """ln probability of a token at each state, the logits of a chunk at a time."""
    fixed, vocab = frozen_head(model), causal_of(model).config.get_text_config().vocab_size
    size, found = max(1, LOGITS // vocab), []
    for part, own in zip(states.split(size), ids.split(size), strict=True):
        logits = (fixed.logits(part) if fixed else head(model, part)).float()
        found.append(logits.gather(1, own[:, None])[:, 0] - logits.logsumexp(1))
    return torch.cat(found)


@torch.no_grad()
def where_right(model: nn.Module, rows: Sequence[Row], signals: Sequence[Signal]) -> list[Signal]:
    """Signals that speak only of response tokens which the teacher itself finds likeliest in their place.

    Where it expects another token than the response has, the divergence would teach that one. English, which
    keeps to what the model says, is left as it is.
    """
    found = []
    for row, signal in zip(rows, signals, strict=True):
        if signal.teacher is not None and row.language != SOURCE:
            response, covered = torch.tensor(row.student.response), signal.covered
            if covered is None:
                covered = torch.ones_like(response, dtype=torch.bool)
            right = _likeliest(model, signal.teacher) == response[covered]
            covered = covered.masked_scatter(covered, right)
            signal = replace(signal, teacher=signal.teacher[right], covered=covered)
        found.append(signal)
    return found


def _likeliest(model: nn.Module, teacher: Tensor | TopK) -> Int[Tensor, " tokens"]:
    if isinstance(teacher, TopK):
        return teacher.ids.gather(1, teacher.logprobs.argmax(1, keepdim=True))[:, 0].long()
    weight = next(model.parameters())
    return head(model, teacher.to(weight.device, weight.dtype)).argmax(-1).cpu()


class Kept:
    """One tensor for each key: those that the cache has, and those that are read now and kept in it.

    Several processes share out what is absent, and find in the cache what the others have read.

    Args:
        meets: Every forward needs all processes.
    """

    def __init__(self, part: Part | None, keys: Sequence[bytes], cost: Stage, meets: bool = False):
        self.part, self.keys, self.cost, self.meets = part, keys, cost, meets
        self.found = {} if part is None else part.read(keys)
        self.absent = {number for number, key in enumerate(keys) if key not in self.found}
        self.several = part is not None and processes.count() > 1
        here = slice(processes.index(), None, processes.count()) if self.several else slice(None)
        self.share = set(sorted(self.absent)[here])
        """What this process is to read."""
        self.fresh: dict[bytes, Tensor] = {}
        self.spent = Stage("")
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
        self.fresh, self.spent, self.since = {}, Stage(""), time.monotonic()

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


def _pooled_part(cache: Cache | None, layer: int) -> Part | None:
    return cache and cache.part(signal="pooled", layer=layer)


def _pooled_key(text: Asked) -> bytes:
    return row_key(text[0], list(map(int, text[1])))


def _pooled(
    model: nn.Module,
    texts: Sequence[Asked],
    kept: Kept,
    layer: int,
    pad_id: int,
    batch: int,
) -> Iterator[tuple[list[int], list[Tensor]]]:
    """States of the absent texts after a layer, mean over the instruction's own tokens."""
    for places in _by_length([ids for ids, _ in texts], batch):
        if chosen := kept.chosen(places):
            ids, mask = _padded(model, [texts[n][0] for n in chosen], pad_id)
            own = [list(map(int, texts[n][1])) or [1] * len(texts[n][0]) for n in chosen]
            states = states_up_to(model, ids, mask, [layer])[layer]
            kept.spent.teacher_tokens += int(mask.sum())
            yield chosen, list(mean_pool(states, pad(own, 0)[0].to(mask.device)).split(1))


def _read(
    model: nn.Module,
    rows: Sequence[tuple[tuple[tuple[int, ...], tuple[int, ...]], str]],
    kept: Kept,
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
        prefix: DynamicCache | None = None
        for places in _by_length([rows[n][0][0] + rows[n][0][1] for n in group], batch):
            chosen = kept.chosen([group[place] for place in places])
            if not chosen:
                continue
            if shared and prefix is None:
                prefix = _prefill(model, prompts[group[0]][:shared], kept.spent)
                shared = 0 if prefix is None else shared
            texts = [(*rows[n][0][0][shared:], *rows[n][0][1]) for n in chosen]
            ids, mask = _padded(model, texts, pad_id)
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


def _prefill(model: nn.Module, prefix: Sequence[int], cost: Stage) -> DynamicCache | None:
    """Keys and values of a prefix; None where the architecture keeps something else."""
    kinds = getattr(causal_of(model).config.get_text_config(), "layer_types", None) or ()
    if not set(kinds) <= {"full_attention", "sliding_attention"}:
        return None
    cache = DynamicCache()
    ids = torch.tensor([list(prefix)], device=next(model.parameters()).device)
    decoder_of(model)(
        input_ids=ids, attention_mask=torch.ones_like(ids), past_key_values=cache, use_cache=True
    )
    cost.teacher_tokens += len(prefix)
    return cache if cache.get_seq_length() == len(prefix) else None


def _behind(model: nn.Module, prefix: DynamicCache, ids: Tensor, mask: Tensor) -> Tensor:
    """Last hidden states of rows that stand behind one prefix; its cache is left as it was."""
    rows, width = ids.shape
    start = prefix.get_seq_length()
    forked = copy.deepcopy(prefix)
    forked.batch_repeat_interleave(rows)
    return decoder_of(model)(
        input_ids=ids,
        attention_mask=torch.cat([mask.new_ones(rows, start), mask], 1),
        position_ids=torch.arange(start, start + width, device=ids.device)[None].expand(rows, -1),
        past_key_values=forked,
        use_cache=True,
    ).last_hidden_state


def _padded(model: nn.Module, texts: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    device = next(model.parameters()).device
    ids, mask = pad([list(text) for text in texts], pad_id)
    return ids.to(device), mask.to(device)


def _by_length(texts: Sequence[tuple[int, ...]], batch: int) -> list[list[int]]:
    order = sorted(range(len(texts)), key=lambda number: len(texts[number]))
    return [order[i : i + batch] for i in range(0, len(order), batch)]
