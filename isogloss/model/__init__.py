"""The frozen decoder: loading it, its hidden states, head and attention, and what it costs; knows no tree."""
