"""A run: its folder, stages and cost ledger."""
