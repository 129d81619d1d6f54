"""Instructions built from labelled data, one module per data set."""
