"""The loss terms of a batch: cross-entropy, divergence from the teacher, similarity, replay."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from isogloss import processes
from isogloss.adapters.lora import TreeLora
from isogloss.losses import functional, fused
from isogloss.losses.topk import TopK
from isogloss.model.branches import branched_hidden
from isogloss.model.decoder import capture, causal_of, head, last_hidden, mean_pool, states_up_to
from isogloss.train.batch import Batch, Twins

DIVERGENCES = {
    "forward": functional.forward_kl,
    "reverse": functional.reverse_kl,
    "jensen_shannon": functional.jensen_shannon,
}


@dataclass(frozen=True)
class Weights:
    """Weights of the loss terms, with the hidden-state term's layer, the divergence and the temperatures."""

    ce: float = 1.0
    kl: float = 0.0
    similarity: float = 0.0
    replay: float = 1.0
    layer: int = 1
    divergence: fused.Divergence = "forward"
    temperature: float = 1.0
    similarity_temperature: float = 0.05
    similarity_decay: float = 0.0

    def at(self, done: float) -> "Weights":
        """Return the weights at a fraction `done` of training.

        `similarity` decays linearly to 0 over the first `similarity_decay` of training.
        """
        if not self.similarity_decay:
            return self
        return replace(self, similarity=self.similarity * max(0.0, 1 - done / self.similarity_decay))


def batch_losses(
    model: nn.Module,
    batch: Batch,
    weights: Weights,
    adapters: TreeLora | None = None,
    twins: Twins | None = None,
    *,
    gpu: bool | None = None,
) -> dict[str, Tensor]:
    """Return the loss terms as sums: `ce`, `kl` and `replay` over response tokens, `options` and `similarity`
    over rows.

    English rows scored by the teacher are replay: their only response loss is `replay`, the KL to the
    reference model on the same prompt.

    Args:
        twins: The English twins, for the hidden-state term.
        gpu: Use the chunk size of a GPU or of a CPU; by default that of the batch's device.
    """
    score = partial(_sums, model, size=chunk_size(model, batch.ids.is_cuda if gpu is None else gpu))
    if adapters is not None:
        adapters.set_path(batch.languages)

    def alike(states: Tensor) -> Tensor:
        assert twins is not None
        pooled = twins.standardise(mean_pool(states, batch.instruction_mask), batch.bare)
        return functional.similarity(
            pooled, twins.vectors, batch.meanings, temperature=weights.similarity_temperature
        )

    # Sentences without a response only need the hidden-state term, so the forward pass stops at its layer.
    # Not under DDP, which expects a gradient for every adapter on every rank.
    if twins is not None and weights.similarity and all(batch.bare) and processes.count() == 1:
        states = states_up_to(model, batch.ids, batch.mask, [weights.layer])[weights.layer]
        return {"ce": states.new_zeros((), dtype=torch.float32), "similarity": alike(states)}
    with capture(model, weights.layer) as states:
        if batch.options is None:
            hidden = last_hidden(model, batch.ids, batch.mask)
        else:
            hidden = branched_hidden(model, batch.ids, batch.options.branch, batch.options.place)
    answers = hidden.flatten(0, 1)[batch.positions]

    ce_mask, sets = ~batch.replay_mask, batch.options if weights.kl else None
    if sets is not None:  # a response that is an option is scored with the options
        ce_mask = ce_mask & ~batch.option_mask
    divided = batch.teacher is not None and bool(weights.kl)
    kl_mask = ce_mask & batch.teacher_mask if divided else ce_mask
    ce, kl = score(
        answers[kl_mask],
        batch.response[kl_mask],
        _teacher_of(batch, kl_mask) if divided else None,
        weights.divergence,
        weights.temperature,
        (weights.ce, weights.kl),
    )
    parts = {"ce": ce} | ({"kl": kl} if divided else {})
    ce_only = ce_mask & ~kl_mask
    if sets is not None:
        predicting, size = hidden.flatten(0, 1)[sets.positions], score.keywords["size"]
        tokens = fused.token_log_probs(model, predicting, sets.ids, sets.where, size=size)
        scores = torch.stack([one.sum() for one in tokens.split(sets.lengths)])
        parts["options"] = functional.answer_set_kl(scores, sets.targets, sets.sizes)
        parts["ce"] = parts["ce"] - tokens[sets.own].sum()
    if ce_only.any():
        alone = score(answers[ce_only], batch.response[ce_only], None, weighed=(weights.ce, 0.0))
        parts["ce"] = parts["ce"] + alone[0]
    if batch.replay_mask.any():
        replay = batch.replay_mask
        parts["replay"] = score(answers[replay], None, _teacher_of(batch, replay))[1]
    if twins is not None and weights.similarity:
        parts["similarity"] = alike(states[0])
    return parts


