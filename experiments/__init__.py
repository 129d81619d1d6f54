"""Ablations, and other ways to align languages on the same work: `python -m experiments.NAME`."""
