"""Stage 2, from rows to trained adapters: teacher signals, row order, training."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from isogloss.adapters.lora import TreeLora
from isogloss.config import Distill, ModelTeacher, SelfTeacher, ServerTeacher
from isogloss.errors import ConfigError
from isogloss.languages import SOURCE
from isogloss.losses import functional
from isogloss.model.cost import StageCost
from isogloss.model.decoder import text_config, two_thirds
from isogloss.progress import Bar
from isogloss.teacher.cache import Cache
from isogloss.teacher.joining import signals_from
from isogloss.teacher.rows import Row
from isogloss.teacher.scored import TokenScores
from isogloss.teacher.signals import Signal, teacher_signals
from isogloss.train.batch import Ordered, Sample, samples_of, twins_of
from isogloss.train.checks import PathsOnly, check_teacher, divergence_by_language
from isogloss.train.node_rates import node_rates
from isogloss.train.objective import Weights
from isogloss.train.order import training_order
from isogloss.train.trainer import ResponseTrainer, Watch, optimisation, train, training_arguments

TRAINING = "Distillation"
"""Label of the progress bar over the steps."""


def layer_of(model: nn.Module, settings: Distill) -> int:
    """Return the hidden-state term's decoder layer: as set, else two thirds of the way up.

    `config.defaults` sets it for every model but the embedded one.
    """
    return settings.similarity_layer or two_thirds(model)


def weights_of(model: nn.Module, settings: Distill, *, replay: bool) -> Weights:
    """Return the loss weights for a model; `replay` is true if there are English rows."""
    return Weights(
        settings.ce_weight,
        settings.kl_weight,
        settings.similarity_weight,
        float(replay),
        layer_of(model, settings),
        settings.divergence,
        settings.temperature,
        settings.similarity_temperature or 1.0,
        settings.similarity_decay,
    )


def read_signals(
    model: nn.Module,
    rows: Sequence[Row],
    settings: Distill,
    *,
    pad_id: int,
    cost: StageCost,
    bar: Bar,
    cache: Cache | None = None,
    scored: Sequence[TokenScores] | None = None,
) -> list[Signal]:
    """Compute the reference model's signals that the configured loss needs, or load them from the cache.

    Args:
        scored: Token scores of another teacher for the non-English rows, which replace the model's own.

    Raises:
        ValueError: The settings name another teacher and `scored` is missing.
    """
    if settings.scored_elsewhere and scored is None:
        raise ValueError(f"a {settings.teacher.type} teacher's scores must be given")
    kind, k = settings.form
    with bar("Teacher scores") as progress:
        signals = teacher_signals(
            model,
            rows,
            layer=layer_of(model, settings),
            pad_id=pad_id,
            kind=kind,
            k=k,
            teacher=settings.hears_itself,
            twins=bool(settings.similarity_weight),
            cache=cache,
            cost=cost,
            progress=progress,
        )
    if scored is None:
        return signals
    vocab = text_config(model).vocab_size
    return signals_from(rows, signals, scored, vocab)


def scores_by(teacher: SelfTeacher | ModelTeacher | ServerTeacher) -> dict[str, Any]:
    """Return the settings that determine a teacher's scores, not how it is called."""
    return teacher.model_dump(mode="json", include={"type", "path", "url", "model", "level", "top_k"})


def target_perplexity(twins: int) -> float:
    """Return the default perplexity, in twins, of the hidden-state term's target: 10, or with fewer than 40
    twins a quarter of them, at least 2."""
    return min(10.0, max(2.0, twins / 4))


def similarity_temperature(samples: Sequence[Sample], settings: Distill) -> float:
    """Return the hidden-state term's temperature: as set, else that of the target perplexity.

    Raises:
        ConfigError: At the configured temperature the target is nearly one-hot or nearly uniform, so it does
            not tell which meanings are alike.
    """
    found = twins_of(samples)
    assert found is not None
    twins = found.vectors
    wanted = target_perplexity(len(twins))
    if settings.similarity_temperature is None:
        return functional.temperature_of(twins, wanted)
    named = functional.perplexity(twins, settings.similarity_temperature)
    if len(twins) >= 4 and not 2 <= named <= len(twins) / 2:
        says = "which is nearly one-hot" if named < 2 else "which is nearly uniform"
        raise ConfigError(
            f"distill.similarity_temperature is {settings.similarity_temperature:g}: the hidden-state term's "
            f"target covers {named:.1f} of {len(twins)} twins, {says}; leave it out, or use "
            f"{functional.temperature_of(twins, wanted):.2g}"
        )
    return settings.similarity_temperature


