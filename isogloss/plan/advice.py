"""Advice on settings that make a stage fit into memory."""

import math
from collections.abc import Callable

import torch

from isogloss.plan.evaluation import evaluate_plan
from isogloss.plan.machine import GIB
from isogloss.plan.stages import distill_plan, tune_plan
from isogloss.plan.work import StagePlan, Work

STAGES: dict[str, Callable[[Work], StagePlan]] = {
    "tune": tune_plan,
    "distill": distill_plan,
    "evaluate": evaluate_plan,
}


def advise(work: Work, stage: StagePlan) -> str:
    """Return the mildest change of settings with which a stage fits into memory, as a message."""
    needs, has = stage.memory_bytes / GIB, work.machine.memory / GIB
    least, best = needs, ()
    for changes in _changes(work, stage.stage):
        found = STAGES[stage.stage](work.changed(changes)).memory_bytes
        if found <= work.machine.memory:
            return (
                f"{stage.stage} needs {needs:.1f} GiB and a device has {has:.1f}: set {' '.join(changes)} "
                f"({found / GIB:.1f} GiB)"
            )
        if found / GIB < least:
            least, best = found / GIB, changes
    with_best = f"; with {' '.join(best)} a device of {math.ceil(least)} GiB would be enough" if best else ""
    return (
        f"{stage.stage} needs {needs:.1f} GiB and a device has {has:.1f}: no setting makes it fit; use "
        f"larger devices or a smaller model{with_best}"
    )


def _changes(work: Work, stage: str) -> list[tuple[str, ...]]:
    """Return the changes of settings to try, mildest first."""
    config, more = work.config, list[tuple[str, ...]]()
    several = work.machine.devices > 1 and not (config.shard or config.four_bit or config.compile)
    if stage == "evaluate":
        size = config.evaluate.batch_size
        smaller = [(f"evaluate.batch_size={size // n}",) for n in (2, 4, 8, 16, 32, 64) if size // n]
    else:
        batch, now = getattr(config, stage).batch_size, getattr(config, stage).gradient_accumulation_steps
        smaller = [
            (f"{stage}.gradient_accumulation_steps={n}",)
            for n in range(now + 1, batch + 1)
            if batch % (n * work.machine.devices) == 0
        ]
        smaller = smaller[:: max(1, len(smaller) // 3)] + smaller[-1:] if len(smaller) > 4 else smaller
    if stage == "tune" and config.tune.method == "full":
        more.append(("tune.method=lora", f"tune.batch_size={batch}"))
    if stage == "tune" and several:
        more.append(("tune.method=lora", f"tune.batch_size={batch}", "shard=true"))
    trains_all = stage == "tune" and config.tune.method == "full"  # in float32, whatever `dtype` is
    helps = {
        "distill.gradient_checkpointing=true": stage == "distill"
        and not config.distill.gradient_checkpointing,
        "dtype=bfloat16": work.dtype == torch.float32 and not trains_all,
        "four_bit=true": stage != "tune" and not (config.four_bit or config.shard) and work.machine.gpu,
        "shard=true": stage == "distill" and several and config.tune.method == "lora",
    }
    more += [(change,) for change, can in helps.items() if can]
    last = smaller[-1:] or [()]
    return [*smaller, *more, *((*some, *last[0]) for some in more)]
