"""Other ways to align a model's languages, run on the same work to be compared: needs `isogloss[rl]`."""
