"""Settings of stage 1."""

from typing import Literal

from pydantic import (
    model_validator,
)

from isogloss.config.base import (
    Count,
    Fraction,
    Optimisation,
    Positive,
    Settings,
    Share,
    Weight,
    without_effect,
)


class Selection(Settings):
    """Which English items are good enough to learn from."""

    enabled: bool = True
    """Drop empty, degenerate, truncated, wrong-language and duplicate items."""
    keep: Share = 1.0
    """Share kept by instruction-following difficulty under the base model; 1 keeps all and skips scoring."""
    max_chars: Count = 4_000
    """Longest response."""

    @model_validator(mode="after")
    def _heeded(self) -> "Selection":
        return without_effect(self, (not self.enabled, ["max_chars"], "where enabled is false"))


class Tune(Optimisation):
    """Stage 1: English instructions tune the base."""

    method: Literal["full", "lora"] = "full"
    """All weights, or a LoRA that is merged at the end; if not given, full for the embedded model and lora
    for every other."""
    lora_rank: Count = 16
    """Rank, where the method is lora; by the model if not given."""
    selection: Selection = Selection()
    """Which English items are good enough to learn from."""
    epochs: Positive = 1.5
    """Passes over the selected items; by the model if not given."""
    learning_rate: Positive = 1e-3
    """Peak learning rate; by the model if not given."""
    weight_decay: Weight = 0.01
    """AdamW's decoupled weight decay."""
    max_tokens: Count | None = None
    """Longest row, prompt and response together; the model's positions, at most 2048, if not given. Longer
    rows are left out."""
    teacher_prompt_fraction: Fraction = 0.1
    """Share of items that are read once more behind the teacher's texts and their own answer."""

    @model_validator(mode="after")
    def _heeded(self) -> "Tune":
        return without_effect(self, (self.method == "full", ["lora_rank"], "with method full; take lora"))
