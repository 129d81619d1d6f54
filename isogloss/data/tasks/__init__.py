"""How labelled data is put into instructions, per data set."""
