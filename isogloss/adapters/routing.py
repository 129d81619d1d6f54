"""Which of the adapters' rows each text of a batch reads, and these rows gathered for all weights at once."""

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from isogloss.adapters.tree import Tree

KEPT = 1 << 28
"""Bytes of gathered rows that are kept, at most, while nothing learns."""
Shared = tuple[Int[Tensor, " used"], Float[Tensor, "batch 1 used"] | None]
"""Rows that a batch reads, and which of its rows reads which; see `Routing.shared`."""


class _Rows(torch.autograd.Function):
    """The same rows of many weights, in one tensor; languages share rows, whose gradient is a sum."""

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, spent: Callable[[], None], *weights: Tensor
    ) -> Float[Tensor, "weights rows features"]:
        ctx.rows, ctx.rank, ctx.spent = rows, len(weights[0]), spent
        return torch.stack([weight.index_select(0, rows) for weight in weights])

    @staticmethod
    def backward(ctx: Any, *outer: Float[Tensor, "weights rows features"]) -> tuple:
        ctx.spent()
        (found,) = outer
        whole = found.new_zeros(len(found), ctx.rank, found.shape[2])
        return None, None, *whole.index_add_(1, ctx.rows, found).unbind()


class Routing:
    """Which rows each row of the current batch reads; shared by all adapters.

    Batch rows of one language read the same rows, so weights are gathered once per *distinct* path. A path
    that is shorter than others is filled up in front with rows that count for nothing. Without gradients, as
    in generation, where every token would gather anew, what was gathered is kept until the path changes.

    Two ways lead to the same sums. `gather` gives each batch row its own rows: as many products as a path is
    wide. `shared` gives all batch rows what any of them reads, with a mask: more products, but in one plain
    matrix, which is faster where few tokens are read at a time.
    """

    def __init__(self, tree: Tree):
        self.tree = tree
        self.rows: Int[Tensor, "paths width"] | None = None
        self.scale: Float[Tensor, "paths width 1"] | None = None
        self.path_of: Int[Tensor, " batch"] | None = None
        self._kept: dict[Hashable, Tensor] = {}

    def set(self, names: Sequence[str], device: torch.device, *, width: int = 0) -> None:
        """The batch's languages (or nodes), one per row; no node off a row's path is read.

        Args:
            width: Rows that are gathered at least, however short the batch's paths.
        """
        distinct = list(dict.fromkeys(names))
        paths = [self.tree.rows(name) for name in distinct]
        width = max(width, *map(len, paths))
        rows = torch.zeros(len(distinct), width, dtype=torch.long)
        scale = torch.zeros(len(distinct), width, 1)
        for number, on in enumerate(paths):
            rows[number, width - len(on) :] = torch.tensor(on, dtype=torch.long)
            scale[number, width - len(on) :] = 1.0
        self.clear()
        self.rows, self.scale = rows.to(device), scale.to(device)
        self.path_of = torch.tensor([distinct.index(name) for name in names], device=device)

    def clear(self) -> None:
        """No path is set."""
        self.rows = self.scale = self.path_of = None
        self._kept.clear()

    def gather(
        self, weight: Float[Tensor, "rank ..."], dtype: torch.dtype, *, scaled: bool = False
    ) -> Float[Tensor, "batch width ..."]:
        """Each batch row's share of a weight whose first axis is the tree's rows.

        Languages share rows, whose gradient is a sum. `index_select` adds it up in one order; behind an index
        in brackets the threads of a processor add as they come, and no two runs are alike.

        Args:
            scaled: Rows that fill up a short path are zero.
        """
        if torch.is_grad_enabled() or weight.is_meta or weight.is_inference():
            return self._gathered(weight, dtype, scaled)
        # Memory and version tell a weight from others and from what it was.
        name = (weight.data_ptr(), weight.shape, weight._version, dtype, scaled)
        if name not in self._kept:
            found = self._gathered(weight, dtype, scaled)
            if sum(one.nbytes for one in self._kept.values()) + found.nbytes > KEPT:
                return found
            self._kept[name] = found
        return self._kept[name]

    def gather_all(
        self,
        weights: Sequence[Float[Tensor, "rank features"]],
        dtype: torch.dtype,
        spent: Callable[[], None],
        *,
        scaled: bool = False,
    ) -> Sequence[Float[Tensor, "batch width features"]]:
        """As `gather`, for many weights of one shape: a few operations where each would take its own.

        Args:
            spent: Called in backward, after which what was gathered can be learned from no more.
        """
        rows, scale, path_of = self._set()
        found: Any = _Rows.apply(rows.flatten(), spent, *weights)
        found = found.unflatten(1, rows.shape)
        found = found * scale if scaled else found
        return found.to(dtype).index_select(1, path_of).unbind()

    def shared(self) -> Shared:
        """The rows that any row of the batch reads, in the tree's order, and 1 where one reads them, else 0.

        Instead of the zeros and ones None, where all of the batch read one path.
        """
        rows, scale, path_of = self._set()
        used = rows[scale[..., 0] > 0].unique()
        if len(rows) == 1:
            return used, None
        reads = (rows[..., None] == used) * scale  # paths width used
        return used, reads.amax(1)[path_of][:, None]

    def _gathered(
        self, weight: Float[Tensor, "rank ..."], dtype: torch.dtype, scaled: bool
    ) -> Float[Tensor, "batch width ..."]:
        rows, scale, path_of = self._set()
        found = weight.index_select(0, rows.flatten()).unflatten(0, rows.shape)
        found = found * scale if scaled else found
        return found.to(dtype).index_select(0, path_of)

    def _set(self) -> tuple[Tensor, Tensor, Tensor]:
        """Rows, scale and path of each batch row."""
        if self.rows is None or self.scale is None or self.path_of is None:
            raise RuntimeError("no path is set; wrap the forward in adapters.on(languages)")
        return self.rows, self.scale, self.path_of
