"""Silence the logs, progress bars and warnings of other libraries: a run has its own reporting."""

import logging
import os
import warnings


def quiet() -> None:
    """Silence other libraries in this process."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # oneDNN caches kernels for the last 1,024 shapes: with batches of every width, megabytes for each.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "32")
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="(torch|transformers|peft|accelerate)")
