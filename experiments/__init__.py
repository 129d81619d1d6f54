"""Ablations, and comparisons with other alignment methods on the same data: `python -m experiments.NAME`."""
