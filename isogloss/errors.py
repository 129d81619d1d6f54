"""The errors a user can mend: one line that says what is wrong, where, and what would be right.

    IsoglossError(ValueError)
    ├── ConfigError    a setting, or two that cannot stand together
    ├── DataError      a file or row of the user's
    └── RunError       a run folder that is not what it should be

The command line prints them and exits with 2; nothing else is caught.
"""

from pathlib import Path


class IsoglossError(ValueError):
    """Something the user can mend."""


class ConfigError(IsoglossError):
    """A setting is unknown, missing or impossible."""


class DataError(IsoglossError):
    """A data file is missing or one of its rows is malformed."""

    def __init__(self, message: str, path: Path | None = None, line: int | None = None):
        where = "" if path is None else f"{path}: " if line is None else f"{path}:{line}: "
        super().__init__(where + message)


class RunError(IsoglossError):
    """A run folder is missing, incomplete or belongs to other settings."""
