"""Preflight: estimate the cost of a run from tensor shapes alone."""
