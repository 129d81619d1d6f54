"""The cost of a stage, and a meter that counts a model's FLOPs and tokens."""

import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from isogloss import processes
from isogloss.model.decoder import DEPTH, causal_of, decoder_of, layers_of, text_config


@dataclass
class StageCost:
    """The cost of one stage.

    Seconds and energy include work that was lost when a run was killed; tokens and FLOPs only cover work that
    was kept. Self-checks, a few rows per language, only count in seconds and energy.
    """

    stage: str
    tokens_forwarded: int = 0
    tokens_backpropagated: int = 0
    tokens_generated: int = 0
    teacher_calls: int = 0
    """Rows that the teacher scored, without cache hits."""
    teacher_tokens: int = 0
    """Tokens that the teacher read for these rows and for twins."""
    cached_hits: int = 0
    """Rows whose signals were cached."""
    cache_bytes_written: int = 0
    flops: float = 0.0
    seconds: float = 0.0
    device_seconds: float = 0.0
    """Seconds × processes; each process has one device."""
    peak_memory_bytes: int = 0
    bytes_written: int = 0
    """Written to files and pipes by the process that keeps the ledger."""
    energy_joules: float = 0.0
    """Device-seconds × an assumed power (`CORE_WATTS`, `GPU_WATTS`): an estimate, not a measurement."""
    started: float = field(default_factory=time.monotonic, repr=False)
    had_written: int = field(default=0, repr=False)

    def add(self, meter: "Meter") -> None:
        """Add what a meter has counted since its last `take`."""
        flops, read, drawn = meter.take()
        self.flops += flops
        self.tokens_forwarded += read
        self.tokens_generated += drawn

    def take(self, other: "StageCost") -> None:
        """Add the tokens, calls and FLOPs of another cost."""
        for name in SPENT:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def trained(self, counts: Mapping[str, float]) -> None:
        """Add the `tokens` and `flops` of a training, all of which were read forward and backward."""
        self.tokens_forwarded += int(counts["tokens"])
        self.tokens_backpropagated += int(counts["tokens"])
        self.flops += counts["flops"]

    def over_processes(self, before: "StageCost") -> None:
        """Sum what was spent since `before` over all processes, except cache hits, which are equal in all."""
        names = [name for name in SPENT if name != "cached_hits"]
        spent = processes.total([getattr(self, name) - getattr(before, name) for name in names])
        for name, value in zip(names, spent, strict=True):
            was = getattr(before, name)
            setattr(self, name, was + type(was)(value))


TEACHER = ("teacher_calls", "teacher_tokens", "cached_hits", "cache_bytes_written")
SPENT = ("tokens_forwarded", "tokens_generated", "flops", *TEACHER)


