"""Data: formats, examples, selection and collation; knows no model and no adapter."""
