"""Ways of training a tree that are off by default: each is one setting of `distill`.

Knows nodes and rows of carriers, not how these reach the model.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from isogloss.distill.rows import Row
from isogloss.distill.trainer import Sample, Weights, batch_losses, collate
from isogloss.languages import SOURCE
from isogloss.tree.carrier import Carrier
from isogloss.tree.nodes import Node


def rows_below(nodes: Sequence[Node], rows: Sequence[Row]) -> dict[str, int]:
    """How many rows the languages below each node have."""
    return {node.name: sum(row.language in node.languages for row in rows) for node in nodes}


class Shrinkage(TrainerCallback):
    """Pulls every node but the root toward its parent, more strongly the less data it has.

    What a node adds to its parent is its own rows, so they are shrunk to zero: after each step they lose
    learning rate · weight / number of rows of themselves. That is an L2 penalty kept apart from Adam's
    scaling (Loshchilov & Hutter 2019, arXiv:1711.05101, algorithm 2), which would undo the division by data.

    Args:
        counts: Rows of training below each node, by its name.
    """

    def __init__(self, carrier: Carrier, weight: float, counts: Mapping[str, int]):
        pull = torch.zeros(carrier.tree.rank)
        for node in carrier.learning:
            if node.parent is not None:
                pull[list(node.rows)] = weight / max(1, counts[node.name])
        self.pulls = [(p, carrier.over_rows(name, pull)) for name, p in carrier.parameters().items()]

    @torch.no_grad()
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        lr = kwargs["lr_scheduler"].get_last_lr()[0]
        for p, pull in self.pulls:
            p.mul_((1 - lr * pull).clamp(min=0))


class Average(TrainerCallback):
    """Ends training with the mean of the carrier's weights over the last share of the steps.

    The running mean lies in the optimiser's state, so a checkpoint holds it and a resumed run keeps it.
    """

    def __init__(self, share: float):
        self.share = share

    @torch.no_grad()
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        first = round(state.max_steps * (1 - self.share))
        if (seen := state.global_step - first) > 0:
            for p, kept in _states(kwargs["optimizer"]):
                mean = kept.setdefault("average", p.detach().clone())
                mean += (p - mean) / seen

    @torch.no_grad()
    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        for p, kept in _states(kwargs["optimizer"]):
            if "average" in kept:
                p.copy_(kept["average"])


def _states(optimizer: Any) -> list[tuple[Tensor, dict[str, Any]]]:
    return [(p, optimizer.state[p]) for group in optimizer.param_groups for p in group["params"]]


def held_out(rows: Sequence[Row], share: float, seed: int) -> tuple[list[Row], list[Row]]:
    """Rows to learn from, and a share of all meanings with their rows in every language; English stays."""
    meanings = sorted({row.meaning for row in rows if row.language != SOURCE})
    held = set(random.Random(seed).sample(meanings, round(share * len(meanings))))
    apart = [row.language != SOURCE and row.meaning in held for row in rows]
    return (
        [row for row, out in zip(rows, apart, strict=True) if not out],
        [row for row, out in zip(rows, apart, strict=True) if out],
    )


@dataclass(frozen=True)
class Gain:
    """What a node's rows do for held-out rows of its languages, in nats a response token."""

    node: str
    without: float
    own: float

    @property
    def helps(self) -> bool:
        return self.own < self.without


def prune(carrier: Carrier, rows: Sequence[Row], *, pad_id: int, batch: int = 64) -> list[Gain]:
    """Set the nodes to zero rows that do not lower the cross-entropy of held-out rows, leaves first.

    The root stays, as it has no parent to fall back on, and so does a node without held-out rows.
    """
    gains = []
    for node in reversed([node for node in carrier.learning if node.parent is not None and node.rank]):
        chosen = [row for row in rows if row.language in node.languages]
        if not chosen:
            continue
        own = _cross_entropy(carrier, chosen, pad_id, batch)
        before = {name: tensor.clone() for name, tensor in carrier.state().items()}
        carrier.clear([node])
        gains.append(Gain(node.name, _cross_entropy(carrier, chosen, pad_id, batch), own))
        if gains[-1].helps:
            carrier.load_state(before)
    return gains


@torch.no_grad()
def _cross_entropy(carrier: Carrier, rows: Sequence[Row], pad_id: int, batch: int) -> float:
    carrier.model.eval()
    device, total, tokens = next(carrier.model.parameters()).device, 0.0, 0
    for start in range(0, len(rows), batch):
        samples = [Sample(row.student, row.language) for row in rows[start : start + batch]]
        collated = collate(samples, pad_id).to(device)
        total += batch_losses(carrier.model, collated, Weights(), carrier)["ce"].item()
        tokens += len(collated.response)
    carrier.off()
    return total / tokens
