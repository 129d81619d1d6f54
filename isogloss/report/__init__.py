"""Reports of a run: an HTML page and tables for the terminal. Only reads files; does not import torch."""
