"""Evaluation: suites, measures and statistics. Suites are independent of adapters."""
