"""Adapters: the language tree and the LoRA modules trained on a frozen model. Independent of the losses."""
