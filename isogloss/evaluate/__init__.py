"""Evaluation: suites, measures and statistics; a suite never knows what an adapter is."""
