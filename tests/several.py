"""The script of each process in test_processes: train from a folder; the main process saves the results.

A launcher starts it on its own, so it imports nothing else from the tests. Single-process tests also use its
samples and callback.
"""

import json
import sys
from functools import partial
from pathlib import Path

import torch
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM, TrainerCallback

from isogloss import processes
from isogloss.adapters.lora import TreeLora
from isogloss.adapters.tree import build_tree
from isogloss.data.chat import Encoded
from isogloss.model.attention import compiled
from isogloss.model.decoder import layers_of
from isogloss.model.load import in_parts
from isogloss.teacher.signals import Signal
from isogloss.train import trainer as training
from isogloss.train.batch import Ordered, Sample
from isogloss.train.objective import Weights
from isogloss.train.trainer import ResponseTrainer, Watch, train, training_arguments

STEPS, BATCH = 5, 8
LANGUAGES = ["ru", "bg", "es", "fr", "sw", "en"]
CODES = ("ru", "bg", "es", "fr", "sw")
TARGETS = ("q_proj", "v_proj", "down_proj")
SIZES = [(3, 2), (7, 1), (2, 9), (5, 4), (4, 4), (6, 3), (2, 1), (3, 6), (9, 2), (1, 5)]
"""Prompt and response lengths in tokens."""


def sample(number: int, prompt: int, response: int) -> Sample:
    """Return a sample with random prompt and response IDs, one of six languages and a random signal."""
    made = torch.Generator().manual_seed(number)

    def ids(length: int) -> tuple[int, ...]:
        return tuple(torch.randint(5, 250, (length,), generator=made).tolist())

    signal = Signal(torch.randn(response, 24, generator=made), torch.randn(24, generator=made))
    return Sample(Encoded(ids(prompt), ids(response)), LANGUAGES[number % 6], number, signal)


def prepare(folder: Path, model) -> None:
    """Write what `job` reads: the model and ten samples of different lengths."""
    model.save_pretrained(folder / "model")
    torch.save([sample(number, *sizes) for number, sizes in enumerate(SIZES)], folder / "samples.pt")


class Gradients(TrainerCallback):
    """Keep the gradients of every optimiser step."""

    def __init__(self):
        self.steps = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        model = getattr(model, "module", model)  # unwrapped from DDP
        self.steps.append({n: p.grad.clone() for n, p in model.model.named_parameters() if p.requires_grad})


def job(
    folder: Path,
    name: str,
    *,
    stage: int,
    accumulate: int = 1,
    hidden: float = 0.0,
    stop: int | None = None,
    shard: bool = False,
    backend: str = "",
) -> None:
    """Train the folder's model on its samples.

    `stop` is the step at which all processes exit; `backend` is torch's backend for compiling the layers.
    """
    samples = torch.load(folder / "samples.pt", weights_only=False)
    model = AutoModelForCausalLM.from_pretrained(folder / "model", attn_implementation="eager")
    if shard:
        in_parts(model.requires_grad_(False))
        split = [p for p in layers_of(model).parameters() if isinstance(p, DTensor)]
        assert split == list(layers_of(model).parameters())
        assert sum(p.to_local().numel() for p in split) <= 0.51 * sum(p.numel() for p in split)
    adapters, weights = None, Weights()
    if stage == 2:
        tree = build_tree(CODES, ranks={"root": 2, "family": 1, "language": 2})
        torch.manual_seed(1)
        adapters = TreeLora(model, tree, targets=TARGETS, scaling=2.0)
        model, weights = adapters.model, Weights(0.7, 1.3, hidden, layer=2)
    out = folder / name
    out.mkdir(exist_ok=True)
    arguments = training_arguments(
        out / "work",
        steps=STEPS,
        batch_size=BATCH,
        gradient_accumulation_steps=accumulate,
        learning_rate=1e-3,
        weight_decay=0.0,
        seed=0,
        bf16=False,
        save_every=2,
    )
    arguments.max_grad_norm = 0.0
    order = [(number * 3 + number // 8) % len(samples) for number in range(STEPS * BATCH)]
    trainer = ResponseTrainer(
        model=model, adapters=adapters, args=arguments, train_dataset=Ordered(samples, order),
        weights=weights, pad_id=0, compile=bool(backend),
    )  # fmt: skip
    kept = Gradients()
    trainer.add_callback(kept)

    def progress(done, of):
        if done == stop:
            raise SystemExit(9)

    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    training.compiled = partial(compiled, backend=backend)
    train(trainer, Watch(out / "curve.jsonl", "test", 1, progress), out / "work")
    if processes.is_main():
        learned = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}
        torch.save({"gradients": kept.steps, "weights": learned}, out / "found.pt")
        (out / "counts.json").write_text(json.dumps(trainer.counts))
        seen = torch._dynamo.utils.counters
        about = {
            "graphs": seen["stats"]["unique_graphs"], "breaks": list(seen["graph_break"]),
            "plain": all(layer._compiled_call_impl is None for layer in layers_of(model)),
        }  # fmt: skip
        (out / "compiled.json").write_text(json.dumps(about))


if __name__ == "__main__":
    for one in json.loads(sys.argv[2]):
        job(Path(sys.argv[1]), **one)
