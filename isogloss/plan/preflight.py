"""Preflight: estimate the cost of a run before it starts, from shapes alone and without weights.

Flow: settings → rows and batches → FLOPs (by the formulae of `cost.Meter`) and peak memory (from one step on
meta tensors) → time and memory on a machine → advice.

Assumptions and their errors:
    tokens      Exact if the model's tokenizer is available; otherwise counted with the embedded one, with a
                note. In stage 1, at most `SAMPLE` English examples are encoded, spread over all lengths.
    selection   `tune.selection.keep` drops the last examples here instead of those that rank lowest.
    answers     In evaluation, an answer to a closed task has as many tokens as the right option; any other
                reaches its limit: an upper bound.
    attention   A GPU's fused attention is counted as plain matmuls: an upper bound, close at instruction
                lengths.
    seconds     FLOPs divided by the machine's rate of large matmuls times `EFFICIENCY`.
    devices     The rows of a step are split over the devices; each has all weights, adapters and signals.
                With `shard`, the layers' weights are sharded except for two layers, the current and the next.
"""

from dataclasses import dataclass, field
from typing import Any

from isogloss.adapters.fit import refuse_misfit
from isogloss.config import Config
from isogloss.config.defaults import explain, facts_of
from isogloss.pipeline.english import asks
from isogloss.plan.advice import STAGES, advise
from isogloss.plan.machine import Machine
from isogloss.plan.work import StagePlan, Work


@dataclass
class Plan:
    """The planned cost of all stages on a machine."""

    machine: Machine
    stages: list[StagePlan]
    notes: list[str]
    advice: list[str] = field(default_factory=list)
    """One line for each stage that does not fit into memory: what to change."""
    settings: list[str] = field(default_factory=list)
    """Settings with model-dependent defaults: their values, and why."""

    def seconds(self, stage: StagePlan) -> float:
        """Return the duration of a stage; evaluation runs on one device."""
        machine = self.machine
        devices = 1 if stage.stage == "evaluate" else machine.devices
        return stage.flops / (machine.rate * machine.efficiency * devices)

    @property
    def fits(self) -> bool:
        return not self.advice

    def plain(self) -> dict[str, Any]:
        """Return the plan as JSON-serialisable values."""
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
    """Estimate what each stage of a run costs on a machine, with advice for stages that do not fit.

    Raises:
        DataError: Data, a language or a suite is missing.
        ConfigError: The model's config cannot be loaded, or the settings do not fit the model.
    """
    refuse_misfit(config)
    work = Work(config, machine)
    stages = [stage(work) for stage in STAGES.values()]
    found = Plan(machine, stages, work.notes)
    for name, one in (("tune", config.tune), ("distill", config.distill)):
        if one.batch_size % (parts := machine.devices * one.gradient_accumulation_steps):
            found.notes.append(
                f"{name}.batch_size: {one.batch_size} rows cannot be divided over {machine.devices} "
                f"devices and {one.gradient_accumulation_steps} micro-batches; use a multiple of {parts}"
            )
    if config.four_bit and not machine.gpu:
        found.notes.append(f"four_bit: needs a GPU, and {machine.name} has none; leave it out there")
    if config.shard and machine.devices == 1:
        found.notes.append(f"shard: needs several devices, and {machine.name} has one; leave it out there")
    if config.distill.teacher.type != "self":
        found.notes.append("distill.teacher: the external teacher's own cost is not counted")
    if config.distill.gradient_checkpointing:
        found.notes.append("distill.gradient_checkpointing: the second forward pass is not counted")
    if config.compile:
        found.notes.append("compile: uses less memory than planned; compilation time is not counted")
    if generated := sum(asks(work.run, example) for example in work.run.examples):
        found.notes.append(
            f"English answers: the model generates up to {generated:,} of them, which are not counted"
        )
    found.settings = explain(config, facts_of(work.model(work.dtype)))
    found.advice = [advise(work, stage) for stage in found.stages if stage.memory_bytes > machine.memory]
    return found
