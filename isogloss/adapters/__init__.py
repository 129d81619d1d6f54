"""Adapters: the tree, its nodes and paths, and what is trained on a frozen model; knows no data and no loss."""
