"""What builds the embedded base, and measures of the code; run as `python -m tools.NAME`."""
