"""An OpenAI-compatible endpoint over a finished run."""
