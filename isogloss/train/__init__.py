"""Training: batches, the objective, the Trainer, and both stages."""
