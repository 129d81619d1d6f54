"""`python -m isogloss`, the entry point for multi-process launchers."""

from isogloss.cli import main

main()
