"""Adapters: the tree, its nodes and paths, and what learns on a frozen model; knows no data and no loss."""
