"""Signals: what the reference model says about each row, computed once before training.

Teacher and student share the frozen head, so the teacher's last hidden states at response positions
are an exact signal of 2·H bytes per token: the head turns them into full logits at the student's step.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from isogloss.data.chat import pad, response_positions
from isogloss.distill.rows import Row
from isogloss.distill.topk import TopK as TopK
from isogloss.languages import SOURCE
from isogloss.model import capture, last_hidden, mean_pool


@dataclass(frozen=True)
class Signal:
    """What one row's loss needs of the reference model."""

    teacher: Float[Tensor, "tokens hidden"] | None
    """Last hidden states that predict the response, under the privileged prompt; None: not asked for."""
    twin: Float[Tensor, " hidden"]
    """Mean-pooled middle state of the English twin's prompt."""


@torch.no_grad()
def hidden_signals(
    model: nn.Module,
    rows: Sequence[Row],
    *,
    layer: int,
    pad_id: int,
    teacher: bool = True,
    batch: int = 64,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> list[Signal]:
    """Signals of all rows, in their order; the model must be the reference model, carriers off.

    Without `teacher` it scores English rows only, which keep to what it answers itself: a loss without
    a divergence needs no more. Rows of like length share a forward; equal twins are read once.
    """
    model.eval()
    device = next(model.parameters()).device
    twins = list(dict.fromkeys(row.twin_prompt for row in rows))
    scored = [number for number, row in enumerate(rows) if teacher or row.language == SOURCE]
    work = len(scored) + len(twins)
    done = 0
    pooled: dict[tuple[int, ...], Tensor] = {}
    for chosen in _by_length(twins, batch):
        ids, mask = (t.to(device) for t in pad([list(twins[i]) for i in chosen], pad_id))
        with capture(model, layer) as states:
            last_hidden(model, ids, mask)
        for number, vector in zip(chosen, mean_pool(states[0], mask), strict=True):
            pooled[twins[number]] = vector
        progress(done := done + len(chosen), work)
    teachers: list[Tensor | None] = [None] * len(rows)
    for places in _by_length([rows[i].teacher_prompt + rows[i].student.response for i in scored], batch):
        chosen = [scored[place] for place in places]
        group = [rows[i] for i in chosen]
        ids, mask = (
            t.to(device) for t in pad([[*row.teacher_prompt, *row.student.response] for row in group], pad_id)
        )
        starts, lengths = [len(r.teacher_prompt) for r in group], [len(r.student.response) for r in group]
        hidden = last_hidden(model, ids, mask)
        at = response_positions(starts, lengths, ids.shape[1]).to(device)
        for number, states in zip(chosen, hidden.flatten(0, 1)[at].split(lengths), strict=True):
            teachers[number] = states.clone()
        progress(done := done + len(chosen), work)
    return [Signal(t, pooled[row.twin_prompt]) for t, row in zip(teachers, rows, strict=True)]


def _by_length(texts: Sequence[tuple[int, ...]], batch: int) -> list[list[int]]:
    order = sorted(range(len(texts)), key=lambda number: len(texts[number]))
    return [order[i : i + batch] for i in range(0, len(order), batch)]
