"""Settings of the commands that choose variants or methods."""

from pathlib import Path

from isogloss.cli.runs import settings_of
from isogloss.cli.screen import print_line
from isogloss.config import Config


def settings_for_choosing(config: Path | None, overrides: list[str] | None, data_root: Path | None) -> Config:
    """Load settings with evaluation on dev unless a split is set, as nothing should be chosen on test."""
    settings = settings_of(config, overrides, data_root)
    if "split" not in settings.evaluate.model_fields_set:
        evaluate = settings.evaluate.model_copy(update={"split": "dev"})
        return settings.model_copy(update={"evaluate": evaluate})
    if settings.evaluate.split == "test":
        print_line("Warning: evaluate.split is test, not meant for choosing settings; leave it out for dev")
    return settings
