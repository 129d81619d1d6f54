"""Experiment trackers (TensorBoard, W&B and others), as supported by transformers' Trainer.

They get the curves of `curves.jsonl`, as `train/STAGE/NAME`. Everything that a tracker writes stays in the
run's `tracking/` and nothing is uploaded, unless the tracker's own environment variables say otherwise.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from isogloss.config import Tracker
from isogloss.errors import ConfigError


def check_installed(trackers: Sequence[Tracker]) -> None:
    """Check that the trackers are installed, before any training starts.

    Raises:
        ConfigError: A tracker is not installed.
    """
    for name in trackers:
        if find_spec(name) is None:
            raise ConfigError(f"report_to: {name} is not installed; pip install {name}, or leave it out")


@contextmanager
def tracking(run: Path, trackers: Sequence[Tracker]) -> Iterator[None]:
    """Make trackers started inside the context write to the run folder."""
    folder = run.resolve() / "tracking"
    local = {
        "tensorboard": {"TENSORBOARD_LOGGING_DIR": str(folder / "tensorboard")},
        "wandb": {"WANDB_MODE": "offline", "WANDB_DIR": str(folder / "wandb"), "WANDB_PROJECT": "isogloss"},
        "mlflow": {
            "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}",
            "MLFLOW_EXPERIMENT_NAME": "isogloss",
        },
        "trackio": {"TRACKIO_DIR": str(folder / "trackio"), "TRACKIO_PROJECT": "isogloss"},
    }
    chosen = {name: value for tracker in trackers for name, value in local[tracker].items()}
    added = {name: value for name, value in chosen.items() if name not in os.environ}
    if trackers:
        (folder / "wandb").mkdir(parents=True, exist_ok=True)  # wandb does not create it
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)
