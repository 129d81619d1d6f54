"""Settings of earlier releases: what each is called today, or what to do instead."""

from collections.abc import Mapping

RENAMED: Mapping[str, str] = {
    "tune.batch": "tune.batch_size",
    "tune.accumulate": "tune.gradient_accumulation_steps",
    "tune.lr": "tune.learning_rate",
    "tune.privileged": "tune.teacher_prompt_fraction",
    "distill.carrier": "distill.adapter",
    "distill.adapter.targets": "distill.adapter.target_modules",
    "distill.adapter.lengths": "distill.adapter.num_virtual_tokens",
    "distill.batch": "distill.batch_size",
    "distill.accumulate": "distill.gradient_accumulation_steps",
    "distill.lr": "distill.learning_rate",
    "distill.lr_b_ratio": "distill.loraplus_lr_ratio",
    "distill.kl": "distill.kl_weight",
    "distill.ce": "distill.ce_weight",
    "distill.hidden": "distill.similarity_weight",
    "distill.contrast": "distill.similarity_temperature",
    "distill.fade": "distill.similarity_decay",
    "distill.layer": "distill.similarity_layer",
    "distill.hear": "distill.kl_mask",
    "distill.retain": "distill.replay_fraction",
    "distill.balance": "distill.sampling_temperature",
    "distill.sample_tokens": "distill.max_new_tokens",
    "distill.max_prompt": "distill.max_prompt_length",
    "evaluate.batch": "evaluate.batch_size",
}
"""By the old name, the new one."""
GONE: Mapping[str, str] = {
    f"languages.{name}": "was removed: resource classes now come from the registry (`isogloss languages`); "
    "languages.amounts gives single languages another amount"
    for name in ("high", "middle")
} | {
    "distill.weight_decay": "is not a setting: it would move the nodes that a step does not read too; "
    "distill.shrinkage pulls nodes toward their parents"
}
"""What to do instead of a setting that there is not."""


def advice(name: str) -> str | None:
    """What to tell whoever sets something by this name; None of a name that never was."""
    if name in RENAMED:
        return f"was renamed; write {RENAMED[name]}"
    return GONE.get(name)
