"""Stage 2 from rows to trained carriers: signals, the order of rows, training."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from peft.optimizers import create_loraplus_optimizer
from torch.optim import AdamW, Optimizer

from isogloss.config import Distill
from isogloss.cost import Stage, forward_flops
from isogloss.distill.rows import Row, schedule
from isogloss.distill.signal import hidden_signals
from isogloss.distill.trainer import (
    Ordered,
    ResponseTrainer,
    Watch,
    Weights,
    samples_of,
    train,
    training_arguments,
)
from isogloss.distill.treewise import Average, Gain, Shrinkage, held_out, prune, rows_below
from isogloss.languages import SOURCE
from isogloss.model import layers_of
from isogloss.tree.carrier import Carrier

Progress = Callable[[int, int], None]


def distil(
    carrier: Carrier,
    rows: Sequence[Row],
    settings: Distill,
    *,
    pad_id: int,
    seed: int,
    work: Path,
    curve: Path,
    cost: Stage,
    bar: Callable[[str], AbstractContextManager[Progress]],
) -> list[Gain]:
    """Train the carriers on the rows, the model below being frozen; returns what judged nodes gain.

    Args:
        work: Folder for checkpoints, from which a killed run goes on; removed by the caller, who knows when
            the carriers are safe.
        curve: File that gets the learning curve.
        cost: Gets tokens, teacher calls and FLOPs; its name is the curve's.
        bar: Makes progress on something that takes long.
    """
    carrier.off()
    held: list[Row] = []
    if settings.prune:
        rows, held = held_out(rows, settings.prune, seed)
    layer = settings.layer or max(1, len(layers_of(carrier.model)) // 2)
    with bar("Teacher reads") as progress:
        signals = hidden_signals(
            carrier.model, rows, layer=layer, pad_id=pad_id, teacher=bool(settings.kl), progress=progress
        )
    scored = [row for row in rows if settings.kl or row.language == SOURCE]
    read = sum(len(r.teacher_prompt) + len(r.student.response) for r in scored)
    read += sum(len(p) for p in {r.twin_prompt for r in rows})
    parallel = sum(row.language != SOURCE for row in rows)
    retain = settings.retain if parallel < len(rows) else 0.0
    order = schedule(
        [row.language for row in rows], round(settings.epochs * parallel / (1 - retain)),
        balance=settings.balance, batch=settings.batch, seed=seed, fixed={SOURCE: retain},
        lengths=[len(r.student.prompt) + len(r.student.response) for r in rows],
    )  # fmt: skip
    steps = len(order) // settings.batch
    if settings.gradient_checkpointing:
        carrier.model.gradient_checkpointing_enable({"use_reentrant": False})
    trainer = ResponseTrainer(
        model=carrier.model,
        carrier=carrier,
        args=training_arguments(
            work, steps=steps, batch=settings.batch // settings.accumulate, accumulate=settings.accumulate,
            lr=settings.lr, weight_decay=0.0, seed=seed, bf16=False, save_every=max(50, steps // 4),
        ),
        train_dataset=Ordered(samples_of(rows, signals), order),
        weights=Weights(
            settings.ce, settings.kl, settings.hidden, float(retain > 0),
            layer, settings.divergence, settings.temperature,
        ),
        pad_id=pad_id,
        level_dropout=settings.level_dropout,
        optimizers=(_larger_b(carrier, settings) if settings.lr_b_ratio != 1 else None, None),
    )  # fmt: skip
    if settings.shrinkage:
        counts = rows_below(carrier.tree.nodes, rows)
        trainer.add_callback(Shrinkage(carrier, settings.shrinkage, counts))
    if settings.average:
        trainer.add_callback(Average(settings.average))
    with bar("Distillation") as progress:
        train(trainer, Watch(curve, cost.stage, max(1, steps // 60), progress), work)
    carrier.off()
    gains = prune(carrier, held, pad_id=pad_id)
    tokens, responses = trainer.counts["tokens"], trainer.counts["responses"]
    cost.teacher_calls = len(scored)
    cost.tokens_forwarded += read + tokens
    cost.tokens_backpropagated += tokens
    # Frozen weights take no gradient, so backward costs one forward; the head serves teacher and student.
    model = carrier.model.get_base_model()
    cost.flops += forward_flops(model, read, 0) + 2 * forward_flops(model, tokens, responses)
    cost.flops += forward_flops(model, 0, responses if settings.kl else 0)
    cost.flops += carrier.flops(tokens, len(order))
    return gains


def _larger_b(carrier: Carrier, settings: Distill) -> Optimizer:
    """The Trainer's AdamW, with a larger step for every B (Hayou et al. 2024, arXiv:2402.12354)."""
    return create_loraplus_optimizer(
        carrier.model, AdamW, lr=settings.lr, loraplus_lr_ratio=settings.lr_b_ratio, betas=(0.9, 0.98)
    )
