"""Load settings from a YAML file and --set. Does not import torch.

Flow: YAML file, then --set → entries, each with the place where it was written → validation → `Config`.
All errors are reported at once, one line each: where, what is wrong, what would be right.
"""

import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from isogloss.bases import EMBEDDED
from isogloss.config.base import Settings
from isogloss.config.defaults import Facts, by_model, look_up, unfilled
from isogloss.config.distill import Distill
from isogloss.config.errors import explained
from isogloss.config.paths import idle, is_model_folder, misplaced
from isogloss.config.renamed import advice, drop_idle
from isogloss.config.schema import Config
from isogloss.config.yaml_io import Written, label_of, read_entries
from isogloss.errors import ConfigError

S = TypeVar("S", bound=Settings)


def load_config(
    path: Path | None = None,
    overrides: Iterable[str] = (),
    *,
    data_root: Path | None = None,
    places: bool = False,
) -> Config:
    """Load settings from a YAML file with `a.b=c` overrides; without a file, the embedded default.

    Args:
        path: The YAML file, or a run folder.
        overrides: Values of --set: a dotted name, an equals sign, a YAML value.
        data_root: Value of --data-root; overrides the setting of that name.
        places: Also raise errors for files and folders that do not exist, and look up a model on the Hub that
            is not a local folder. Without it, settings that follow such a model are those of a large one.

    Raises:
        ConfigError: All errors, one line each, with file, line and the closest valid name.
    """
    overrides = list(overrides)
    folder = None if path is None else run_folder_of(path)
    if folder is not None:
        written = read_entries(folder / "config.yaml")
        if not written.entries:
            raise ConfigError(
                f"{folder / 'config.yaml'} is empty; restore it, or start in another run folder"
            )
        written.entries["run"] = str(folder)  # the folder may have been renamed
        drop_idle(written.entries)
        if overrides:
            _open_gaps(written, places=places)
    else:
        written = Written("settings") if path is None else read_entries(path)
    for override in overrides:
        written.override(override)
    if data_root is not None:
        written.entries["data_root"] = str(data_root)
        written.place(("data_root",), f"--data-root {data_root}")
    config = _validate(written)
    # In a run, suites may have been measured that its settings do not name: only what is new is checked.
    new = None if folder is None else [name.partition("=")[0].strip() for name in overrides]
    faults = [
        *(misplaced(config, written) if places else ()),
        *(idle(config, written, new) if places or folder is not None else ()),
    ]
    if faults:
        raise ConfigError("\n".join(faults))
    if by_model(written.entries, None)[1] and (places or is_model_folder(config.model)):
        config = _validate(written, look_up(config.model))
    return config


def run_folder_of(path: Path) -> Path | None:
    """Return the run folder that a path names: the folder itself, or that of a started run's `config.yaml`.

    A run is its folder, even if copied or renamed. Return None for any other file.
    """
    if path.is_dir():
        return path if (path / "config.yaml").is_file() else None
    return path.parent if path.name == "config.yaml" and (path.parent / "ledger.json").is_file() else None


def with_overrides(config: Config, overrides: Iterable[str]) -> Config:
    """Return the settings with `a.b=c` overrides; settings that follow the model follow it again.

    Raises:
        ConfigError: As `load_config`.
    """
    written = Written("settings")
    written.entries = config.model_dump(mode="json")
    facts = _open_gaps(written, places=True)
    for override in overrides:
        written.override(override)
    if (model := str(written.entries.get("model", EMBEDDED))) != config.model:
        facts = None if model == EMBEDDED else look_up(model)
    return _validate(written, facts)


def _open_gaps(written: Written, *, places: bool) -> Facts | None:
    """Remove the settings that have the model's default, and return the facts about the model.

    An override of one of them may change the others' defaults. Without facts nothing is removed.
    """
    model = written.entries.get("model", EMBEDDED)
    if model == EMBEDDED or not (places or is_model_folder(str(model))):
        return None
    with suppress(ConfigError):  # the model is gone, and perhaps overridden
        facts = look_up(str(model))
        written.entries = unfilled(written.entries, facts, Config().model_dump(mode="json"))
        return facts
    return None


_SHARED = {"adapter", "texts", "require_texts", "replay_fraction"}
OWN = (
    *("data", "data_root", "parallel_text", "languages.items"),
    *(f"distill.{name}" for name in Distill.model_fields if name not in _SHARED),
)
"""Settings that may differ for a language that is added to a finished run."""


def refuse_shared(overrides: Iterable[str]) -> None:
    """Reject overrides, for a language that is added, of settings that all languages of a run share.

    Raises:
        ConfigError: A setting is not among `OWN`.
    """
    for override in overrides:
        name = override.partition("=")[0].strip()
        if why := advice(name):
            raise ConfigError(f"{label_of(override)}: {name} {why}")
        if not any(name == one or name.startswith(f"{one}.") for one in OWN):
            raise ConfigError(
                f"{label_of(override)}: {name} is fixed for the whole run; an added language may only change "
                f"{', '.join(OWN)}"
            )


def _validate(written: Written, facts: Facts | None = None) -> Config:
    """Validate the settings after filling in those that follow the model (a large one without facts)."""
    entries, _ = by_model(written.entries, facts)
    if isinstance(entries.get("data"), dict):
        entries["data"].setdefault("type", "demo")
    return validated(Config, entries, written)


def validated(kind: type[S], entries: Mapping[str, Any], written: Written) -> S:
    """Return entries as settings of a kind.

    Raises:
        ConfigError: All errors, one line each.
    """
    faults, made = written.faults, None
    try:
        # In JSON mode, strict validation accepts a string for a path and a list for a tuple, nothing else.
        made = kind.model_validate_json(json.dumps(entries, default=str))
    except ValidationError as error:
        faults = faults + [explained(fault, written, kind) for fault in error.errors() if not _follows(fault)]
    if made is None or faults:
        ordered = sorted(faults, key=lambda fault: written.order(fault[0]))
        raise ConfigError("\n".join(dict.fromkeys(text for _, text in ordered)))
    return made


def _follows(fault: Any) -> bool:
    """Whether an error only follows from others: a list with no valid entry is also reported as too short."""
    return fault["type"] == "too_short" and len(fault["input"]) > 0
