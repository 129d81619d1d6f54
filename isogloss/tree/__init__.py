"""The tree: nodes, paths and carriers; knows no data and no loss."""
