"""A run: its folder, its stages in order, its ledger."""
