"""Per-node learning rates, by the share of training rows that pass through each node.

Adam normalises gradients by their magnitude, so a node that few rows reach takes steps as large as the
root's, from a noisier gradient. Its steps are scaled by the square root of its share of the rows: Adam's
scaling rule for the batch size (Malladi et al. 2022, arXiv:2205.10287, §4), since a node's batch is its share
of the step's rows.
"""

from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from isogloss.adapters.lora import TreeLora
from isogloss.adapters.tree import Tree


def node_rates(tree: Tree, languages: Iterable[str]) -> Tensor:
    """Return the factor on the steps of each of the tree's adapter rows: (rank,), from 0 to 1.

    It is 1 for the node that sees the most training rows: the root, if it has any rank.

    Args:
        languages: The language of every training row, in any order.
    """
    seen = torch.zeros(tree.rank)
    for code, many in Counter(languages).items():
        seen[tree.rows(code)] += many
    return (seen / seen.max().clamp(min=1)).sqrt()


class NodeRates:
    """Scale each optimiser step of the adapters' rows by their rates."""

    def __init__(self, adapters: TreeLora, rates: Tensor):
        self.learned = [
            (p, adapters.by_row(name, rates).to(p.device)) for name, p in adapters.parameters().items()
        ]
        self.before: list[Tensor] = []

    def attach(self, optimizer: torch.optim.Optimizer) -> None:
        optimizer.register_step_pre_hook(self._keep)
        optimizer.register_step_post_hook(self._shorten)

    def _keep(self, *_: Any) -> None:
        self.before = [p.detach().clone() for p, _ in self.learned]

    @torch.no_grad()
    def _shorten(self, *_: Any) -> None:
        for (p, rate), before in zip(self.learned, self.before, strict=True):
            p.copy_(before.lerp_(p, rate.expand_as(p)))
        self.before = []
