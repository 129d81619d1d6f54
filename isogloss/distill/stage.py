"""Stage 2 from rows to trained carriers: signals, the order of rows, training."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from torch import nn

from isogloss.config import Distill
from isogloss.cost import Stage, forward_flops
from isogloss.distill.cache import Cache
from isogloss.distill.checks import PathsOnly, check_rows, check_teacher, divergence_by_language
from isogloss.distill.rows import Row, schedule
from isogloss.distill.signal import Signal, hidden_signals
from isogloss.distill.trainer import (
    Ordered,
    ResponseTrainer,
    Watch,
    Weights,
    samples_of,
    train,
    training_arguments,
)
from isogloss.languages import SOURCE
from isogloss.model import layers_of
from isogloss.tree.lora import TreeLora

Progress = Callable[[int, int], None]
Bar = Callable[[str], AbstractContextManager[Progress]]


def layer_of(model: nn.Module, settings: Distill) -> int:
    """The decoder layer that the hidden-state term reads."""
    return settings.layer or max(1, len(layers_of(model)) // 2)


def read_signals(
    model: nn.Module,
    rows: Sequence[Row],
    settings: Distill,
    *,
    pad_id: int,
    cost: Stage,
    bar: Bar,
    cache: Cache | None = None,
) -> list[Signal]:
    """What the settings' loss needs of the reference model, from the cache where it is there."""
    with bar("Teacher reads") as progress:
        return hidden_signals(
            model, rows, layer=layer_of(model, settings), pad_id=pad_id, kind=settings.signal,
            k=settings.top_k, teacher=bool(settings.kl), cache=cache, cost=cost, progress=progress,
        )  # fmt: skip


def distil(
    carrier: TreeLora,
    rows: Sequence[Row],
    settings: Distill,
    *,
    pad_id: int,
    seed: int,
    work: Path,
    curve: Path,
    cost: Stage,
    bar: Bar,
    cache: Cache | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> None:
    """Train the carriers on the rows; the model below is frozen.

    Args:
        work: Folder for checkpoints, from which a killed run goes on; removed by the caller, who knows when
            the carriers are safe.
        curve: File that gets the learning curve.
        cost: Gets tokens, teacher calls and FLOPs; its name is the curve's.
        bar: Makes progress on something that takes long.
        cache: Where the teacher's signals are looked for, and kept.
        say: Hears the divergence of every language before training.
    """
    carrier.off()
    layer = layer_of(carrier.model, settings)
    if settings.checks:
        check_rows(rows)
        check_teacher(carrier, rows, pad_id=pad_id, layer=layer, kind=settings.signal, k=settings.top_k)
    signals = read_signals(carrier.model, rows, settings, pad_id=pad_id, cost=cost, bar=bar, cache=cache)
    parallel = sum(row.language != SOURCE for row in rows)
    retain = settings.retain if parallel < len(rows) else 0.0
    order = schedule(
        [row.language for row in rows], round(settings.epochs * parallel / (1 - retain)),
        balance=settings.balance, batch=settings.batch, seed=seed, fixed={SOURCE: retain},
        lengths=[len(r.student.prompt) + len(r.student.response) for r in rows],
    )  # fmt: skip
    steps = len(order) // settings.batch
    weights = Weights(
        settings.ce, settings.kl, settings.hidden, float(retain > 0),
        layer, settings.divergence, settings.temperature,
    )  # fmt: skip
    samples = samples_of(rows, signals)
    trainer = ResponseTrainer(
        model=carrier.model,
        carrier=carrier,
        args=training_arguments(
            work, steps=steps, batch=settings.batch // settings.accumulate, accumulate=settings.accumulate,
            lr=settings.lr, weight_decay=0.0, seed=seed, bf16=False, save_every=max(50, steps // 4),
        ),
        train_dataset=Ordered(samples, order),
        weights=weights,
        pad_id=pad_id,
    )  # fmt: skip
    if settings.checks:
        trainer.add_callback(PathsOnly(carrier, trainer.languages))
        if found := divergence_by_language(carrier, samples, weights, pad_id):
            nats = ", ".join(f"{code} {value:.3f}" for code, value in found.items())
            say(f"Divergence from the teacher before training, nats a token: {nats}")
    with bar("Distillation") as progress:
        train(trainer, Watch(curve, cost.stage, max(1, steps // 60), progress), work)
    carrier.off()
    tokens, responses = trainer.counts["tokens"], trainer.counts["responses"]
    cost.tokens_forwarded += cost.teacher_tokens + tokens
    cost.tokens_backpropagated += tokens
    # Frozen weights take no gradient, so backward costs one forward; the head serves teacher and student.
    model = carrier.model.get_base_model()
    cost.flops += forward_flops(model, cost.teacher_tokens, 0) + 2 * forward_flops(model, tokens, responses)
    cost.flops += forward_flops(model, 0, responses if settings.kl and settings.signal == "hidden" else 0)
    # Of the adapters a token meets its path alone, forward and twice backward.
    met = sum(p.numel() for p in carrier.parameters().values()) * carrier.tree.path_rank() / carrier.tree.rank
    cost.flops += 3 * 2 * met * tokens
