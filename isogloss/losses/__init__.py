"""Losses: pure functions of tensors, and the fused versions that never hold all logits at once."""