class Meter:
    """Count a model's FLOPs and tokens, whoever calls it: our trainer or another library's.

    Hooks see every forward pass of the decoder and of the head, padding included, and whether gradients are
    enabled. A token costs 2 FLOPs per weight that it uses, plus the two products of attention. Backward costs
    one more forward through frozen weights, and two more through attention and trained weights. Layers above
    the one at which a forward pass stops (`decoder.states_up_to`) are not counted. Agrees with torch's own
    counter within 5 % (tests). Recomputation by gradient checkpointing is not counted.

    Args:
        model: A causal model, with or without adapters.
        met: Share of the adapters' weights that a token uses: that of a path for a tree. A function is called
            at every forward pass.
        learns: All weights are trained, not only adapters.

    Attributes:
        tokens: Tokens read, without padding.
        generated: Tokens generated, without padding after the end of a row.
    """

    def __init__(self, model: nn.Module, met: float | Callable[[], float] = 1.0, *, learns: bool = False):
        self.causal, self.back = causal_of(model), 2 if learns else 1
        self.met = met if callable(met) else lambda: met
        config = text_config(model)
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self.attended = 4.0 * config.num_hidden_layers * config.num_attention_heads * width
        self.routed = _routed(config)
        self.body, self.head = _body(self.causal, self.routed), _head(self.causal).weight.numel()
        self.forward_tokens = self.backward_tokens = 0
        self.forward_pairs = self.backward_pairs = 0
        self.forward_heads = self.backward_heads = 0
        self.adapted = 0.0
        """Token passes through adapters, each weighted by the share of adapter weights used."""
        self.spared = 0.0
        """FLOPs of the layers above those at which forward passes stopped, to be subtracted."""
        self.generated = 0
        self._read: int | Tensor = 0
        self._taken = (0.0, 0, 0)

    @property
    def tokens(self) -> int:
        return int(self._read)

    @cached_property
    def adapters(self) -> int:
        """Number of adapter weights, counted on first use because trainers may add adapters themselves."""
        return _adapters(self.causal)

    @property
    def flops(self) -> float:
        """Total FLOPs so far."""
        weights = self.body * (self.forward_tokens + self.back * self.backward_tokens)
        weights += self.head * (self.forward_heads + self.back * self.backward_heads)
        return (
            2.0 * weights
            + 2.0 * self.adapters * self.adapted
            + self.attended * (self.forward_pairs + 2 * self.backward_pairs)
            - self.spared
        )

    def take(self) -> tuple[float, int, int]:
        """Return FLOPs, tokens read and tokens generated since the last call."""
        now, before = (self.flops, self.tokens, self.generated), self._taken
        self._taken = now
        return now[0] - before[0], now[1] - before[1], now[2] - before[2]

    def read(
        self,
        rows: int,
        width: int,
        *,
        seen: int | None = None,
        backward: bool = False,
        depth: int | None = None,
    ) -> None:
        """Count a forward pass of the decoder.

        Args:
            seen: Positions that each token may attend to, if more than `width`.
            depth: The layer at which the pass stops, if not the last.
        """
        tokens, met = rows * width, self.met()
        pairs = tokens * (width if seen is None else seen)
        self.forward_tokens += tokens
        self.forward_pairs += pairs
        self.adapted += met * tokens * (3 if backward else 1)
        if backward:
            self.backward_tokens += tokens
            self.backward_pairs += pairs
        if depth is not None:
            body, adapters, attended = self._above(depth)
            self.spared += 2.0 * tokens * body * (1 + self.back * backward)
            self.spared += 2.0 * tokens * met * adapters * (3 if backward else 1)
            self.spared += pairs * attended * (3 if backward else 1)

    def _above(self, depth: int) -> tuple[float, int, float]:
        """Return weights, adapter weights and attention FLOPs per token pair of the layers above `depth`."""
        layers = layers_of(self.causal)
        some = list(layers)[depth:]
        body, adapters = sum(_own(one, self.routed) for one in some), sum(map(_adapters, some))
        return body, adapters, self.attended * len(some) / len(layers)

    def project(self, tokens: int, *, backward: bool = False) -> None:
        """Count a forward pass of the head."""
        self.forward_heads += tokens
        self.backward_heads += tokens if backward else 0

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count the model's calls inside the context."""

        def decoder(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            ids = kwargs.get("input_ids")
            ids = kwargs.get("inputs_embeds") if ids is None else ids
            ids = args[0] if ids is None else ids
            rows, width = ids.shape[:2]
            mask = kwargs.get("attention_mask")
            mask = mask if isinstance(mask, Tensor) else None
            # With a KV cache the mask is longer than the input.
            seen = width if mask is None else mask.shape[-1]
            self.read(rows, width, seen=seen, backward=torch.is_grad_enabled(), depth=DEPTH.get())
            real = mask[:, -width:].sum() if mask is not None and mask.ndim == 2 else rows * width
            self._read = self._read + real

        def head(module: nn.Module, args: tuple) -> None:
            # Recomputation of a checkpoint inside a backward pass counts as one more forward pass.
            again = torch._C._current_graph_task_id() != -1
            self.project(args[0].shape[:-1].numel(), backward=torch.is_grad_enabled() and not again)

        hooks = [
            decoder_of(self.causal).register_forward_pre_hook(decoder, with_kwargs=True),
            _head(self.causal).register_forward_pre_hook(head),
        ]
        draw, own = self.causal.generate, self.causal.__dict__.get("generate")

        def generate(*args: Any, **kwargs: Any) -> Any:
            made = draw(*args, **kwargs)
            given = args[0] if args else kwargs.get("input_ids", kwargs.get("inputs"))
            new = made if isinstance(made, Tensor) else made.sequences
            new = new if given is None else new[:, given.shape[1] :]
            settings = kwargs.get("generation_config") or self.causal.generation_config
            filler = kwargs.get("pad_token_id", settings.pad_token_id)
            self.generated += new.numel() if filler is None else int((new != filler).sum())
            return made

        self.causal.generate = generate  # module hooks do not see `generate`
        _counting.append(self)
        try:
            yield
        finally:
            _counting.remove(self)
            if own is None:
                del self.causal.generate
            else:  # another meter's
                self.causal.generate = own
            for hook in hooks:
                hook.remove()


_counting: list[Meter] = []
"""Meters that count at the moment."""


def count_generated(model: nn.Module, tokens: int) -> None:
    """Tell the meters of a model about tokens that were not generated by its `generate`."""
    for meter in _counting:
        if meter.causal is causal_of(model):
            meter.generated += tokens


@contextmanager
def spending(stage: StageCost, model: nn.Module, met: float | Callable[[], float] = 1.0) -> Iterator[None]:
    """Add what the model computes inside the context to the stage's cost."""
    meter = Meter(model, met)
    try:
        with meter.counting():
            yield
    finally:
        stage.add(meter)


def _head(model: nn.Module) -> nn.Linear:
    return causal_of(model).get_output_embeddings()


def _weights(p: nn.Parameter) -> int:
    """Count a parameter's weights; a quantised one packs several into a byte."""
    packed = getattr(p, "quant_state", None)
    return p.numel() if packed is None else math.prod(packed.shape)


def _adapters(module: nn.Module) -> int:
    """Count the adapter weights in a module."""
    # trl keeps a copy of the initial adapter, named ".ref.", next to the trained one.
    return sum(p.numel() for n, p in module.named_parameters() if "lora_" in n and ".ref." not in n)


def _routed(config: Any) -> float:
    """Return the share of a mixture's routed experts that a token uses; 1 if there are none."""
    names = "num_local_experts", "num_experts", "n_routed_experts"
    experts = next((n for name in names if (n := getattr(config, name, None))), None)
    return min(1.0, (getattr(config, "num_experts_per_tok", None) or experts) / experts) if experts else 1.0


def _body(model: nn.Module, routed: float) -> float:
    """Count the weights that every token uses, without adapters, embeddings and head."""
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    return _own(model, routed, embeddings | {id(_head(model).weight)})


def _own(module: nn.Module, routed: float, without: Collection[int] = ()) -> float:
    """Count a module's weights, without adapters and the parameters whose `id` is in `without`.

    Args:
        routed: Share of the routed experts' weights that counts.
    """
    return sum(
        _weights(p) * (routed if ".experts." in f".{name}" else 1)
        for name, p in module.named_parameters()
        if id(p) not in without and "lora_" not in name
    )
