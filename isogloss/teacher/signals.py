"""Teacher signals: the reference model's outputs for each row, computed once before training.

There are two kinds. *Hidden*: teacher and student share the frozen head, so the teacher's last hidden states
at response positions are an exact signal of H numbers per token (2·H bytes in bfloat16); the head turns them
into full logits during the student's step. *Top-k*: the k likeliest tokens and the remaining mass, 4·k bytes
per token for any model, and the only kind that a served teacher provides. Losses accept either kind.

Flow: rows → cache lookup by content → batched forward passes for the rest → cache → `Signal`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from isogloss import processes
from isogloss.data.chat import pad
from isogloss.languages import SOURCE
from isogloss.losses.fused import chunk_size, logits_of, token_log_probs
from isogloss.losses.topk import TopK, pack, unpack
from isogloss.model.branches import branched_hidden, branches_fit, layout, predictors
from isogloss.model.cost import Meter, StageCost
from isogloss.model.decoder import by_length, padded, parts_of, text_config
from isogloss.teacher.cache import Cache, row_key
from isogloss.teacher.reading import CachedTensors, Set, pooled_states, read_states
from isogloss.teacher.rows import Row

Kind = Literal["hidden", "top_k"]


@dataclass(frozen=True)
class Signal:
    """The teacher outputs that one row's loss needs."""

    teacher: Float[Tensor, "tokens hidden"] | TopK | None
    """Last hidden states or top-k distribution at the response tokens, given what the teacher reads; None
    if not needed."""
    twin: Float[Tensor, " hidden"] | None
    """Mean-pooled hidden state of the English twin's prompt, at the layer of the hidden-state term; None if
    not needed."""
    covered: Bool[Tensor, " response"] | None = None
    """Mask of the response tokens that `teacher` has values for; None for all. A teacher with another
    tokenizer splits some tokens differently."""
    options: Float[Tensor, " options"] | None = None
    """ln probability of each answer option, in English, given the English twin as the whole prompt."""


