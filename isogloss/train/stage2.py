"""Stage 2 from rows to trained adapters: signals, the order of rows, training."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from torch import nn

from isogloss.adapters.lora import TreeLora
from isogloss.config import Distill
from isogloss.errors import ConfigError
from isogloss.languages import SOURCE
from isogloss.losses import functional
from isogloss.model.cost import StageCost
from isogloss.model.decoder import causal_of, two_thirds
from isogloss.progress import Bar
from isogloss.teacher.cache import Cache
from isogloss.teacher.joining import signals_from
from isogloss.teacher.rows import Row
from isogloss.teacher.scored import TokenScores
from isogloss.teacher.signals import Signal, teacher_signals
from isogloss.train.batch import Ordered, Sample, samples_of, twins_of
from isogloss.train.checks import PathsOnly, check_rows, check_teacher, divergence_by_language
from isogloss.train.node_rates import node_rates
from isogloss.train.objective import Weights
from isogloss.train.order import training_order
from isogloss.train.trainer import ResponseTrainer, Watch, optimisation, train, training_arguments


def layer_of(model: nn.Module, settings: Distill) -> int:
    """The decoder layer that the hidden-state term reads: as set, which `config.defaults` does for a model
    trained before, else two thirds of the way up."""
    return settings.similarity_layer or two_thirds(model)


def weights_of(model: nn.Module, settings: Distill, *, replay: bool) -> Weights:
    """The settings' loss for a model; `replay`: there are English rows."""
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
    """What the settings' loss needs of the reference model, from the cache where it is there.

    Args:
        scored: What another teacher says of the rows that are not English, which takes the model's place.
    """
    if settings.scored_elsewhere and scored is None:
        raise ValueError(f"a {settings.teacher.type} teacher's scores must be given")
    kind, k = settings.form
    with bar("Teacher reads") as progress:
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
    vocab = causal_of(model).config.get_text_config().vocab_size
    return signals_from(rows, signals, scored, vocab)


NAMED = 10.0
"""Twins that the target of the hidden-state term names on average, where the settings give no temperature."""


def similarity_temperature(samples: Sequence[Sample], settings: Distill) -> float:
    """The temperature of the hidden-state term: the settings', else what has its target name `NAMED` twins.

    Raises:
        ConfigError: At the settings' temperature the target is nearly one-hot or nearly uniform: it says
            nothing about which meanings are alike.
    """
    found = twins_of(samples)
    assert found is not None
    twins = found.vectors
    if settings.similarity_temperature is None:
        return functional.temperature_of(twins, min(NAMED, max(2.0, len(twins) / 4)))
    named = functional.perplexity(twins, settings.similarity_temperature)
    if not 2 <= named <= len(twins) / 2:
        says = "one twin alone" if named < 2 else "nearly all of them alike"
        raise ConfigError(
            f"distill.similarity_temperature is {settings.similarity_temperature:g}: the hidden-state term's "
            f"target names {named:.1f} of {len(twins)} twins, {says}; leave it out, or take "
            f"{functional.temperature_of(twins, NAMED):.2g}"
        )
    return settings.similarity_temperature


def distil(
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
) -> None:
    """Train the adapters on the rows, the model below being frozen.

    Args:
        work: Folder for checkpoints, from which a killed run goes on; removed by the caller, who knows when
            the adapters are safe.
        curve: File that gets the learning curve.
        cost: Gets tokens, teacher calls and FLOPs; its name is the curve's.
        bar: Makes progress on something that takes long.
        cache: Where the teacher's signals are looked for, and kept.
        say: Hears the divergence of every language before training.
        scored: What another teacher than the model itself says of the rows that are not English.
        compile: As in `ResponseTrainer`.
        report_to: As in `training_arguments`.
    """
    adapters.off()
    layer, (kind, k) = layer_of(adapters.model, settings), settings.form
    if settings.checks:
        check_rows(rows)
        # What another teacher says of a prompt cannot be foretold: then the frozen model has English alone.
        own = [r for r in rows if not r.bare and (r.language == SOURCE or not settings.scored_elsewhere)]
        if own:
            check_teacher(adapters, own, pad_id=pad_id, layer=layer, kind=kind, k=k)
    signals = read_signals(
        adapters.model, rows, settings, pad_id=pad_id, cost=cost, bar=bar, cache=cache, scored=scored
    )
    samples = samples_of(rows, signals)
    weights = weights_of(adapters.model, settings, replay=False)
    if settings.similarity_weight:
        weights = replace(weights, similarity_temperature=similarity_temperature(samples, settings))
    order = training_order(rows, settings, seed)
    steps = len(order) // settings.batch_size
    replay = bool(settings.replay_fraction) and any(row.language == SOURCE for row in rows)
    weights = replace(weights, replay=float(replay))
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
        also=(settings.teacher, settings.form),
    )
    if settings.checks:
        trainer.add_callback(PathsOnly(adapters, trainer.languages))
        with bar("Divergence before training") as progress:
            found = divergence_by_language(adapters, samples, weights, pad_id, progress)
        if found:
            # Of two readings that agree, rounding may leave less than 0.
            nats = ", ".join(f"{code} {max(value, 0.0):.3f}" for code, value in found.items())
            say(f"Divergence from the teacher before training, nats a token: {nats}")
    with bar("Distillation") as progress:
        train(trainer, Watch(curve, cost.stage, max(1, steps // 60), progress), work, say)
    adapters.off()
    tokens = int(trainer.counts["tokens"])
    cost.tokens_forwarded += tokens
    cost.tokens_backpropagated += tokens
    cost.flops += trainer.counts["flops"]
