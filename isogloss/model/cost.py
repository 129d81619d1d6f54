"""What a stage costs, and a meter of what a model computes."""

import math
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from isogloss import processes
from isogloss.model.decoder import DEPTH, causal_of, decoder_of, layers_of


@dataclass
class StageCost:
    """The cost of one stage.

    Seconds and energy are all that passed, with what a kill has lost; tokens and operations are those of work
    that stayed. Self-checks, a few rows a language, are in the former alone.
    """

    stage: str
    tokens_forwarded: int = 0
    tokens_backpropagated: int = 0
    tokens_generated: int = 0
    teacher_calls: int = 0
    """Rows that the teacher scored, cache hits aside."""
    teacher_tokens: int = 0
    """Tokens that it read for these rows and for twins."""
    cached_hits: int = 0
    """Rows whose signals were cached."""
    cache_bytes_written: int = 0
    flops: float = 0.0
    seconds: float = 0.0
    device_seconds: float = 0.0
    """Seconds times processes, each of which has a device."""
    peak_memory_bytes: int = 0
    bytes_written: int = 0
    """To files and pipes, by the process that keeps the ledger."""
    energy_joules: float = 0.0
    """Device-seconds times an assumed power (`CORE_WATTS`, `GPU_WATTS`): an estimate, not a measurement."""
    started: float = field(default_factory=time.monotonic, repr=False)
    had_written: int = field(default=0, repr=False)

    def add(self, meter: "Meter") -> None:
        """What a meter has counted since it was asked last."""
        flops, read, drawn = meter.take()
        self.flops += flops
        self.tokens_forwarded += read
        self.tokens_generated += drawn

    def take(self, other: "StageCost") -> None:
        """Add another's tokens, calls and operations."""
        for name in ("tokens_forwarded", "tokens_generated", "flops", *TEACHER):
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def over_processes(self, before: "StageCost") -> None:
        """What each process has spent since `before` becomes what all have; hits are the same in all."""
        names = ["flops", "tokens_forwarded", "tokens_generated", *TEACHER]
        names.remove("cached_hits")
        spent = processes.total([getattr(self, name) - getattr(before, name) for name in names])
        for name, value in zip(names, spent, strict=True):
            was = getattr(before, name)
            setattr(self, name, was + type(was)(value))


TEACHER = ("teacher_calls", "teacher_tokens", "cached_hits", "cache_bytes_written")


