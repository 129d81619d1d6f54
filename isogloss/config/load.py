"""From a YAML file and --set to settings. Imports no torch.

Flow: YAML file, then --set → entries, each with the place it was written → validation → `Config`.
Everything that is wrong is said at once, one line each: where, what, what would be right.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import (
    ValidationError,
)

from isogloss.config.defaults import Facts, by_model, look_up
from isogloss.config.errors import explained
from isogloss.config.paths import is_model_folder, misplaced
from isogloss.config.renamed import advice, drop_idle
from isogloss.config.schema import Config
from isogloss.config.yaml_io import Written, read_entries
from isogloss.errors import ConfigError


def load_config(
    path: Path | None = None,
    overrides: Iterable[str] = (),
    *,
    data_root: Path | None = None,
    places: bool = False,
) -> Config:
    """Settings of a YAML file with `a.b=c` overrides; without a file, the embedded default.

    Args:
        path: The file.
        overrides: What --set takes: a dotted name, an equals sign, a YAML value.
        data_root: What --data-root takes; beats the setting of that name.
        places: Also refuse files and folders that are named but not there, and ask the hub about a model
            that is no folder. Without it such a model is taken for a large one where settings follow it.

    Raises:
        ConfigError: All that is wrong, one line each, with file, line and the nearest valid name.
    """
    folder = None if path is None else run_folder_of(path)
    if folder is not None:
        written = read_entries(folder / "config.yaml")
        if not written.entries:
            raise ConfigError(
                f"{folder / 'config.yaml'} is empty; restore it, or begin in another run folder"
            )
        written.entries["run"] = str(folder)  # whatever it was called when it was made
        drop_idle(written.entries)
    else:
        written = Written("settings") if path is None else read_entries(path)
    for override in overrides:
        written.override(override)
    if data_root is not None:
        written.entries["data_root"] = str(data_root)
        written.place(("data_root",), f"--data-root {data_root}")
    config = _validate(written)
    if places and (faults := list(misplaced(config, written))):
        raise ConfigError("\n".join(faults))
    if by_model(written.entries, None)[1] and (places or is_model_folder(config.model)):
        config = _validate(written, look_up(config.model))
    return config


def run_folder_of(path: Path) -> Path | None:
    """The run whose settings a path names: its folder, or the `config.yaml` of a run that has begun.

    A run is what lies in its folder, copied or renamed; None for any other file.
    """
    if path.is_dir():
        return path if (path / "config.yaml").is_file() else None
    return path.parent if path.name == "config.yaml" and (path.parent / "ledger.json").is_file() else None


def with_overrides(config: Config, overrides: Iterable[str]) -> Config:
    """The settings with `a.b=c` overrides.

    Raises:
        ConfigError: As `load_config`.
    """
    written = Written("settings")
    written.entries = config.model_dump(mode="json")
    for override in overrides:
        written.override(override)
    return _validate(written)


def for_choosing(config: Config) -> Config:
    """The settings measured on dev, unless a split was asked for by name: test is not for choosing."""
    if "split" in config.evaluate.model_fields_set:
        return config
    return config.model_copy(update={"evaluate": config.evaluate.model_copy(update={"split": "dev"})})


OWN = (
    "data",
    "data_root",
    "parallel_text",
    "languages.items",
    "distill.responses",
    "distill.teacher",
    "distill.teacher_view",
    "distill.teacher_reads",
    "distill.max_new_tokens",
    "distill.gradient_checkpointing",
    "distill.divergence",
    "distill.temperature",
    "distill.signal",
    "distill.top_k",
    "distill.cache",
    "distill.checks",
    "distill.kl_weight",
    "distill.ce_weight",
    "distill.similarity_weight",
    "distill.similarity_temperature",
    "distill.similarity_decay",
    "distill.similarity_layer",
    "distill.max_prompt_length",
    "distill.sampling_temperature",
    "distill.warmup_ratio",
    "distill.adam_beta1",
    "distill.adam_beta2",
    "distill.max_grad_norm",
    "distill.epochs",
    "distill.batch_size",
    "distill.gradient_accumulation_steps",
    "distill.learning_rate",
)
"""Settings that a language which joins a finished run may have of its own."""


def refuse_shared(overrides: Iterable[str]) -> None:
    """Refuse to change, for a language that joins, what the run's other languages were trained with.

    Raises:
        ConfigError: A setting is not among `OWN`.
    """
    for override in overrides:
        name = override.partition("=")[0].strip()
        if why := advice(name):
            raise ConfigError(f"--set {override}: {name} {why}")
        if not any(name == one or name.startswith(f"{one}.") for one in OWN):
            raise ConfigError(
                f"--set {override}: {name} is the whole run's; a language that joins may have its own "
                f"{', '.join(OWN)}"
            )


def _validate(written: Written, facts: Facts | None = None) -> Config:
    """The settings, those that follow the model filled in; without facts, as for a large one."""
    entries, _ = by_model(written.entries, facts)
    if isinstance(entries.get("data"), dict):
        entries["data"].setdefault("type", "demo")
    faults, config = written.faults, None
    try:
        # In JSON mode strict takes a text for a path and a list for a tuple, and nothing else for another.
        config = Config.model_validate_json(json.dumps(entries, default=str))
    except ValidationError as error:
        faults = faults + [explained(fault, written) for fault in error.errors() if not _follows(fault)]
    if config is None or faults:
        ordered = sorted(faults, key=lambda fault: written.order(fault[0]))
        raise ConfigError("\n".join(dict.fromkeys(text for _, text in ordered)))
    return config


def _follows(fault: Any) -> bool:
    """A list of which no entry is right also counts as too short: that is not told."""
    return fault["type"] == "too_short" and len(fault["input"]) > 0
