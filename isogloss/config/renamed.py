"""Settings of earlier releases: what each is called today, or what to do instead."""

from collections.abc import Mapping
from typing import Any

RENAMED: Mapping[str, str] = {
    "tune.batch": "tune.batch_size",
    "tune.accumulate": "tune.gradient_accumulation_steps",
    "tune.lr": "tune.learning_rate",
    "tune.privileged": "tune.teacher_prompt_fraction",
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
"""By the old name, the new one."""
GONE: dict[str, str] = {
    f"languages.{name}": "was removed: resource classes now come from the registry (`isogloss languages`); "
    "languages.amounts gives single languages another amount"
    for name in ("high", "middle")
}
GONE |= {"distill.weight_decay": "is not a setting: it would move the nodes that a step does not read too"}
GONE |= {
    f"distill.{name}": f"was removed: {why} (docs/log.md)"
    for why, names in {
        "every adapter is a LoRA; prefix and embedding lost to it": (
            "adapter.type",
            "adapter.num_virtual_tokens",
            "adapter.lengths",
            "adapter.init",
        ),
        "its steps took longer and lost points": ("on_policy",),
        "it was no better than without it": (
            "level_dropout",
            "shrinkage",
            "loraplus_lr_ratio",
            "lr_b_ratio",
        ),
        "it lost points": ("kl_mask", "hear"),
    }.items()
    for name in names
}
"""What to do instead of a setting that there is not."""


DID_NOTHING: Mapping[str, object] = {
    "distill.adapter.type": "lora",
    "distill.on_policy": 0,
    "distill.level_dropout": 0,
    "distill.shrinkage": 0,
    "distill.loraplus_lr_ratio": 1,
    "distill.kl_mask": "all",
}
"""Removed settings by the value at which they changed nothing: an earlier run that has it still opens."""


def drop_idle(entries: dict[str, Any]) -> None:
    """Take removed settings that changed nothing out of an earlier run's settings."""
    for name, idle in DID_NOTHING.items():
        *above, last = name.split(".")
        group: Any = entries
        for part in above:
            group = group.get(part) if isinstance(group, dict) else None
        if isinstance(group, dict) and last in group and group[last] == idle:
            del group[last]


def advice(name: str) -> str | None:
    """What to tell whoever sets something by this name; None of a name that never was."""
    if name in RENAMED:
        return f"was renamed; write {RENAMED[name]}"
    return GONE.get(name)
