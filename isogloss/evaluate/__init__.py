"""Evaluation: suites, measures and statistics; a suite never knows what a carrier is."""
