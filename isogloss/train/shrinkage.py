"""Training nodes by how much data they have; off by default.

Knows nodes and rows of carriers, not how these reach the model.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import TrainerCallback

from isogloss.adapters.base import Carrier
from isogloss.adapters.tree import Node
from isogloss.teacher.rows import Row


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
