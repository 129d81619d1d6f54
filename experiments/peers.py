"""Adaptations for a fair comparison with trl's trainers: an efficient, counted head and a common schedule."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import torch
from transformers import PreTrainedModel, TrainerCallback

from experiments.contest import MethodRun
from isogloss.losses.fused import announce

WARMUP = 0.05
"""Share of the training over which the learning rate warms up."""


@contextmanager
def labelled_positions(model: PreTrainedModel) -> Iterator[None]:
    """Make trl's chunked head behave as on a GPU, and count it in a `Meter`.

    On a CPU, trl projects every position of a batch, including prompts and padding, which would be unfair.
    Its matrix products bypass the head module, so they are announced to the meter's hooks; the backward pass
    recomputes each of them once.
    """
    utils: Any = import_module("trl.trainer.utils")
    head: Any = model.get_output_embeddings()
    compact, chunked = utils._use_triton, utils._ChunkedLogProbFunction

    class Heard:
        @staticmethod
        def apply(hidden: torch.Tensor, *given: Any) -> Any:
            announce(head, hidden)
            if torch.is_grad_enabled():
                with torch.no_grad():
                    announce(head, hidden)
            return chunked.apply(hidden, *given)

    utils._use_triton, utils._ChunkedLogProbFunction = lambda device: True, Heard
    try:
        yield
    finally:
        utils._use_triton, utils._ChunkedLogProbFunction = compact, chunked


class StepCallback(TrainerCallback):
    """Callback that reports every step, stops the trainer at the time limit, and sets the learning rate.

    Linear warm-up and cosine decay to zero, as in stage 2, over the steps or over the time left before the
    limit, whichever ends first: the learning rate of a stopped method has reached zero.
    """

    def __init__(self, way: MethodRun, after: int = 0):
        self.way, self.after = way, after
        self.began, self.peaks = 0.0, [0.0]

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.began = self.way.spent
        self.peaks = [group["lr"] for group in kwargs["optimizer"].param_groups]
        self._set(kwargs["optimizer"], 0.0)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop |= not self.way.tick(self.after + state.global_step)
        done, limit = state.global_step / state.max_steps, self.way.contest.limit
        if limit is not None and limit > self.began:
            done = max(done, (self.way.spent - self.began) / (limit - self.began))
        self._set(kwargs["optimizer"], done)

    def _set(self, optimizer: torch.optim.Optimizer, done: float) -> None:
        for group, peak in zip(optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = peak * size(done)


def size(done: float) -> float:
    """Return the learning rate as a share of its peak; `done` is the share of the training."""
    if done < WARMUP:
        return done / WARMUP
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (done - WARMUP) / (1 - WARMUP))))
