"""The ledger: what each stage cost, added up over resumes and never counted twice."""

import json
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from isogloss.files import write_text
from isogloss.model import causal_of, decoder_of


@dataclass
class Stage:
    """The cost of one stage."""

    stage: str
    tokens_forwarded: int = 0
    tokens_backpropagated: int = 0
    tokens_generated: int = 0
    teacher_calls: int = 0
    """Rows that the teacher has really scored,"""
    teacher_tokens: int = 0
    """and what it read for them and for twins."""
    cached_hits: int = 0
    """Rows whose signals were there already."""
    cache_bytes_written: int = 0
    flops: float = 0.0
    seconds: float = 0.0
    peak_memory_bytes: int = 0
    started: float = field(default_factory=time.monotonic, repr=False)


TEACHER = ("teacher_calls", "teacher_tokens", "cached_hits", "cache_bytes_written")
SPENT = ("seconds", *TEACHER)
"""What is added up over resumes."""


class Ledger:
    """The stages of a run, kept in a file that is replaced whole."""

    def __init__(self, path: Path):
        self.path = path
        self.stages: dict[str, Stage] = {}
        if path.exists():
            for entry in json.loads(path.read_text("utf-8"))["stages"]:
                self.stages[entry["stage"]] = Stage(**entry)

    def begin(self, stage: str) -> Stage:
        """A stage's entry; one that was begun before keeps its seconds and its teacher's work.

        Other counts start anew: the stage sets them from its checkpoints at the end. What the teacher read
        before a kill is in the cache and not read again, so it is added up like seconds.
        """
        before = self.stages.get(stage, Stage(stage))
        self.stages[stage] = Stage(stage, **{name: getattr(before, name) for name in SPENT})
        return self.stages[stage]

    def pause(self, stage: Stage) -> None:
        """Add the time since `begin`, or since the last pause, and write."""
        now = time.monotonic()
        stage.seconds = round(stage.seconds + now - stage.started, 2)
        stage.started = now
        # ru_maxrss is in KiB on Linux
        stage.peak_memory_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        entries = [{k: v for k, v in asdict(s).items() if k != "started"} for s in self.stages.values()]
        write_text(self.path, json.dumps({"schema": 1, "stages": entries}, indent=1))


def forward_flops(model: nn.Module, tokens: int, head_tokens: int) -> float:
    """Floating-point operations of reading `tokens` and projecting `head_tokens` of them.

    Twice the weights that each token meets; the attention's own products, small at these lengths,
    are left out (Kaplan et al. 2020, arXiv:2001.08361, section 2.1), and so are adapters.
    """
    return 2.0 * (_body(model) * tokens + _head(model).weight.numel() * head_tokens)


class Meter:
    """Counts what a frozen model with adapters computes, whoever calls it: a trainer of ours or a peer's.

    Hooks see every forward of the decoder and of the head, padding included, and whether a backward will
    follow. A token costs twice the weights it meets, and the attention's two products; backward through
    frozen weights costs the forward once more, through attention and adapters twice more. Agrees with
    torch's own counter within 5 % (tests).

    Args:
        model: A causal model, without adapters or with them.
        met: Share of the adapters' weights that a token meets: a path's, where they belong to a tree.
    """

    def __init__(self, model: nn.Module, met: float = 1.0):
        self.causal, self.met = causal_of(model), met
        config = self.causal.config.get_text_config()
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self.attended = 4.0 * config.num_hidden_layers * config.num_attention_heads * width
        self.body, self.head = _body(self.causal), _head(self.causal).weight.numel()
        self.forward_tokens = self.backward_tokens = 0
        self.forward_pairs = self.backward_pairs = 0
        self.forward_heads = self.backward_heads = 0

    @property
    def flops(self) -> float:
        """All that was counted, in floating-point operations."""
        # trl keeps the adapter that training began with beside the one that learns.
        lora = [(n, p) for n, p in self.causal.named_parameters() if "lora_" in n and ".ref." not in n]
        adapters = self.met * sum(p.numel() for _, p in lora)
        frozen = self.body * (self.forward_tokens + self.backward_tokens)
        frozen += self.head * (self.forward_heads + self.backward_heads)
        return (
            2.0 * frozen
            + 2.0 * adapters * (self.forward_tokens + 2 * self.backward_tokens)
            + self.attended * (self.forward_pairs + 2 * self.backward_pairs)
        )

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Counts what runs inside."""

        def read(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            ids = kwargs.get("input_ids")
            ids = kwargs.get("inputs_embeds") if ids is None else ids
            ids = args[0] if ids is None else ids
            mask = kwargs.get("attention_mask")
            tokens = ids.shape[0] * ids.shape[1]
            # Behind a cache the mask is longer than what is read.
            pairs = tokens * (mask.shape[-1] if isinstance(mask, torch.Tensor) else ids.shape[1])
            self.forward_tokens += tokens
            self.forward_pairs += pairs
            if torch.is_grad_enabled():
                self.backward_tokens += tokens
                self.backward_pairs += pairs

        def project(module: nn.Module, args: tuple) -> None:
            tokens = args[0].shape[:-1].numel()
            self.forward_heads += tokens
            if torch.is_grad_enabled():
                self.backward_heads += tokens

        hooks = [
            decoder_of(self.causal).register_forward_pre_hook(read, with_kwargs=True),
            _head(self.causal).register_forward_pre_hook(project),
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


def _head(model: nn.Module) -> nn.Linear:
    return causal_of(model).get_output_embeddings()


def _body(model: nn.Module) -> int:
    """Weights that every token meets, adapters and head aside."""
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    head = _head(model).weight
    return sum(
        p.numel()
        for name, p in model.named_parameters()
        if id(p) not in embeddings and p is not head and "lora_" not in name
    )
