"""Peak memory of a step, measured by running it on meta tensors."""

import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from transformers import (
    PretrainedConfig,
)

from isogloss.adapters.lora import TreeLora
from isogloss.losses.fused import chunk_size
from isogloss.model.attention import thrifty_attention
from isogloss.model.branches import branched_hidden
from isogloss.model.decoder import decoder_of, head, last_hidden, layers_of, readout
from isogloss.model.shapes import ShapesOnly
from isogloss.model.standardise import Statistics
from isogloss.train.batch import Batch, Options, Sample, Twins, collate
from isogloss.train.objective import Weights, batch_losses


class Alive(ShapesOnly):
    """Dispatch mode that tracks the bytes of tensors created inside: currently alive, and at peak.

    Includes tensors saved by autograd, gradients and intermediate results; views and parameters cost nothing.
    """

    def __init__(self):
        super().__init__()
        self.now = self.most = 0
        self._there: dict[int, weakref.ref] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        made = super().__torch_dispatch__(func, types, args, kwargs)
        given = {id(t.untyped_storage()) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if id(storage) not in given and id(storage) not in self._there:
                    self._add(storage)
        return made

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = id(storage), storage.nbytes()

        def gone(_: Any) -> None:
            self.now -= size
            self._there.pop(key, None)

        self._there[key] = weakref.ref(storage, gone)
        self.now += size
        self.most = max(self.most, self.now)


def step_bytes(
    model: nn.Module,
    samples: Sequence[Sample],
    weights: Weights,
    adapters: TreeLora | None = None,
    *,
    twins: int = 0,
    gpu: bool = False,
    accumulated: bool = False,
) -> int:
    """Return the peak bytes of a micro-batch's forward pass, losses and backward pass, including gradients.

    Args:
        model: Model on the meta device; for stage 2 the one that has the adapters.
        samples: The micro-batch.
        weights: Weights of the losses.
        adapters: Adapters of stage 2.
        twins: Number of distinct meanings in the data.
        gpu: Whether the step will run on a GPU.
        accumulated: Whether an earlier micro-batch of the same step has left its gradients.
    """
    batch = _without_storage(collate(samples, 0))
    signals = [s.signal for s in samples if s.signal is not None]
    known, every = [signal.twin for signal in signals if signal.twin is not None], None
    if known:
        with torch.device("meta"):
            none = Statistics(torch.empty(len(known[0])), torch.empty(len(known[0])))
            vectors = torch.empty(max(twins, len(known)), len(known[0]))
            every = Twins(vectors, {False: none, True: none})
    readout(model)  # computed once and cached, long before a step
    with Alive() as alive, thrifty_attention(model):
        for p in model.parameters() if accumulated else ():
            p.grad = torch.empty_like(p) if p.requires_grad else None
        parts = batch_losses(model, batch, weights, adapters, every, gpu=gpu)
        weights.total(parts).backward()
    model.zero_grad(set_to_none=True)
    return alive.most


@torch.no_grad()
def read_bytes(model: nn.Module, rows: int, width: int) -> int:
    """Return the peak bytes of a batch's forward pass without gradients and without the head."""
    with Alive() as alive:
        last_hidden(
            model,
            torch.zeros(rows, width, dtype=torch.long, device="meta"),
            torch.ones(rows, width, dtype=torch.long, device="meta"),
        )
    return alive.most


@torch.no_grad()
def options_bytes(model: nn.Module, rows: int, width: int, tokens: int, *, gpu: bool) -> int:
    """Return the peak bytes of scoring a batch of answer sets.

    Args:
        model: Model on the meta device.
        rows: Number of prompts.
        width: Tokens of the longest prompt with all its answers.
        tokens: Tokens of all answers; their logits are computed in chunks.
    """
    ids = torch.zeros(rows, width, dtype=torch.long, device="meta")
    with Alive() as alive:
        states = branched_hidden(model, ids, ids, ids).flatten(0, 1)[: min(tokens, chunk_size(model, gpu))]
        head(model, states).float().logsumexp(1)
    return alive.most


@torch.no_grad()
def cache_bytes(model: nn.Module, rows: int, width: int) -> int:
    """Return the bytes of the model's cache: keys and values, sliding windows, or recurrent states."""
    ids = torch.zeros(rows, width, dtype=torch.long, device="meta")
    with Alive():  # answers the decoder's questions about values
        found: Any = decoder_of(model)(input_ids=ids, use_cache=True)
    kept = getattr(found, "past_key_values", None) or getattr(found, "cache_params", None)
    return sum(tensor.nbytes for tensor in _tensors(kept, set()) if tensor.is_floating_point())


def _tensors(value: Any, seen: set[int]) -> Iterator[Tensor]:
    """Yield every tensor in a cache once, whatever the attributes are called."""
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, Tensor):
        if value.ndim:  # skip scalars such as the length of a window
            yield value
    elif isinstance(value, Mapping):
        yield from (one for each in value.values() for one in _tensors(each, seen))
    elif isinstance(value, list | tuple):
        yield from (one for each in value for one in _tensors(each, seen))
    elif type(value).__module__.startswith("transformers.") and not isinstance(value, PretrainedConfig):
        yield from _tensors(vars(value), seen)


def _without_storage(batch: Batch) -> Batch:
    """Move a batch to the meta device, except boolean masks: their values determine shapes."""
    entries: dict[str, Any] = {
        name: value.to(torch.device("meta"))
        if isinstance(value, Options) or (isinstance(value, Tensor) and value.dtype != torch.bool)
        else value
        for name, value in vars(batch).items()
    }
    return Batch(**entries)


def parameter_bytes(
    model: nn.Module, *, adapters: bool = False, four_bit: bool = False, parts: int = 1
) -> int:
    """Return the bytes of the frozen weights (tied weights once), or of the adapters.

    Args:
        model: The model.
        adapters: Whether to count the adapters instead of the frozen weights.
        four_bit: Whether the decoder's linear layers are quantised: 4 bits per weight, 8 bits per block of 64
            weights, and 32 bits per 256 blocks (Dettmers et al. 2023, arXiv:2305.14314, section 3).
        parts: Number of processes that the layers' frozen weights are sharded over; two layers count in full.
    """
    packed = set()
    if four_bit:
        linear = (m for m in layers_of(model).modules() if isinstance(m, nn.Linear))
        packed = {id(m.weight) for m in linear}
    each = 4 / 8 + 1 / 64 + 4 / (64 * 256)
    total = sum(
        p.numel() * (each if id(p) in packed else p.element_size())
        for n, p in model.named_parameters()
        if ("lora_" in n) == adapters
    )
    if parts > 1 and not adapters:
        layers = [
            sum(p.nbytes for n, p in layer.named_parameters() if "lora_" not in n)
            for layer in layers_of(model)
        ]
        total -= sum(layers) * (1 - 1 / parts)
        total += sum(sorted(layers)[-2:])
    return round(total)
