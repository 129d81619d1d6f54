"""The teacher: node texts and privileged prompts; knows no carrier."""
