"""Export of a finished run to formats that other programs load."""
