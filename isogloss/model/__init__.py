"""The frozen decoder: loading, hidden states, head, attention and cost. Independent of the language tree."""
