"""Stage 2 from rows to trained carriers: signals, the order of rows, training."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from isogloss.config import Distill
from isogloss.cost import Stage, forward_flops
from isogloss.distill.on_policy import OnPolicyTrainer, Policy, add_costs
from isogloss.distill.rows import Row, training_order
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
from isogloss.languages import SOURCE
from isogloss.model import layers_of
from isogloss.teacher.joining import signals_from
from isogloss.teacher.scored import Scored
from isogloss.tree.lora import TreeLora

Progress = Callable[[int, int], None]


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
    bar: Callable[[str], AbstractContextManager[Progress]],
    tokenizer: PreTrainedTokenizerBase | None = None,
    scored: Sequence[Scored] | None = None,
) -> None:
    """Train the carriers on the rows; the model below is frozen.

    Args:
        work: Folder for checkpoints, from which a killed run goes on; removed by the caller, who knows when
            the carriers are safe.
        curve: File that gets the learning curve.
        cost: Gets tokens, teacher calls and FLOPs; its name is the curve's.
        bar: Makes progress on something that takes long.
        tokenizer: Needed where some steps are on-policy.
        scored: What another teacher than the model itself says of the rows that are not English.
    """
    carrier.off()
    layer = settings.layer or max(1, len(layers_of(carrier.model)) // 2)
    with bar("Teacher reads") as progress:
        signals = hidden_signals(
            carrier.model, rows, layer=layer, pad_id=pad_id, teacher=settings.hears_itself, progress=progress
        )
    if scored is not None:
        signals = signals_from(rows, signals, scored)
    asked = [row for row in rows if settings.hears_itself or row.language == SOURCE]
    read = sum(len(r.teacher_prompt) + len(r.student.response) for r in asked)
    read += sum(len(p) for p in {r.twin_prompt for r in rows})
    retain = settings.retain and any(row.language == SOURCE for row in rows)
    order = training_order(rows, settings, seed)
    steps = len(order) // settings.batch
    samples = samples_of(rows, signals)
    kind: Any = ResponseTrainer
    more: dict[str, Any] = {}
    if settings.on_policy:
        assert tokenizer is not None
        kind, more = OnPolicyTrainer, {
            "policy": Policy(
                carrier, tokenizer, rows, samples, share=settings.on_policy, longest=settings.sample_tokens,
                seed=seed,
            )
        }  # fmt: skip
    trainer = kind(
        **more,
        model=carrier.model,
        carrier=carrier,
        args=training_arguments(
            work, steps=steps, batch=settings.batch // settings.accumulate, accumulate=settings.accumulate,
            lr=settings.lr, weight_decay=0.0, seed=seed, bf16=False, save_every=max(50, steps // 4),
        ),
        train_dataset=Ordered(samples, order),
        weights=Weights(
            settings.ce, settings.kl, settings.hidden, float(bool(retain)),
            layer, settings.divergence, settings.temperature,
        ),
        pad_id=pad_id,
    )  # fmt: skip
    with bar("Distillation") as progress:
        train(trainer, Watch(curve, cost.stage, max(1, steps // 60), progress), work)
    carrier.off()
    tokens, responses = trainer.counts["tokens"], trainer.counts["responses"]
    cost.teacher_calls = len(asked)
    cost.tokens_forwarded += read + tokens
    cost.tokens_backpropagated += tokens
    add_costs(cost, trainer.counts, carrier.model.get_base_model())
    # Frozen weights take no gradient, so backward costs one forward; the head serves teacher and student.
    model = carrier.model.get_base_model()
    cost.flops += forward_flops(model, read, 0) + 2 * forward_flops(model, tokens, responses)
    cost.flops += forward_flops(model, 0, responses if settings.kl else 0)
    # Of the adapters a token meets its path alone, forward and twice backward.
    met = sum(p.numel() for p in carrier.parameters().values()) * carrier.tree.path_rank() / carrier.tree.rank
    cost.flops += 3 * 2 * met * tokens