def distill(
    adapters: TreeLora,
    rows: Sequence[Row],
    settings: Distill,
    *,
    pad_id: int,
    seed: int,
    work: Path,
    curve: Path,
    cost: StageCost,
    bar: Bar,
    cache: Cache | None = None,
    say: Callable[[str], None] = lambda text: None,
    scored: Sequence[TokenScores] | None = None,
    compile: bool = False,
    report_to: Sequence[str] = (),
    reference: str = "",
) -> None:
    """Train the adapters on the rows; the model's weights are frozen.

    Args:
        work: Folder for checkpoints, from which a killed run resumes; removed by the caller, who knows when
            the adapters are saved.
        cost: Updated with tokens, teacher calls and FLOPs; its stage name is used in the curve.
        say: Callback that receives each language's divergence before training, and warnings.
        scored: Token scores of another teacher for the non-English rows.
        compile: As in `ResponseTrainer`.
        report_to: As in `training_arguments`.
        reference: Fingerprint of the model's weights; checkpoints of another model are not resumed.
    """
    adapters.off()
    layer, (kind, k) = layer_of(adapters.model, settings), settings.form
    if settings.checks:
        # Another teacher's scores cannot be predicted, so only the model's own rows (English) are checked.
        own = [r for r in rows if not r.bare and (r.language == SOURCE or not settings.scored_elsewhere)]
        if own:
            check_teacher(adapters, own, pad_id=pad_id, layer=layer, kind=kind, k=k)
    signals = read_signals(
        adapters.model, rows, settings, pad_id=pad_id, cost=cost, bar=bar, cache=cache, scored=scored
    )
    asked = sum(bool(row.options) for row in rows)
    if asked and settings.hears_itself and all(signal.options is None for signal in signals):
        say(
            f"Warning: {asked} rows with answer options are trained without the divergence (kl_weight), as "
            "the model cannot read several answers in one row; set distill.teacher_view=prompt to have it"
        )
    samples = samples_of(rows, signals)
    replay = bool(settings.replay_fraction) and any(row.language == SOURCE for row in rows)
    weights = weights_of(adapters.model, settings, replay=replay)
    if settings.similarity_weight:
        weights = replace(weights, similarity_temperature=similarity_temperature(samples, settings))
    order = training_order(rows, settings, seed)
    steps = len(order) // settings.batch_size
    if settings.gradient_checkpointing:
        adapters.model.gradient_checkpointing_enable({"use_reentrant": False})
    trainer = ResponseTrainer(
        model=adapters.model,
        adapters=adapters,
        args=training_arguments(
            work,
            steps=steps,
            **optimisation(settings),
            seed=seed,
            bf16=False,
            save_every=max(20, steps // 20),  # adapters alone, so small and often
            report_to=report_to,
        ),
        train_dataset=Ordered(samples, order),
        weights=weights,
        pad_id=pad_id,
        compile=compile,
        rates=node_rates(adapters.tree, [rows[number].language for number in order]),
        also=(scores_by(settings.teacher), settings.form, reference),
    )
    if settings.checks:
        trainer.add_callback(PathsOnly(adapters, trainer.languages))
        with bar("Divergence before training") as progress:
            found = divergence_by_language(adapters, samples, weights, pad_id, progress)
        if found:
            # Rounding may make the divergence of two identical distributions negative.
            nats = ", ".join(f"{code} {max(value, 0.0):.3f}" for code, value in found.items())
            say(f"Divergence from the teacher before training, nats per token: {nats}")
    with bar(TRAINING) as progress:
        train(trainer, Watch(curve, cost.stage, max(1, steps // 60), progress), work, say)
    adapters.off()
    cost.trained(trainer.counts)
