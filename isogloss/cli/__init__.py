"""The command line; `main` is its entry point."""

from isogloss.cli.entry import main

__all__ = ["main"]
