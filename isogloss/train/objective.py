"""The loss terms of a batch: cross-entropy, divergence from the teacher, similarity, replay."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
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
from isogloss.model.decoder import capture, head, last_hidden, mean_pool, states_up_to, text_config
from isogloss.train.batch import Batch, Twins

DIVERGENCES: dict[fused.Divergence, Callable[..., Tensor]] = {
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

    def total(self, parts: Mapping[str, Tensor]) -> Tensor:
        """Return the weighted sum of loss terms; `options` has the weight of `kl`, as it is one too."""
        named = asdict(self) | {"options": self.kl}
        loss: Any = sum(named[name] * part for name, part in parts.items())
        return loss


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
    size = fused.chunk_size(model, batch.ids.is_cuda if gpu is None else gpu)
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
    parts = _response_losses(model, batch, hidden.flatten(0, 1), weights, size)
    if twins is not None and weights.similarity:
        parts["similarity"] = alike(states[0])
    return parts


def _response_losses(
    model: nn.Module, batch: Batch, hidden: Tensor, weights: Weights, size: int
) -> dict[str, Tensor]:
    """Return the terms over response tokens and answer options.

    All that need the probabilities of a few tokens read the head together: with the few tokens of a batch,
    the time of each product with it is that of reading its weights.

    Args:
        hidden: Last hidden states of the flattened batch.
    """
    replay, sets = batch.replay_mask, batch.options if weights.kl else None
    teacher = batch.teacher if weights.kl or bool(replay.any()) else None
    # A response that is an option is scored with the options.
    ce_mask = ~replay if sets is None else ~(replay | batch.option_mask)
    kl_mask = ce_mask & batch.teacher_mask & bool(weights.kl)
    scored, dense = kl_mask | replay, isinstance(teacher, Tensor)

    # Tokens whose loss needs the probabilities of few tokens.
    few = ce_mask & ~kl_mask if dense else ce_mask | scored
    answers, state = hidden[batch.positions], (few.cumsum(0) - 1).to(hidden.device)
    states, ids, where = [answers[few]], [batch.response[few]], [state[few]]
    if isinstance(teacher, TopK):
        top = teacher[scored[batch.teacher_mask]]
        ids.append(top.ids.long().flatten())
        where.append(state[scored].repeat_interleave(top.ids.shape[1]))
    if sets is not None:
        states.append(hidden[sets.positions])
        ids.append(sets.ids)
        where.append(sets.where + len(states[0]))
    found, rest = fused.token_log_probs(
        model,
        torch.cat(states),
        torch.cat(ids),
        torch.cat(where),
        size=size,
        others=isinstance(teacher, TopK),
    )
    own, *more = found.split([len(part) for part in ids])

    parts = {"ce": -own[ce_mask[few]].sum()}
    if isinstance(teacher, TopK):
        kept = more[0].view(top.ids.shape)
        # `rest` leaves out the response too, which is another token unless the teacher kept it.
        among = (top.ids == batch.response[scored][:, None]).any(1)
        others = torch.logaddexp(rest[state[scored]], own[scored[few]].masked_fill(among, functional.LEAST))
        everything = top.ids.shape[1] >= text_config(model).vocab_size

        def part(of: Tensor) -> tuple[functional.Kept, TopK]:
            return functional.Kept(kept[of], None if everything else others[of]), top[of]

        parts["kl"] = DIVERGENCES[weights.divergence](*part(kl_mask[scored]), temperature=weights.temperature)
        parts["replay"] = functional.forward_kl(*part(replay[scored]))
    elif teacher is not None:
        theirs = teacher[kl_mask[batch.teacher_mask]]
        ce, parts["kl"] = _dense(
            model, answers[kl_mask], theirs, batch.response[kl_mask], size=size, weights=weights
        )
        parts["ce"] = parts["ce"] + ce
        plain, theirs = Weights(ce=0.0, kl=1.0), teacher[replay[batch.teacher_mask]]
        parts["replay"] = _dense(model, answers[replay], theirs, size=size, weights=plain)[1]
    if sets is not None:
        scores = torch.stack([one.sum() for one in more[-1].split(sets.lengths)])
        parts["options"] = functional.answer_set_kl(scores, sets.targets, sets.sizes)
        parts["ce"] = parts["ce"] - more[-1][sets.own].sum()
    there = {"kl": bool(weights.kl), "replay": bool(replay.any())}
    return {name: part for name, part in parts.items() if there.get(name, True)}


def _dense(
    model: nn.Module,
    hidden: Tensor,
    teacher: Tensor,
    response: Tensor | None = None,
    *,
    size: int,
    weights: Weights,
) -> tuple[Tensor, Tensor]:
    """Return cross-entropy and divergence from a teacher given by its hidden states, summed over tokens.

    Without responses, as of replay tokens, cross-entropy is 0.
    """
    teacher, fixed = teacher.to(hidden.dtype), fused.frozen_head(model)
    divergence, temperature = weights.divergence, weights.temperature
    if fixed is not None:
        return fused.scored(
            hidden,
            fixed,
            teacher,
            size=size,
            response=response,
            divergence=divergence,
            temperature=temperature,
            weights=(weights.ce, weights.kl),
        )

    def score(hidden: Tensor, teacher: Tensor, *response: Tensor) -> Tensor:
        student = head(model, hidden)
        with torch.no_grad():
            said = head(model, teacher)
        ce = sum((functional.cross_entropy(student, one) for one in response), student.new_zeros(()))
        return torch.stack([ce.float(), DIVERGENCES[divergence](student, said, temperature=temperature)])

    ce, kl = in_chunks(score, size, hidden, teacher, *([] if response is None else [response]))
    return ce, kl


def in_chunks(score: Callable[..., Tensor], size: int, hidden: Tensor, *others: Tensor) -> Tensor:
    """Sum `score` over tokens, with the logits of at most `size` tokens in memory at a time.

    For a head that is not a plain frozen linear layer; `losses.fused` handles the others.
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
