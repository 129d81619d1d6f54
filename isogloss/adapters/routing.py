"""Map each batch row to the adapter rows on its path, and gather these rows for all weights at once."""

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from isogloss.adapters.tree import Tree

KEPT = 1 << 28
"""Maximum bytes of gathered rows that are cached while gradients are disabled."""
Shared = tuple[Int[Tensor, " used"], Float[Tensor, "batch 1 used"] | None]
"""Adapter rows that a batch uses, and a mask of which batch row uses which; see `Routing.shared`."""


class _Rows(torch.autograd.Function):
    """Gather the same rows of many weights into one tensor; gradients of shared rows are summed."""

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
    """The adapter rows that each row of the current batch uses; one instance serves all adapters.

    Batch rows of one language use the same adapter rows, so weights are gathered once per *distinct* path.
    Shorter paths are padded on the left with rows that are scaled to zero. Without gradients, the rows
    of a batch are cached until the path changes, as generation would otherwise select them for every token.

    There are two equivalent methods. `gather` returns the path's rows for each batch row: as many products as
    the path is wide. `shared` returns the union of all paths with a mask: more products, but in one plain
    matrix multiplication, which is faster for few tokens at a time.
    """

    def __init__(self, tree: Tree):
        self.tree = tree
        self.rows: Int[Tensor, "paths width"] | None = None
        self.scale: Float[Tensor, "paths width 1"] | None = None
        self.path_of: Int[Tensor, " batch"] | None = None
        self._kept: dict[Hashable, Tensor] = {}

    def set(self, names: Sequence[str], device: torch.device, *, width: int = 0) -> None:
        """Set the batch's languages (or nodes), one per row.

        Args:
            width: Minimum number of gathered rows, however short the batch's paths.
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
        """Unset the paths and empty the cache."""
        self.rows = self.scale = self.path_of = None
        self._kept.clear()

    def gather(
        self, weight: Float[Tensor, "rank ..."], dtype: torch.dtype, *, scaled: bool = False
    ) -> Float[Tensor, "batch width ..."]:
        """Return each batch row's slice of a weight whose first axis is the tree's rows.

        Languages share rows, so their gradients are summed. `index_select` sums in a fixed order; with
        bracket indexing, CPU threads sum in arbitrary order and runs are not reproducible.

        Args:
            scaled: Zero the rows that pad a short path.
        """
        if torch.is_grad_enabled() or weight.is_meta or weight.is_inference():
            return self._gathered(weight, dtype, scaled)
        # Address and version identify a weight and whether it has changed.
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
        """As `gather`, for many weights of one shape in a few operations.

        Args:
            spent: Called in backward, after which the gathered rows can no longer be used for training.
        """
        rows, scale, path_of = self._set()
        found: Any = _Rows.apply(rows.flatten(), spent, *weights)
        found = found.unflatten(1, rows.shape)
        found = found * scale if scaled else found
        return found.to(dtype).index_select(1, path_of).unbind()

    def shared(self) -> Shared:
        """Return the adapter rows that any batch row uses, in tree order, and a 0/1 mask per batch row.

        The mask is None if the whole batch uses one path.
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
        """Return the rows and scale of each distinct path, and the path index of each batch row."""
        if self.rows is None or self.scale is None or self.path_of is None:
            raise RuntimeError("no path is set; wrap the forward pass in adapters.on(languages)")
        return self.rows, self.scale, self.path_of
