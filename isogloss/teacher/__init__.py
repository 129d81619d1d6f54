"""The teacher: its prompts, its signals for each row, and their cache."""
