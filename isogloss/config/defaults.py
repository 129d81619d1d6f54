"""Settings that follow the model: their defaults where the user leaves them out, and the reasons.

The defaults in `config` are for the embedded model, which is small and was made for the demo. Any other model
is pretrained and needs LoRA and lower learning rates. Depends on no settings class, and does not import torch
itself.

Flow: settings as written and facts about the model → `by_model` → settings with the gaps filled. Before
resolved settings are overridden, `unfilled` opens the gaps again.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from isogloss.bases import EMBEDDED

WITH_INPUTS = ("massive", "sib200", "xnli", "pawsx", "topic")
"""Data sources whose tasks have known templates, so that an instruction's inputs can be extracted."""
SMALL, MIDDLE = 500_000_000, 2_000_000_000
"""Parameter counts up to which a model gets the highest and the middle learning rates."""


@dataclass(frozen=True)
class Facts:
    """Facts about a model from its config.json alone."""

    parameters: int
    """Number of parameters; tied ones count once."""
    layers: int
    """Number of decoder layers."""
    hidden: int
    """Hidden size."""


def facts_of(model: Any) -> Facts:
    """Return the facts about a model, which may be on the meta device."""
    config = model.config.get_text_config()
    weights = sum(p.numel() for p in model.parameters())
    return Facts(weights, config.num_hidden_layers, config.hidden_size)


def look_up(name: str) -> Facts:
    """Return the facts about a model given by its folder or Hub name, without reading weights.

    Raises:
        ConfigError: There is no such model.
    """
    from isogloss.model.load import skeleton  # imports torch

    return facts_of(skeleton(name))


@dataclass(frozen=True)
class Default:
    """A default value and the reason for it, which is shown to the user."""

    value: Any
    why: str


def table(facts: Facts | None, get: Callable[[str, Any], Any]) -> dict[str, Default]:
    """Return the defaults for a pretrained model, by dotted name.

    Args:
        facts: None if the model has not been looked up; it is then treated as a large one.
        get: Returns a setting as it was written, or the given default.
    """
    method = get("tune.method", "lora")
    size = facts.parameters if facts else MIDDLE + 1
    few = size <= SMALL
    big = "a model of unknown size" if facts is None else f"{size / 1e6:,.0f} million weights"
    found = {
        # Full tuning makes the model forget languages that the English rows do not contain.
        "tune.method": Default("lora", "the model is pretrained"),
        "tune.epochs": Default(1.0, "the model is pretrained"),
    }
    if method == "lora":
        # 5e-4: a pilot of one epoch with rank 16 on Gemma 3 270M. 2e-4: QLoRA's value for 7B and 13B
        # (Dettmers et al. 2023, arXiv:2305.14314, table 9).
        found["tune.learning_rate"] = Default(5e-4 if few else 2e-4, f"LoRA on {big}")
        # On Gemma 3 270M, a quarter of the batch size over the same number of rows raised English intent
        # accuracy from 67 to 83 % (docs/log.md).
        found["tune.batch_size"] = Default(8, "more steps from the same rows")
        # Twice the pilot's rank: stage 1 learns several tasks at once.
        found["tune.lora_rank"] = Default(32, "the model is pretrained")
    else:
        # Tülu 2's value for 7B and 13B (Ivison et al. 2023, arXiv:2311.10702).
        found["tune.learning_rate"] = Default(2e-5, "all weights of a pretrained model")
    # 1e-3: the same pilot, two epochs with rank 16 on two thirds of the layers. Larger models get less, as in
    # stage 1.
    step = 1e-3 if few else 5e-4 if size <= MIDDLE else 2e-4
    found["distill.learning_rate"] = Default(step, f"adapters on {big}")
    # The pilot gained 3.7 points from it; the embedded model, too small to use a prompt, did not.
    found["distill.kl_weight"] = Default(1.0, "a pretrained model makes use of its prompt")
    teacher = get("distill.teacher.type", "self")
    elsewhere = teacher == "server" or (
        teacher == "model" and get("distill.teacher.level", "token") == "token"
    )
    if get("distill.kl_weight", 1.0) and (teacher == "self" or elsewhere):
        # On the same model, 81 to 95 % of answers follow the English twin in front of the instruction, and no
        # more with node texts before it. An answer in the prompt is copied rather than learned from.
        found["distill.teacher_view"] = Default("english", "the model is pretrained")
        if not get("distill.texts", None):
            found["distill.teacher_reads"] = Default(("twin",), "for answers in the words of the language")
    scores = get("distill.kl_weight", 1.0) or get("distill.replay_fraction", 0.1)
    if teacher == "self" and scores:
        # With a vocabulary of 262,144, the LM head takes half the time per step, and a cached token a tenth
        # of the space (docs/log.md).
        found["distill.signal"] = Default("top_k", "the vocabulary is large")
    few_tokens = elsewhere or (teacher == "self" and get("distill.signal", "top_k") == "top_k")
    if get("distill.kl_weight", 1.0) and few_tokens:
        # Two points of consistency in a pilot on Gemma 3 270M (docs/log.md).
        found["distill.temperature"] = Default(4.0, "a nearly certain teacher's other answers count too")
    found["distill.similarity_weight"] = Default(1.0, "the model is pretrained")
    if facts and get("distill.similarity_weight", 1.0):
        # Retrieval of translations by standardised states is best a third of the way up; higher layers turn
        # towards the answer.
        layer = max(1, round(0.4 * facts.layers))
        found["distill.similarity_layer"] = Default(
            layer, f"two fifths of {facts.layers}, where translations are most similar"
        )
    if get("distill.similarity_weight", 1.0) and _types(get("data", ())) & {*WITH_INPUTS}:
        # The measure of retrieval reads sentences without a task's wording, too (docs/log.md).
        found["distill.similarity_inputs"] = Default(True, "the data has inputs without a task's wording")
        if get("distill.similarity_inputs", True):
            # Such rows have no response. If they are read only before the term has decayed, those with
            # responses are read at the low learning rates of the end: 1.8 points on MASSIVE (docs/log.md).
            found["distill.similarity_decay"] = Default(0.0, "sentences are read until the end")
    found["distill.epochs"] = Default(2.0, "the model is pretrained")
    # With rank 8 in the root, fine-tuning one shared adapter of rank 16 did better (docs/log.md).
    for level, rank in (("root", 16), ("family", 4), ("language", 4)):
        found[f"distill.adapter.ranks.{level}"] = Default(rank, "rank 24 per path, most of it shared")
    return found


