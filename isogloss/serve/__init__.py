"""OpenAI-compatible server for a finished run."""
