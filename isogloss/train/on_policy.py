"""On-policy steps: the student answers, and the frozen model behind the privileged prompt scores it.

A stated share of the steps, evenly spread. Their rows in other languages get responses that the student draws
there and then, each row on its own path; the teacher reads these live, carriers off. The losses are the
same, except that cross-entropy has no place where a response is the student's own. English rows keep theirs.
What is drawn depends on the seed, the step and the place in it alone, so a resumed run draws the same.
(Agarwal et al. 2024, arXiv:2306.13649, algorithm 1, with whole steps in place of single draws.)
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from isogloss.adapters.base import Carrier
from isogloss.adapters.generate import complete, in_batches, stops, up_to_end
from isogloss.data.chat import Encoded
from isogloss.languages import SOURCE
from isogloss.model.attention import fused_attention
from isogloss.model.cost import Stage
from isogloss.model.decoder import most_tokens, response_states
from isogloss.model.load import pad_id
from isogloss.teacher.rows import Row
from isogloss.teacher.signals import Signal
from isogloss.train.batch import Batch, Sample, collate
from isogloss.train.trainer import ResponseTrainer


def is_on_policy(step: int, share: float) -> bool:
    """Whether a step, counted from 0, is one of the share: ⌊share · n⌋ of the first n are."""
    # A share such as 0.1 is no binary fraction: what is whole to 9 digits is whole.
    return math.floor(round(share * (step + 1), 9)) > math.floor(round(share * step, 9))


class Policy:
    """Draws and scores responses.

    Args:
        carrier: The student.
        rows: All rows of stage 2,
        samples: and what was made of them, in the same order.
        share: Of the steps, between 0 and 1.
        longest: Most tokens of a response that is drawn.
    """

    def __init__(
        self,
        carrier: Carrier,
        tokenizer: PreTrainedTokenizerBase,
        rows: Sequence[Row],
        samples: Sequence[Sample],
        *,
        share: float,
        longest: int,
        seed: int,
    ):
        self.carrier, self.tokenizer, self.share = carrier, tokenizer, share
        self.longest, self.seed, self.filler = longest, seed, pad_id(tokenizer)
        self.ends = set(stops(carrier.model, tokenizer))
        self._of = {
            _name(s.language, s.meaning, s.encoded): (row, s) for row, s in zip(rows, samples, strict=True)
        }

    def renewed(self, batch: Batch, step: int, place: int, counts: dict[str, Any]) -> Batch:
        """The batch with the student's own responses, scored live.

        Args:
            place: Of the batch in its step, over accumulation and ranks.
            counts: Gets `generated`, `read` (by the teacher) and `calls`.
        """
        known = [self._of[name] for name in _names(batch)]
        drawn = [n for n, (row, _) in enumerate(known) if row.language != SOURCE]
        responses = [row.student.response for row, _ in known]
        if drawn:
            with _drawing(self.seed, step, place, self.carrier.model):
                made = complete(
                    self.carrier.model,
                    self.tokenizer,
                    [known[n][0].student.prompt for n in drawn],
                    languages=[known[n][0].language for n in drawn],
                    carrier=self.carrier,
                    max_new_tokens=self.longest,
                    do_sample=True,
                )
            for n, ids in zip(drawn, made.tolist(), strict=True):
                responses[n] = up_to_end(ids, self.ends)
                counts["generated"] = counts.get("generated", 0) + len(responses[n])
                counts["prompted"] = counts.get("prompted", 0) + len(known[n][0].student.prompt)
        prompts = [row.teacher_prompt for row, _ in known]
        self.carrier.off()
        states = live_states(self.carrier.model, prompts, responses, self.filler)
        counts["read"] = counts.get("read", 0) + sum(map(len, prompts)) + sum(map(len, responses))
        counts["calls"] = counts.get("calls", 0) + len(known)
        samples = [
            replace(
                sample, encoded=Encoded(sample.encoded.prompt, response), signal=Signal(said, _twin(sample))
            )
            for (_, sample), response, said in zip(known, responses, states, strict=True)
        ]
        return collate(samples, self.filler)


class OnPolicyTrainer(ResponseTrainer):
    """A `ResponseTrainer` some of whose steps are on-policy."""

    def __init__(self, *, policy: Policy, **kwargs: Any):
        super().__init__(**kwargs)
        self.policy = policy
        self._on = False

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> Tensor:
        """Before a step its batches are counted: the moment to renew them, with the weights of this step."""
        self._on = is_on_policy(self.state.global_step, self.policy.share)
        if self._on:
            for number, sample in enumerate(batch_samples):
                place = number * self.args.world_size + self.args.process_index
                sample["batch"] = self.policy.renewed(
                    sample["batch"], self.state.global_step, place, self.fresh
                )
        return super()._get_num_items_in_batch(batch_samples, device)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        if not self._on:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        weights, ce = self.weights, self.fresh.get("ce")
        self.weights = replace(weights, ce=0.0)
        try:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        finally:
            self.weights = weights
            # The curve shows what was learned from.
            self.fresh["ce"] = 0.0 if ce is None else ce


def add_costs(cost: Stage, counts: Mapping[str, float]) -> None:
    """What on-policy steps cost beside the student's step: drawing, and the teacher's reading."""
    generated = int(counts.get("generated", 0))
    cost.tokens_generated += generated
    cost.teacher_calls += int(counts.get("calls", 0))
    cost.tokens_forwarded += int(counts.get("prompted", 0) + counts.get("read", 0)) + generated


@torch.no_grad()
def live_states(
    model: nn.Module, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], filler: int
) -> list[Float[Tensor, "tokens hidden"]]:
    """Last hidden states that predict each response behind its prompt, as the model is switched now."""
    training = model.training
    model.eval()
    whole = [[*prompt, *response] for prompt, response in zip(prompts, responses, strict=True)]
    order = sorted(range(len(whole)), key=lambda number: len(whole[number]))
    found = [torch.empty(0)] * len(whole)
    with fused_attention(model):
        for some in in_batches(order, whole, len(whole), most_tokens(model)):
            states = response_states(model, [prompts[n] for n in some], [responses[n] for n in some], filler)
            for number, one in zip(some, states, strict=True):
                found[number] = one.cpu()
    model.train(training)
    return found


@contextmanager
def _drawing(seed: int, step: int, place: int, model: nn.Module) -> Iterator[None]:
    """Inside, random numbers depend on seed, step and place alone; outside nothing has changed."""
    training = model.training
    try:
        with torch.random.fork_rng():
            torch.manual_seed(hash((seed, step, place)) % 2**63)
            yield
    finally:
        model.train(training)


def _twin(sample: Sample) -> Tensor:
    assert sample.signal is not None
    return sample.signal.twin


Name = tuple[str, int, tuple[int, ...], tuple[int, ...]]


def _name(language: str, meaning: int, encoded: Encoded) -> Name:
    return language, meaning, tuple(encoded.prompt), tuple(encoded.response)


def _names(batch: Batch) -> list[Name]:
    """What tells the batch's rows from all others."""
    starts, lengths = batch.prompt_mask.sum(1).tolist(), batch.mask.sum(1).tolist()
    rows = zip(batch.ids.tolist(), starts, lengths, batch.languages, batch.meanings.tolist(), strict=True)
    return [
        _name(language, meaning, Encoded(tuple(ids[:start]), tuple(ids[start:length])))
        for ids, start, length, language, meaning in rows
    ]