@torch.no_grad()
def teacher_signals(
    model: nn.Module,
    rows: Sequence[Row],
    *,
    layer: int,
    pad_id: int,
    kind: Kind = "hidden",
    k: int = 32,
    teacher: bool = True,
    twins: bool = True,
    batch: int = 64,
    cache: Cache | None = None,
    cost: StageCost | None = None,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> list[Signal]:
    """Compute the signals of all rows, in order.

    Rows of similar length share a forward pass; identical twins and identical rows are processed once.

    Args:
        model: The reference model, adapters off.
        layer: Decoder layer of the twins' hidden states.
        k: Number of tokens kept, for `top_k`.
        teacher: If False, only score English rows, whose target is the model's own distribution. Enough for a
            loss without a divergence.
        twins: If False, skip the twins. Enough for a loss without a hidden-state term.
        cache: Where signals are looked up and stored.
        cost: Accumulates calls, cache hits, tokens actually processed, FLOPs and bytes written.
        progress: Callback with the number of texts done and the total.
    """
    model.eval()
    cost = StageCost("") if cost is None else cost
    meter, before = Meter(model, 0.0), replace(cost)
    asked = list(dict.fromkeys((row.twin_prompt, row.twin_mask) for row in rows)) if twins else []
    scored = [row for row in rows if _read_alone(row, teacher)]
    distinct = list({(row.teacher_prompt, row.student.response): row.language for row in scored}.items())
    meets = bool(parts_of(model))
    part = cache and cache.part(signal="pooled", layer=layer)
    pooled = CachedTensors(part, [row_key(ids, list(map(int, own))) for ids, own in asked], cost, meets)
    about: dict[str, Any] = {"signal": kind} | ({"k": k} if kind == "top_k" else {})
    said = CachedTensors(
        cache and cache.part(**about), [row_key(*texts) for texts, _ in distinct], cost, meets
    )
    cost.cached_hits += len(distinct) - len(said.absent)
    if said.several:
        processes.wait()  # all must look up the same cache content before anything is added
    sets = list(dict.fromkeys((row.twin_prompt, row.twin_options) for row in rows if row.options))
    if not teacher or not branches_fit(model):  # such rows then only have a cross-entropy loss
        sets = []
    vocab = text_config(model).vocab_size
    work = len(distinct) + len(asked) + len(sets)
    done = len(distinct) + len(asked) - len(pooled.absent) - len(said.absent)
    with meter.counting():
        for chosen, states in pooled_states(model, asked, pooled, layer, pad_id, batch):
            pooled.spent.add(meter)
            pooled.keep(chosen, states)
            progress(done := done + len(chosen), work)
        pooled.join()
        logits = logits_of(model)
        for chosen, states in read_states(model, distinct, said, pad_id, batch):
            if kind == "top_k":
                # All rows' tokens together: each product reads the whole head, however few tokens it has.
                some = torch.cat(states).split(chunk_size(model, states[0].is_cuda))
                likeliest = TopK.cat([TopK.of(logits(few), k) for few in some])
                states = pack(likeliest, vocab).split([len(one) for one in states])
            said.spent.add(meter)
            said.spent.teacher_calls += len(chosen)
            said.keep(chosen, states)
            progress(done := done + len(chosen), work)
        said.join()
    chances = _option_signals(model, sets, pad_id, batch, cache, cost, lambda n: progress(done + n, work))
    if said.several:
        cost.over_processes(before)
    found = {
        texts: unpack(one, vocab) if kind == "top_k" else one
        for (texts, _), one in zip(distinct, said.tensors(), strict=True)
    }
    vectors = {twin: one[0] for twin, one in zip(asked, pooled.tensors(), strict=True)}
    return [
        Signal(
            found.get((row.teacher_prompt, row.student.response)) if _read_alone(row, teacher) else None,
            vectors.get((row.twin_prompt, row.twin_mask)),
            options=chances.get((row.twin_prompt, row.twin_options)),
        )
        for row in rows
    ]


def _read_alone(row: Row, teacher: bool) -> bool:
    """Return whether the teacher scores a row's response token by token, rather than its set of options."""
    return not row.bare and (row.language == SOURCE or (teacher and not row.options))


def _option_signals(
    model: nn.Module,
    sets: Sequence[Set],
    pad_id: int,
    batch: int,
    cache: Cache | None,
    cost: StageCost,
    progress: Callable[[int], None],
) -> dict[Set, Float[Tensor, " options"]]:
    """Compute the ln probability of every option, end of turn included, given the English twin.

    All options of a prompt share one row (see `branches`); each only attends to the prompt and itself.
    """
    if not sets:
        return {}
    meets = bool(parts_of(model))
    kept = CachedTensors(
        cache and cache.part(signal="options"), [row_key(p, *o) for p, o in sets], cost, meets
    )
    cost.cached_hits += len(sets) - len(kept.absent)
    if kept.several:
        processes.wait()
    meter, done = Meter(model, 0.0), len(sets) - len(kept.absent)
    with meter.counting():
        for places in by_length([(*p, *chain(*o)) for p, o in sets], batch):
            chosen = kept.chosen(places)
            if not chosen:
                continue
            laid = [layout(len(sets[n][0]), [len(o) for o in sets[n][1]]) for n in chosen]
            ids, mask = padded(model, [(*sets[n][0], *chain(*sets[n][1])) for n in chosen], pad_id)
            branch = pad([one for one, _, _ in laid], -1)[0].to(ids.device)
            place = pad([one for _, one, _ in laid], 0)[0].to(ids.device)
            kept.spent.teacher_tokens += int(mask.sum())
            kept.spent.teacher_calls += len(chosen)
            hidden = branched_hidden(model, ids, branch, place)
            at: dict[int, int] = {}
            where, options = [], [option for n in chosen for option in sets[n][1]]
            for row, (n, (_, _, starts)) in enumerate(zip(chosen, laid, strict=True)):
                for start, option in zip(starts, sets[n][1], strict=True):
                    for one in predictors(len(sets[n][0]), start, len(option)):
                        where.append(at.setdefault(row * ids.shape[1] + one, len(at)))
            states = hidden.flatten(0, 1)[list(at)]
            tokens = torch.tensor([[*chain(*options)], where]).to(ids.device)
            said, _ = token_log_probs(model, states, *tokens)
            scores = torch.stack([one.sum() for one in said.split([len(option) for option in options])])
            found = list(scores.split([len(sets[n][1]) for n in chosen]))
            kept.spent.add(meter)
            kept.keep(chosen, found)
            progress(done := done + len(chosen))
        kept.join()
    return dict(zip(sets, kept.tensors(), strict=True))
