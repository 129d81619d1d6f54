"""Data: formats, examples, tasks, selection and chat templates; knows no model and no adapter."""
