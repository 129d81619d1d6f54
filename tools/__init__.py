"""Tools that build the embedded base model and measure the code; run as `python -m tools.NAME`."""
