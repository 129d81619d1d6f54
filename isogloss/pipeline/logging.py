"""Other libraries' logs, bars and warnings are silenced: a run reports by itself."""

import logging
import os
import warnings


def quiet() -> None:
    """The libraries' own logs, bars and warnings stay silent in this process."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # oneDNN keeps the code of the last 1,024 shapes: with batches of every width, megabytes for each of them.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "32")
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="(torch|transformers|peft|accelerate)")
