"""Settings of stage 1."""

from typing import Literal

from pydantic import model_validator

from isogloss.config.base import (
    Count,
    Optimisation,
    Positive,
    Settings,
    Share,
    Weight,
    without_effect,
)


class Selection(Settings):
    """Filter of the English items."""

    enabled: bool = True
    """Drop empty, degenerate, truncated, wrong-language and duplicate items."""
    keep: Share = 1.0
    """Share of items to keep, those with the highest instruction-following difficulty (IFD) under the base
    model; 1 keeps all and skips scoring."""
    max_chars: Count = 4_000
    """Maximum response length in characters; longer ones are dropped."""

    @model_validator(mode="after")
    def _heeded(self) -> "Selection":
        return without_effect(self, (not self.enabled, ["max_chars"], "if enabled is false"))


class Tune(Optimisation):
    """Stage 1: tune the base model on English instructions."""

    method: Literal["full", "lora"] = "full"
    """What is trained. `full`: all weights. `lora`: a LoRA, merged at the end. If not given, full for the
    embedded model and lora for every other."""
    lora_rank: Count = 16
    """LoRA rank, with method lora. Follows the model if not given."""
    selection: Selection = Selection()
    """Filter of the English items."""
    epochs: Positive = 1.5
    """Epochs over the selected items. Follows the model if not given."""
    learning_rate: Positive = 1e-3
    """Peak learning rate. Follows the model if not given."""
    weight_decay: Weight = 0.01
    """Decoupled weight decay of AdamW."""
    max_tokens: Count | None = None
    """Maximum row length in tokens, prompt and response together; longer rows are dropped. If not given, the
    model's number of positions, at most 2048."""
    vary_wording: bool = False
    """Ask each English item in one of several wordings, where the task has them (intents, scenarios, topics,
    inference and paraphrases). A model tuned on one wording answers hardly any other."""

    @model_validator(mode="after")
    def _heeded(self) -> "Tune":
        return without_effect(self, (self.method == "full", ["lora_rank"], "with method full; use lora"))