def _types(data: Any) -> set[str]:
    """Return the types of the data sources, given as written or as settings."""
    sources = data if isinstance(data, list | tuple) else [data]
    types = (one.get("type") if isinstance(one, Mapping) else getattr(one, "type", None) for one in sources)
    return {one for one in types if isinstance(one, str)}


NAMES = tuple(
    dict.fromkeys(
        name
        for method in ("lora", "full")
        for name in table(Facts(1, 1, 1), {"tune.method": method, "data": {"type": WITH_INPUTS[0]}}.get)
    )
)
"""Names of the settings that follow the model, in the order of `explain`."""


def by_model(entries: Mapping[str, Any], facts: Facts | None) -> tuple[dict[str, Any], list[str]]:
    """Fill in the settings that follow the model where they are missing or null.

    Entries of the wrong type are left for validation to reject.

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


def unfilled(entries: Mapping[str, Any], facts: Facts, fixed: Mapping[str, Any]) -> dict[str, Any]:
    """Return resolved settings without those that have the model's default, so that `by_model` fills them.

    Args:
        entries: Settings of a pretrained model.
        fixed: Defaults of settings for which the model has none.
    """
    left = copy.deepcopy(dict(entries))
    found = table(facts, lambda name, usual: _get(entries, name, usual))
    for name in NAMES:
        default = found[name].value if name in found else _get(fixed, name, None)
        default = list(default) if isinstance(default, tuple) else default
        if _get(left, name, ()) == default:
            _parent(left, name).pop(name.rpartition(".")[2])  # type: ignore[union-attr]
    return left


def explain(config: Any, facts: Facts) -> list[str]:
    """Return a line for each setting that follows the model: its value and why, or the default not used."""
    if config.model == EMBEDDED:
        return []
    head = (
        f"{config.model}: {facts.parameters:,} weights, {facts.layers} layers, hidden size {facts.hidden}; "
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
        asked = f"as set; the model's default is {_plain(default.value)}"
        lines.append(f"  {name} {_plain(value)}: {default.why if value == default.value else asked}")
    # The layers that distinguish languages (docs/log.md); the pilot also had adapters on 12 of 18 layers.
    layers, why = config.distill.adapter.layers, "as set"
    if layers is None:
        layers, why = max(1, 2 * facts.layers // 3), f"two thirds of {facts.layers}"
    lines.append(f"  distill.adapter.layers {layers}: {why}")
    return lines


def _plain(value: Any) -> str:
    """Format a value as in a settings file."""
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
    """Return the mapping that contains a setting; None if something else is in its place."""
    for part in name.split(".")[:-1]:
        below = entries.get(part)
        if below is None and make:
            below = entries[part] = {}
        if not isinstance(below, dict):
            return None
        entries = below
    return entries
