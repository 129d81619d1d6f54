"""Settings that follow the model: what they are where the user leaves them out, and why.

The defaults in `config` are the embedded model's, which is small and was made for the demo. Any other model
was trained before and wants a LoRA and smaller steps. Knows no settings class and imports no torch by itself.

Flow: settings as written, and facts about the model → `by_model` → settings as written with the gaps filled.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from isogloss.bases import EMBEDDED

SMALL, MIDDLE = 500_000_000, 2_000_000_000
"""Weights up to which a model takes the larger steps, and those in between."""


@dataclass(frozen=True)
class Facts:
    """What is known of a model from its config.json alone."""

    parameters: int
    """Weights, tied ones once."""
    layers: int
    """Decoder layers."""
    hidden: int
    """Numbers in a hidden state."""


def facts_of(model: Any) -> Facts:
    """Facts about a model, which may be without storage."""
    config = model.config.get_text_config()
    weights = sum(p.numel() for p in model.parameters())
    return Facts(weights, config.num_hidden_layers, config.hidden_size)


def look_up(name: str) -> Facts:
    """Facts about the model of a folder or hub name; no weights are read.

    Raises:
        ConfigError: There is no such model.
    """
    from isogloss.model.load import skeleton  # imports torch

    return facts_of(skeleton(name))


@dataclass(frozen=True)
class Default:
    """A value, and the reason for it in words."""

    value: Any
    why: str


def table(facts: Facts | None, get: Callable[[str, Any], Any]) -> dict[str, Default]:
    """By dotted name, the defaults for a model that was trained before.

    Args:
        facts: None where the model is not at hand: then it is taken for a large one.
        get: Gives a setting as it was written, or the given default.
    """
    method = get("tune.method", "lora")
    size = facts.parameters if facts else MIDDLE + 1
    few = size <= SMALL
    big = "the model's size is unknown" if facts is None else f"{size / 1e6:,.0f} million weights"
    found = {
        # Full tuning of every weight forgets languages that the English rows do not hold.
        "tune.method": Default("lora", "the model was trained before"),
        "tune.epochs": Default(1.0, "the model was trained before"),
    }
    if method == "lora":
        # 5e-4 for one pass: a pilot with rank 16 on Gemma 3 270M. 2e-4: what QLoRA takes for 7B and 13B
        # (Dettmers et al. 2023, arXiv:2305.14314, table 9).
        found["tune.learning_rate"] = Default(5e-4 if few else 2e-4, f"LoRA on {big}")
        # On Gemma 3 270M a quarter of the rows a step, with as many rows in all, has 83 % of English intents
        # right for 67 (docs/log.md).
        found["tune.batch_size"] = Default(8, "more steps from the same rows")
        # Twice the pilot's rank: stage 1 learns several tasks at a time.
        found["tune.lora_rank"] = Default(32, "the model was trained before")
    else:
        # What Tülu 2 takes for 7B and 13B (Ivison et al. 2023, arXiv:2311.10702).
        found["tune.learning_rate"] = Default(2e-5, "all weights of a model that was trained before")
    # 1e-3 for two passes: the same pilot, rank 16 on two thirds of the layers. Above it as in stage 1.
    step = 1e-3 if few else 5e-4 if size <= MIDDLE else 2e-4
    found["distill.learning_rate"] = Default(step, f"adapters on {big}")
    # The pilot gained 3.7 points by it, which the embedded model, too small to use a prompt, did not.
    found["distill.kl_weight"] = Default(1.0, "the model was trained before and uses what it reads")
    teacher = get("distill.teacher.type", "self")
    if get("distill.kl_weight", 1.0) and teacher == "self":
        # On the same model the English twin alone is followed in 92 to 98 % of answers, through node texts in
        # 58 to 78 %, and an answer that is read is copied rather than learned from.
        found["distill.teacher_view"] = Default("english", "the model was trained before")
        if not get("distill.texts", None):
            found["distill.teacher_reads"] = Default(("twin",), "where answers are a language's own words")
    found["tune.teacher_prompt_fraction"] = Default(
        0.0, "the model was trained before and uses what it reads"
    )
    scores = get("distill.kl_weight", 1.0) or get("distill.replay_fraction", 0.1)
    if teacher == "self" and scores and get("distill.temperature", 1.0) == 1:
        # Under a vocabulary of 262,144 a step's head takes half as long, a token a tenth of the space
        # (docs/log.md).
        found["distill.signal"] = Default("top_k", "the vocabulary is large")
    found["distill.similarity_weight"] = Default(1.0, "the model was trained before")
    if facts and get("distill.similarity_weight", 1.0):
        # Standardised states find translations best a third of the way up; above they turn to answers.
        layer = max(1, round(0.4 * facts.layers))
        found["distill.similarity_layer"] = Default(
            layer, f"two fifths of {facts.layers}, where translations are alike"
        )
    found["distill.epochs"] = Default(2.0, "the model was trained before")
    # With 8 in the root, fine-tuning of one shared adapter of rank 16 was ahead (docs/log.md).
    for level, rank in (("root", 16), ("family", 4), ("language", 4)):
        found[f"distill.adapter.ranks.{level}"] = Default(rank, "rank 24 a path, most of it shared")
    return found


NAMES = tuple(
    dict.fromkeys(
        name
        for method in ("lora", "full")
        for name in table(Facts(1, 1, 1), lambda name, default: method if name == "tune.method" else default)  # noqa: B023
    )
)
"""Settings that follow the model, in the order in which they are explained."""


def by_model(entries: Mapping[str, Any], facts: Facts | None) -> tuple[dict[str, Any], list[str]]:
    """Settings as they were written, with what the model decides in the gaps; null is a gap too.

    Entries of a wrong form are left for the validation to refuse.

    Returns:
        The settings, and the dotted names of those that were filled in; none for the embedded model.
    """
    filled = copy.deepcopy(dict(entries))
    for name in NAMES:
        if _get(filled, name, "") is None:
            _parent(filled, name).pop(name.rpartition(".")[2])  # type: ignore[union-attr]
    if filled.get("model", EMBEDDED) == EMBEDDED:
        return filled, []
    done = []
    for name, default in table(facts, lambda name, usual: _get(filled, name, usual)).items():
        parent, last = _parent(filled, name, make=True), name.rpartition(".")[2]
        if parent is not None and last not in parent:
            parent[last] = default.value
            done.append(name)
    return filled, done


def explain(config: Any, facts: Facts) -> list[str]:
    """A line for each setting that follows the model: its value, and why that or what it would have been."""
    if config.model == EMBEDDED:
        return []
    head = (
        f"{config.model}: {facts.parameters:,} weights in {facts.layers} layers of {facts.hidden}; "
        "settings that follow the model:"
    )
    lines = [head]

    def get(name: str, usual: Any = None) -> Any:
        value = config
        for part in name.split("."):
            value = getattr(value, part)
        return value

    for name, default in table(facts, get).items():
        value = get(name)
        asked = f"as set; by the model {_plain(default.value)}"
        lines.append(f"  {name} {_plain(value)}: {default.why if value == default.value else asked}")
    # Where languages are told apart (docs/log.md); the pilot too had adapters on 12 of 18 layers.
    layers, why = config.distill.adapter.layers, "as set"
    if layers is None:
        layers, why = max(1, 2 * facts.layers // 3), f"two thirds of {facts.layers}"
    lines.append(f"  distill.adapter.layers {layers}: {why}")
    return lines


def _plain(value: Any) -> str:
    """As it would be written in a file of settings."""
    if isinstance(value, tuple):
        return f"[{', '.join(map(_plain, value))}]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _get(entries: Mapping[str, Any], name: str, default: Any) -> Any:
    for part in name.split("."):
        if not isinstance(entries, Mapping) or part not in entries:
            return default
        entries = entries[part]
    return entries


def _parent(entries: dict[str, Any], name: str, *, make: bool = False) -> dict[str, Any] | None:
    """The settings that hold a setting; None where something else stands in their place."""
    for part in name.split(".")[:-1]:
        below = entries.get(part)
        if below is None and make:
            below = entries[part] = {}
        if not isinstance(below, dict):
            return None
        entries = below
    return entries
