"""`python -m isogloss`, as launchers of several processes start it."""

from isogloss.cli import main

main()
