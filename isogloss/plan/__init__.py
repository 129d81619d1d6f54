"""Preflight: what a run will cost, from shapes alone."""
