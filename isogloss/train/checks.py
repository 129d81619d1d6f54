"""Cheap self-checks before and at the start of training, each against a silent failure.

A failed check stops the run. A `DataError` is a fault in the user's data; any other error is a bug in this
program or in a library, which no setting can fix.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import TrainerCallback

from isogloss import processes
from isogloss.adapters.lora import TreeLora
from isogloss.languages import SOURCE
from isogloss.losses.functional import forward_kl
from isogloss.losses.topk import TopK
from isogloss.model.decoder import causal_of, head, last_hidden
from isogloss.teacher.rows import Row
from isogloss.teacher.signals import Kind, teacher_signals
from isogloss.train.batch import Sample, collate, samples_of
from isogloss.train.objective import Weights, batch_losses

FEW = 4
"""Number of rows on which teacher and student are compared."""
PER_LANGUAGE = 8
"""Rows per language on which the divergence before training is measured."""
ROUNDING = {torch.float32: 1e-4, torch.float64: 1e-4}
"""Tolerance between two forward passes of one text, in nats per token; `COARSE` in half precision."""
COARSE = 2e-2


@torch.no_grad()
def check_teacher(
    adapters: TreeLora, rows: Sequence[Row], *, pad_id: int, layer: int, kind: Kind, k: int
) -> None:
    """Check that the teacher is the reference model, in eval mode, and aligned with the student.

    Uses the shortest row of up to `FEW` languages. With adapters off, hidden states must be bit-identical to
    those of the model without adapters, and to those of a second forward pass. A teacher given the student's
    prompt, through signals, collation and loss, must match the student without adapters and the logits of the
    model's own forward pass up to rounding; so must the cross-entropy.

    Raises:
        RuntimeError: One of these does not hold.
    """
    model = adapters.model
    shortest = sorted(rows, key=lambda row: len(row.student.prompt) + len(row.student.response))
    few = list({row.language: row for row in reversed(shortest)}.values())[-FEW:]
    plain = [replace(row, teacher_prompt=row.student.prompt, options=()) for row in few]
    adapters.off()
    signals = teacher_signals(model, plain, layer=layer, pad_id=pad_id, kind=kind, k=k)
    if dropping := [name for name, module in model.named_modules() if module.training]:
        name = dropping[0] or "the model"
        raise RuntimeError(f"self-check: the teacher is in training mode ({name})")
    batch = collate(samples_of(plain, signals), pad_id).to(next(model.parameters()).device)
    off, again = (last_hidden(model, batch.ids, batch.mask) for _ in range(2))
    with _without(model):
        bare = last_hidden(model, batch.ids, batch.mask)
    if not torch.equal(off, again):
        raise RuntimeError(
            "self-check: two teacher forwards on the same batch differ (a nondeterministic kernel?)"
        )
    if not torch.equal(off, bare):
        raise RuntimeError("self-check: with adapters off the model is not the reference model")
    few_nats = ROUNDING.get(off.dtype, COARSE)
    parts = batch_losses(model, batch, Weights(kl=1.0, layer=layer))
    nats = sum(float(parts[name]) for name in ("kl", "replay") if name in parts) / len(batch.response)
    if not nats <= few_nats:
        far = f"{nats:.4f} nats per token"
        raise RuntimeError(f"self-check: teacher and student differ by {far} on the same prompt")
    # An independent reference: transformers' own forward pass on the same rows.
    reference = causal_of(model)
    own = reference(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False).logits
    assert batch.teacher is not None
    said = batch.teacher if isinstance(batch.teacher, TopK) else head(model, batch.teacher.to(off.dtype))
    divergence = forward_kl(own.flatten(0, 1)[batch.positions][batch.teacher_mask], said) / int(
        batch.teacher_mask.sum()
    )
    apart = {"the teacher's distribution": float(divergence)}
    if taught := [number for number, code in enumerate(batch.languages) if code != SOURCE]:
        labels = batch.ids.masked_fill((batch.mask == 0) | (batch.prompt_mask == 1), -100)[taught]
        read = {"input_ids": batch.ids[taught], "attention_mask": batch.mask[taught], "labels": labels}
        count = int((labels != -100).sum())
        ours = float(parts["ce"]) / count
        apart["the cross-entropy"] = abs(ours - float(reference(**read, use_cache=False).loss))
    limits = dict.fromkeys(apart, few_nats)
    if taught and off.dtype not in ROUNDING:
        # Its logits are rounded to the model's dtype and ours are not: each token's loss is off by up to half
        # a unit in the last place of the largest logit, and the errors average out over the tokens.
        rounding = float(own.abs().amax()) * torch.finfo(off.dtype).eps / 2
        limits["the cross-entropy"] = max(few_nats, 4 * rounding / count**0.5)
    for what, far in apart.items():
        if not far <= limits[what]:
            raise RuntimeError(f"self-check: {what} is off by {far:.4f} nats per token from the model's own")


@torch.no_grad()
def divergence_by_language(
    adapters: TreeLora,
    samples: Sequence[Sample],
    weights: Weights,
    pad_id: int,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> dict[str, float]:
    """Measure the divergence of student from teacher per language, in nats per response token, on a few rows.

    Before training, this is what the student would gain from the teacher's prompt. Languages without a scored
    row are skipped.
    """
    device = next(adapters.model.parameters()).device
    found: dict[str, float] = {}
    codes = list(dict.fromkeys(sample.language for sample in samples))
    for number, code in enumerate(codes, start=1):
        scored = [s for s in samples if s.language == code and s.signal and s.signal.teacher is not None]
        if scored:
            batch = collate(scored[:PER_LANGUAGE], pad_id).to(device)
            # At another temperature, the loss is no longer in nats.
            plain = replace(weights, kl=1.0, temperature=1.0)
            parts = batch_losses(adapters.model, batch, plain, adapters)
            divergence = float(parts["replay" if "replay" in parts else "kl"])
            found[code] = divergence / max(1, int(batch.teacher_mask.sum()))
        progress(number, len(codes))
    adapters.off()
    return found


class PathsOnly(TrainerCallback):
    """Check that the first update changes only nodes on the paths of the rows read, to finite values.

    Args:
        read: The languages of the rows read so far, updated by the trainer.

    Raises, at that step's end:
        RuntimeError: Another node has changed, or a node contains nan or infinity.
    """

    def __init__(self, adapters: TreeLora, read: set[str]):
        self.adapters, self.read = adapters, read
        self.before: dict[str, dict[str, Tensor]] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # After a resume, Adam's moments also update nodes that no row uses.
        if state.global_step == 0:
            self.before = {node.name: self._rows(node) for node in self.adapters.tree.nodes}
            self.read.clear()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        changed = [
            node.name
            for node in self.adapters.tree.nodes
            if node.name in self.before
            and any(
                not torch.equal(p, self.before[node.name][name])
                for name, p in self.adapters.node_parameters(node).items()
            )
        ]
        if not changed:  # the first step of a warm-up has a learning rate of 0
            return
        self.before = {}
        for name in changed:
            rows = self.adapters.node_parameters(self.adapters.tree.by_name[name]).values()
            if not all(torch.isfinite(p).all() for p in rows):
                raise RuntimeError(f"self-check: the first step has made {name} nan or infinite")
        everywhere = processes.gathered(sorted(self.read))
        read = {node.name for code in everywhere for node in self.adapters.tree.path(code)}
        if strays := [name for name in changed if name not in read]:
            raise RuntimeError(f"self-check: {strays[0]} has changed, but no row read so far uses it")

    def _rows(self, node: Any) -> dict[str, Tensor]:
        return {name: p.clone() for name, p in self.adapters.node_parameters(node).items()}


@contextmanager
def _without(model: nn.Module) -> Iterator[None]:
    """Replace the adapted layers with their base layers inside the context."""
    places = [
        (model.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2], module)
        for name, module in model.named_modules()
        if isinstance(module, LoraLayer)
    ]
    try:
        for parent, child, module in places:
            setattr(parent, child, module.base_layer)
        yield
    finally:
        for parent, child, module in places:
            setattr(parent, child, module)
