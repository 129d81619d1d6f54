"""One path of a prefix or embedding carrier, distilled into a LoRA that serving engines take.

Flow: the carrier answers prompts → its last hidden states at every position → a LoRA of one node learns them.
"""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from isogloss.adapters.base import Carrier
from isogloss.adapters.fit import linear_names
from isogloss.adapters.generate import complete, stops, up_to_end
from isogloss.adapters.lora import TreeLora
from isogloss.adapters.tree import ROOT, Node, Tree
from isogloss.data.chat import Encoded
from isogloss.model.decoder import response_states
from isogloss.model.load import pad_id
from isogloss.teacher.signals import Signal
from isogloss.train.batch import Ordered, Sample
from isogloss.train.objective import Weights
from isogloss.train.order import schedule
from isogloss.train.trainer import ResponseTrainer, Watch, train, training_arguments

RANK = 16
"""Of the LoRA, where none is asked for."""
STEPS, BATCH, LR = 400, 16, 2e-3
READ = 64
"""Rows per forward where nothing is learnt."""


def lora_of_path(
    carrier: Carrier,
    language: str,
    prompts: Sequence[Sequence[int]],
    tokenizer: PreTrainedTokenizerBase,
    *,
    work: Path,
    seed: int,
    rank: int = RANK,
    steps: int = STEPS,
    max_new_tokens: int = 24,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> TreeLora:
    """A LoRA on every linear layer that gives the path's logits at every token of prompts and answers.

    It lies in the carrier's own model, which answers as before once the adapter is unloaded.

    Args:
        prompts: What the carrier answers, as token ids.
        work: Folder for the trainer; emptied before and removed after.
        steps: Optimiser steps; the loss is the divergence from the carrier alone.
    """
    model = carrier.model.get_base_model()
    texts = _answered(carrier, language, prompts, tokenizer, max_new_tokens)
    states = _states(carrier, language, texts, pad_id(tokenizer))
    node = Node(ROOT, "root", None, (ROOT,), rank, 0)
    targets = sorted({name.rpartition(".")[2] for name in linear_names(model)})
    torch.manual_seed(seed)
    student = TreeLora(model, Tree((node,)), targets=targets, scaling=2.0)
    samples = [
        Sample(text, ROOT, number, Signal(found, torch.zeros(found.shape[1])))
        for number, (text, found) in enumerate(zip(texts, states, strict=True))
    ]
    lengths = [1 + len(text.response) for text in texts]
    order = schedule([ROOT] * len(texts), steps * BATCH, balance=1.0, batch=BATCH, alike=lengths, seed=seed)
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    trainer = ResponseTrainer(
        model=student.model,
        carrier=student,
        args=training_arguments(
            work,
            steps=steps,
            batch_size=BATCH,
            gradient_accumulation_steps=1,
            learning_rate=LR,
            seed=seed,
            bf16=False,
            save_every=2 * steps,
        ),
        train_dataset=Ordered(samples, order),
        weights=Weights(ce=0.0, kl=1.0),
        pad_id=pad_id(tokenizer),
    )
    train(trainer, Watch(work / "curve.jsonl", "refit", max(1, steps // 10), progress), work)
    shutil.rmtree(work)
    student.model.eval()
    student.off()
    return student


def _answered(
    carrier: Carrier,
    language: str,
    prompts: Sequence[Sequence[int]],
    tokenizer: PreTrainedTokenizerBase,
    max_new_tokens: int,
) -> list[Encoded]:
    """Prompts and the carrier's own answers; all but the first token count as a response."""
    ends, found = set(stops(carrier.model, tokenizer)), []
    for start in range(0, len(prompts), READ):
        chosen = [list(prompt) for prompt in prompts[start : start + READ]]
        made = complete(
            carrier.model,
            tokenizer,
            chosen,
            languages=[language] * len(chosen),
            carrier=carrier,
            max_new_tokens=max_new_tokens,
        )
        for prompt, answer in zip(chosen, made.tolist(), strict=True):
            ids = (*prompt, *up_to_end(answer, ends))
            found.append(Encoded(ids[:1], ids[1:]))
    return found


@torch.no_grad()
def _states(
    carrier: Carrier, language: str, texts: Sequence[Encoded], blank: int
) -> list[Float[Tensor, "tokens hidden"]]:
    """What the head reads on the path, at every token but the last."""
    found: list[Tensor] = []
    for start in range(0, len(texts), READ):
        chosen = texts[start : start + READ]
        with carrier.on([language] * len(chosen)) as model:
            states = response_states(model, [t.prompt for t in chosen], [t.response for t in chosen], blank)
        found += [one.clone() for one in states]
    return found
