"""How work that takes long says how far it is."""

from collections.abc import Callable
from contextlib import AbstractContextManager

Progress = Callable[[int, int], None]
"""Is told how many are done, of how many."""
Bar = Callable[[str], AbstractContextManager[Progress]]
"""Shows the progress of something that it is given the name of."""
