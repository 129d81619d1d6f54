"""Preflight: what a run will cost, before anything runs and from shapes alone; needs no weights.

Flow: settings → the rows and batches that will be read → operations (by `cost.Meter`'s formulae) and, from
one step on tensors without storage, the bytes that are alive at once → time and fit on a machine → advice.

What is assumed, and where it is off:
    tokens      Exact where the model's tokenizer is at hand; else counted by the embedded one, and said so.
                Of more than `SAMPLE` English examples in stage 1 so many are, spread over all lengths.
    selection   `tune.selection.keep` drops the last items here, not the hardest.
    answers     Evaluation writes `evaluate.max_new_tokens` each time: a bound, as answers end before.
    attention   A GPU's fused attention is counted as plain products: a bound, near it at instruction lengths.
    seconds     Operations over the machine's rate of large products, times `EFFICIENCY`.
    devices     A step's rows are split over them; weights, adapters and signals lie on each. With `shard` the
                layers' weights lie in parts but for two layers, the one that is read and the next.
"""

from dataclasses import dataclass, field
from typing import Any

from isogloss.adapters.fit import refuse_misfit
from isogloss.config import Config
from isogloss.config.defaults import explain, facts_of
from isogloss.plan.advice import advise
from isogloss.plan.machine import Machine
from isogloss.plan.stages import distill_plan, evaluate_plan, tune_plan
from isogloss.plan.work import StagePlan, Work


@dataclass
class Plan:
    """All stages of a run on a machine."""

    machine: Machine
    stages: list[StagePlan]
    notes: list[str]
    advice: list[str] = field(default_factory=list)
    """One line for each stage that does not fit: what to change."""
    settings: list[str] = field(default_factory=list)
    """What the settings that follow the model are, and why."""

    def seconds(self, stage: StagePlan) -> float:
        """How long a stage takes; one process evaluates, on one device."""
        machine = self.machine
        devices = 1 if stage.stage == "evaluate" else machine.devices
        return stage.flops / (machine.rate * machine.efficiency * devices)

    @property
    def fits(self) -> bool:
        return not self.advice

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        stages = [
            {**vars(stage), "memory_bytes": stage.memory_bytes, "seconds": round(self.seconds(stage), 1)}
            for stage in self.stages
        ]
        return {
            "machine": vars(self.machine),
            "stages": stages,
            "fits": self.fits,
            "advice": self.advice,
            "notes": self.notes,
            "settings": self.settings,
        }


def plan(config: Config, machine: Machine) -> Plan:
    """What each stage of a run costs on a machine, and what to change where one does not fit.

    Raises:
        DataError: Data, a language or a suite is missing.
        ConfigError: The model's shapes are not to be had, or the settings do not fit them.
    """
    refuse_misfit(config)
    work = Work(config, machine)
    stages = [tune_plan(work), distill_plan(work), evaluate_plan(work)]
    found = Plan(machine, stages, work.notes)
    for name, one in (("tune", config.tune), ("distill", config.distill)):
        if one.batch_size % (parts := machine.devices * one.gradient_accumulation_steps):
            found.notes.append(
                f"{name}.batch_size: {one.batch_size} rows cannot be shared out over {machine.devices} "
                f"devices and {one.gradient_accumulation_steps} micro-batches; take a multiple of {parts}"
            )
    if config.distill.teacher.type != "self":
        found.notes.append("distill.teacher: what another teacher's own reading costs is not counted")
    if config.distill.gradient_checkpointing:
        found.notes.append("distill.gradient_checkpointing: the second forward's arithmetic is not counted")
    if config.compile:
        found.notes.append(
            "compile: less memory is held than is planned; the time of compiling is not counted"
        )
    if config.distill.responses == "teacher":
        found.notes.append("distill.responses: what the model's English answers cost is not counted")
    found.settings = explain(config, facts_of(work.model(work.dtype)))
    found.advice = [advise(work, stage) for stage in found.stages if stage.memory_bytes > machine.memory]
    return found
