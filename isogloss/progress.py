"""Types for reporting the progress of long-running work."""

from collections.abc import Callable
from contextlib import AbstractContextManager

Progress = Callable[[int, int], None]
"""Callback with the number of items done and the total."""
Bar = Callable[[str], AbstractContextManager[Progress]]
"""Given a label, returns a context manager that shows progress under it."""
