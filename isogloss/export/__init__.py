"""A finished run in forms that other programs load."""
