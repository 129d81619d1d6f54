"""The command line; `main` is its entry point."""

from isogloss.cli.main import main

__all__ = ["main"]