class Meter:
    """Counts what a model computes, whoever calls it: a trainer of ours or a peer's.

    Hooks see every forward of the decoder and of the head, padding included, and whether a backward will
    follow. A token costs twice the weights it meets, and the attention's two products; backward through
    frozen weights costs the forward once more, through attention and what learns twice more. Layers above
    the one at which a forward stops (`decoder.states_up_to`) are not counted. Agrees with torch's own counter
    within 5 % (tests). Recomputation by gradient checkpointing is left out.

    Args:
        model: A causal model, without adapters or with them.
        met: Share of the adapters' weights that a token meets: a path's, where they belong to a tree. A
            function is asked at every forward.
        learns: All weights are trained, not adapters alone.

    Attributes:
        tokens: That were read, without padding;
        generated: and that were drawn, without what fills up rows that have ended.
    """

    def __init__(self, model: nn.Module, met: float | Callable[[], float] = 1.0, *, learns: bool = False):
        self.causal, self.back = causal_of(model), 2 if learns else 1
        self.met = met if callable(met) else lambda: met
        config = self.causal.config.get_text_config()
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self.attended = 4.0 * config.num_hidden_layers * config.num_attention_heads * width
        self.body, self.head = _body(self.causal), _head(self.causal).weight.numel()
        self.forward_tokens = self.backward_tokens = 0
        self.forward_pairs = self.backward_pairs = 0
        self.forward_heads = self.backward_heads = 0
        self.adapted = 0.0
        """Passes of tokens through adapters, each weighed by the share of them that is met."""
        self.spared = 0.0
        """Operations of layers above the one at which a forward stopped."""
        self.generated = 0
        self._read: int | Tensor = 0
        self._taken = (0.0, 0, 0)

    @property
    def tokens(self) -> int:
        return int(self._read)

    @cached_property
    def adapters(self) -> int:
        """Their weights, counted when first asked for: trainers put them on the model that they are given."""
        return _adapters(self.causal)

    @property
    def flops(self) -> float:
        """All that was counted, in floating-point operations."""
        weights = self.body * (self.forward_tokens + self.back * self.backward_tokens)
        weights += self.head * (self.forward_heads + self.back * self.backward_heads)
        return (
            2.0 * weights
            + 2.0 * self.adapters * self.adapted
            + self.attended * (self.forward_pairs + 2 * self.backward_pairs)
            - self.spared
        )

    def take(self) -> tuple[float, int, int]:
        """Operations, tokens read and tokens drawn since this was asked last."""
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
        """A forward of the decoder.

        Args:
            seen: Positions that each token may attend to, where that is more than `width`.
            depth: The layer at which it stops, where that is not the last.
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

    def _above(self, depth: int) -> tuple[int, int, float]:
        """Weights, adapters' weights and a pair's operations of the layers above one."""
        layers = layers_of(self.causal)
        some = list(layers)[depth:]
        body, adapters = sum(map(_own, some)), sum(map(_adapters, some))
        return body, adapters, self.attended * len(some) / len(layers)

    def project(self, tokens: int, *, backward: bool = False) -> None:
        """A forward of the head."""
        self.forward_heads += tokens
        self.backward_heads += tokens if backward else 0

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Counts what runs inside."""

        def decoder(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            ids = kwargs.get("input_ids")
            ids = kwargs.get("inputs_embeds") if ids is None else ids
            ids = args[0] if ids is None else ids
            rows, width = ids.shape[:2]
            mask = kwargs.get("attention_mask")
            mask = mask if isinstance(mask, Tensor) else None
            # Behind a cache the mask is longer than what is read.
            seen = width if mask is None else mask.shape[-1]
            self.read(rows, width, seen=seen, backward=torch.is_grad_enabled(), depth=DEPTH.get())
            real = mask[:, -width:].sum() if mask is not None and mask.ndim == 2 else rows * width
            self._read = self._read + real

        def head(module: nn.Module, args: tuple) -> None:
            # Within a backward pass what was checkpointed is computed again: one forward more.
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

        self.causal.generate = generate  # no hook of a module hears of drawing
        try:
            yield
        finally:
            if own is None:
                del self.causal.generate
            else:  # another meter's
                self.causal.generate = own
            for hook in hooks:
                hook.remove()


@contextmanager
def spending(stage: StageCost, model: nn.Module, met: float | Callable[[], float] = 1.0) -> Iterator[None]:
    """What a model computes inside is the stage's."""
    meter = Meter(model, met)
    try:
        with meter.counting():
            yield
    finally:
        stage.add(meter)


def _head(model: nn.Module) -> nn.Linear:
    return causal_of(model).get_output_embeddings()


def _weights(p: nn.Parameter) -> int:
    """How many; several lie in a byte where they are quantised."""
    packed = getattr(p, "quant_state", None)
    return p.numel() if packed is None else math.prod(packed.shape)


def _adapters(module: nn.Module) -> int:
    """Weights of the adapters on a module."""
    # trl keeps the adapter that training began with beside the one that learns.
    lora = (p for n, p in module.named_parameters() if "lora_" in n and ".ref." not in n)
    return sum(p.numel() for p in lora)


def _body(model: nn.Module) -> int:
    """Weights that every token meets, adapters and head aside."""
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    return _own(model, embeddings | {id(_head(model).weight)})


def _own(module: nn.Module, without: Collection[int] = ()) -> int:
    """A module's weights, adapters' aside, and those with these identities."""
    return sum(
        _weights(p) for name, p in module.named_parameters() if id(p) not in without and "lora_" not in name
    )
