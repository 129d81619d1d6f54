"""Direct Consistency Optimization: log-odds of two answers in a language, regressed onto those in English.

Liu et al. 2026 (arXiv:2603.04678). Given an instruction x in a language, its English twin x', and two answers
a and b in both languages: the reference model's log-odds are o(x) = ln M(a|x) - ln M(b|x), the trained
model's o_θ(x). The optimal policy has o_θ(x) - o(x) = o(x') / β and o_θ(x') - o(x') = β o(x); the loss is the
sum of the absolute differences. There is no reward model and no sampling.

The answers are those of a closed task: the row's response, and another drawn by seed.
Flow: rows of stage 2 → two answers each → log-probabilities of both in both languages → loss.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from peft import PeftModel
from torch import Tensor, nn
from transformers import Trainer

from isogloss.data.chat import pad, response_positions
from isogloss.data.examples import ParallelExample
from isogloss.languages import SOURCE
from isogloss.losses.fused import token_log_probs
from isogloss.model.decoder import last_hidden
from isogloss.teacher.rows import Row

Ids = tuple[int, ...]


@dataclass(frozen=True)
class Pair:
    """Two answers to one instruction, in a language and in English, as token IDs.

    Attributes:
        texts: (prompt, answer) of a and b in the language, then of a and b in English.
    """

    texts: tuple[tuple[Ids, Ids], ...]


def pair_of(row: Row, example: ParallelExample, encode: Callable[[str], Ids], seed: int) -> Pair | None:
    """Pair a row's response with another of its task's answers; None for an open task.

    Args:
        encode: Function that returns a response's token IDs, including the end of turn.
    """
    ours, english = ((example.options or {}).get(code, {}) for code in (row.language, SOURCE))
    meaning = next((m for m, wording in ours.items() if encode(wording) == row.student.response), None)
    others = [m for m in english if m != meaning and m in ours]
    if meaning is None or meaning not in english or not others:
        return None
    other = random.Random(f"{seed}/{row.id}").choice(others)
    own, twin = row.student.prompt, row.twin_prompt
    return Pair(
        tuple(
            (prompt, encode(wordings[one]))
            for prompt, wordings in ((own, ours), (twin, english))
            for one in (meaning, other)
        )
    )


def dco_loss(
    learned: Float[Tensor, "pairs 2"], reference: Float[Tensor, "pairs 2"], beta: float = 1.0
) -> Float[Tensor, ""]:
    """Mean over pairs of |o_θ(x) - o(x) - o(x')/β| + |o_θ(x') - o(x') - β o(x)|, in nats.

    Args:
        learned: Log-odds o_θ of the trained model, in the language and in English.
        reference: Log-odds o of the reference model.
    """
    own, english = (learned - reference).unbind(1)
    return ((own - reference[:, 1] / beta).abs() + (english - beta * reference[:, 0]).abs()).mean()


def log_odds(model: nn.Module, pairs: Sequence[Pair], pad_id: int) -> Float[Tensor, "pairs 2"]:
    """Return ln p(a) - ln p(b) of each pair over whole answers, in the language and in English."""
    texts = [text for pair in pairs for text in pair.texts]
    device = next(model.parameters()).device
    ids, mask = (one.to(device) for one in pad([[*prompt, *answer] for prompt, answer in texts], pad_id))
    lengths = [len(answer) for _, answer in texts]
    at = response_positions([len(prompt) for prompt, _ in texts], lengths, ids.shape[1]).to(device)
    states = last_hidden(model, ids, mask).flatten(0, 1)[at]
    said = torch.tensor([token for _, answer in texts for token in answer], device=device)
    where = torch.arange(len(said), device=device)
    tokens, _ = token_log_probs(model, states, said, where)
    each = torch.stack([one.sum() for one in tokens.split(lengths)]).view(len(pairs), 2, 2)
    return each[..., 0] - each[..., 1]


class DCOTrainer(Trainer):
    """Trainer for the adapter of a PEFT model; with the adapter disabled, it is the reference model."""

    def __init__(self, *, model: PeftModel, pairs: Sequence[Pair], pad_id: int, beta: float, **more: Any):
        super().__init__(
            model=model,
            train_dataset=list(pairs),  # type: ignore[arg-type]  # a list works like a Dataset
            data_collator=lambda pairs: {"pairs": pairs},
            **more,
        )
        self.pad_id, self.beta = pad_id, beta

    def compute_loss(self, model: Any, inputs: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        with torch.no_grad(), model.disable_adapter():
            reference = log_odds(model, inputs["pairs"], self.pad_id)
        return dco_loss(log_odds(model, inputs["pairs"], self.pad_id), reference, self.beta)
