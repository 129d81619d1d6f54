"""Settings of earlier releases: their new names, or what to do instead."""

from collections.abc import Mapping
from typing import Any

RENAMED: Mapping[str, str] = {
    "tune.batch": "tune.batch_size",
    "tune.accumulate": "tune.gradient_accumulation_steps",
    "tune.lr": "tune.learning_rate",
    "distill.carrier": "distill.adapter",
    "distill.adapter.targets": "distill.adapter.target_modules",
    "distill.batch": "distill.batch_size",
    "distill.accumulate": "distill.gradient_accumulation_steps",
    "distill.lr": "distill.learning_rate",
    "distill.kl": "distill.kl_weight",
    "distill.ce": "distill.ce_weight",
    "distill.hidden": "distill.similarity_weight",
    "distill.contrast": "distill.similarity_temperature",
    "distill.fade": "distill.similarity_decay",
    "distill.layer": "distill.similarity_layer",
    "distill.retain": "distill.replay_fraction",
    "distill.balance": "distill.sampling_temperature",
    "distill.sample_tokens": "distill.max_new_tokens",
    "distill.max_prompt": "distill.max_prompt_length",
    "evaluate.batch": "evaluate.batch_size",
}
"""From the old name to the new one."""
GONE: dict[str, str] = {
    f"languages.{name}": "was removed: resource classes now come from the registry (`isogloss languages`); "
    "use languages.amounts to set the amount of single languages"
    for name in ("high", "middle")
}
GONE |= {"distill.weight_decay": "is not a setting: it would also change the nodes that a step does not use"}
GONE |= {
    name: f"was removed: {why} (docs/log.md)"
    for why, names in {
        "every adapter is a LoRA; prefix and embedding did worse": (
            "distill.adapter.type",
            "distill.adapter.num_virtual_tokens",
            "distill.adapter.lengths",
            "distill.adapter.init",
        ),
        "its steps took longer and scores were lower": ("distill.on_policy",),
        "it did not improve scores": (
            "distill.level_dropout",
            "distill.shrinkage",
            "distill.loraplus_lr_ratio",
            "distill.lr_b_ratio",
            "tune.teacher_prompt_fraction",
            "tune.privileged",
        ),
        "it lowered scores": ("distill.kl_mask", "distill.hear"),
    }.items()
    for name in names
}
"""From a setting that does not exist to the reason, or to what to do instead."""


DID_NOTHING: Mapping[str, object] = {
    "tune.teacher_prompt_fraction": 0,
    "distill.adapter.type": "lora",
    "distill.on_policy": 0,
    "distill.level_dropout": 0,
    "distill.shrinkage": 0,
    "distill.loraplus_lr_ratio": 1,
    "distill.kl_mask": "all",
}
"""Removed settings with the value that had no effect: an earlier run with this value still opens."""


def drop_idle(entries: dict[str, Any]) -> None:
    """Delete removed settings that had no effect from an earlier run's settings."""
    for name, idle in DID_NOTHING.items():
        *above, last = name.split(".")
        group: Any = entries
        for part in above:
            group = group.get(part) if isinstance(group, dict) else None
        if isinstance(group, dict) and last in group and group[last] == idle:
            del group[last]


def advice(name: str) -> str | None:
    """Return the message for a renamed or missing setting; None for a name that never existed."""
    if name in RENAMED:
        return f"was renamed; write {RENAMED[name]}"
    return GONE.get(name)
