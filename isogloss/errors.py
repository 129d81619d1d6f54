"""Errors that the user can fix: one line that says what is wrong, where, and what to do.

    IsoglossError(ValueError)
    ├── ConfigError    an invalid setting, or settings that contradict each other
    ├── DataError      a data file or row
    └── RunError       a run folder that is missing, incomplete or inconsistent

The command line prints them and exits with code 2; nothing else is caught.
"""

from pathlib import Path


class IsoglossError(ValueError):
    """A problem that the user can fix."""


class ConfigError(IsoglossError):
    """A setting is unknown, missing or impossible."""


class DataError(IsoglossError):
    """A data file is missing, or one of its rows is malformed."""

    def __init__(self, message: str, path: Path | None = None, line: int | None = None):
        where = "" if path is None else f"{path}: " if line is None else f"{path}:{line}: "
        super().__init__(where + message)


class RunError(IsoglossError):
    """A run folder is missing, incomplete, or was made with other settings."""
