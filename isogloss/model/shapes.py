"""Run a model on meta tensors, which have shapes but no values."""

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class ShapesOnly(TorchDispatchMode):
    """Dispatch mode that answers what models ask about values, such as "is there no padding?", with no."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default and args[0].is_meta:
            return 0
        return func(*args, **(kwargs or {}))
