"""Distillation: signals, losses and the trainer."""
