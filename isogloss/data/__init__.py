"""Data: formats, examples, tasks, selection and chat templates; independent of models and adapters."""