def _teacher_of(batch: Batch, tokens: Tensor) -> Tensor | TopK:
    """Return the teacher's signals for response tokens, all of which it must have scored."""
    assert batch.teacher is not None
    return batch.teacher[tokens[batch.teacher_mask]]


def _sums(
    model: nn.Module,
    hidden: Tensor,
    response: Tensor | None,
    teacher: Tensor | TopK | None,
    divergence: fused.Divergence = "forward",
    temperature: float = 1.0,
    weighed: tuple[float, float] = (1.0, 1.0),
    *,
    size: int,
) -> tuple[Tensor, Tensor]:
    """Return cross-entropy and divergence summed over response tokens, in nats; 0 for a missing input."""
    if not isinstance(teacher, TopK | None):
        teacher = teacher.to(hidden.dtype)
    fixed = fused.frozen_head(model)
    if fixed is not None:
        return fused.scored(
            hidden,
            fixed,
            size=size,
            response=response,
            teacher=teacher,
            divergence=divergence,
            temperature=temperature,
            weights=weighed,
        )

    def score(hidden: Tensor, *given: Any) -> Tensor:
        student, left = head(model, hidden), list(given)
        ce = kl = student.new_zeros((), dtype=torch.float32)
        if response is not None:
            ce = functional.cross_entropy(student, left.pop(0))
        if teacher is not None:
            said = left.pop(0)
            with torch.no_grad():
                said = said if isinstance(said, TopK) else head(model, said)
            kl = DIVERGENCES[divergence](student, said, temperature=temperature)
        return torch.stack([ce, kl])

    ce, kl = in_chunks(score, size, hidden, *(one for one in (response, teacher) if one is not None))
    return ce, kl


LOGITS, LOGITS_GPU = 1 << 25, 1 << 27
"""Maximum logits in memory at a time, for student and teacher each; more are computed in chunks.

With the CPU's chunk size a GPU would be limited by kernel launches (docs/log.md)."""


def chunk_size(model: nn.Module, gpu: bool) -> int:
    """Return the number of response tokens whose logits are held at a time."""
    many = LOGITS_GPU if gpu else LOGITS
    return max(1, many // causal_of(model).config.get_text_config().vocab_size)


def in_chunks(score: Callable[..., Tensor], size: int, hidden: Tensor, *others: Tensor | TopK) -> Tensor:
    """Sum `score` over tokens, with the logits of at most `size` tokens in memory at a time.

    For a head that is trained, as in stage 1, or not a plain linear layer; `losses.fused` handles the others.
    The result equals a single call. With several chunks, each is recomputed in the backward pass.
    """
    if len(hidden) <= size:
        return score(hidden, *others)
    chunks = zip(hidden.split(size), *(other.split(size) for other in others), strict=True)
    totals = [checkpoint(score, *chunk, use_reentrant=False) for chunk in chunks]
    return torch.stack(totals).sum(0)


class Objective(nn.Module):
    """The loss terms as the forward pass of one module.

    DDP only synchronises gradients of what runs in its module's `forward`, so the whole loss runs there.
    `state_dict` contains only trainable parameters.
    """

    def __init__(self, model: nn.Module, adapters: TreeLora | None, twins: Twins | None):
        super().__init__()
        self.model, self.adapters, self.twins = model, adapters, twins

    def forward(self, batch: Batch, weights: Weights) -> dict[str, Tensor]:
        return batch_losses(self.model, batch, weights, self.adapters, self.twins)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return {name: p.detach() for name, p in self.named_parameters() if p.requires_grad}

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        if state_dict.keys() != self.state_dict().keys():
            raise ValueError("the checkpoint belongs to a model or tree with different shapes")
        super().load_state_dict(state_dict, strict=False)
        return SimpleNamespace(missing_keys=[], unexpected_keys=[])


PARTS = ("loss", "ce", "kl", "options", "replay", "similarity")
BY_ROW = ("similarity",)
"""Terms that are averaged over rows; the others are averaged over response tokens."""
WEIGHED = {"options": "kl"}
"""Terms that use another term's weight: both are divergences from the reference model."""
