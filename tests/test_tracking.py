"""Trackers: they get the curves of a run, and send nothing from this machine."""

import json
import os
from pathlib import Path

import pytest
from transformers import TrainerCallback
from transformers.integrations import integration_utils

from isogloss.config import load_config
from isogloss.errors import ConfigError
from isogloss.pipeline import tracking
from isogloss.pipeline.folder import Run, open_run
from isogloss.pipeline.stages import run_distill, run_tune

SETTINGS = (
    "data.english_items=24",
    "tune.epochs=1",
    "tune.batch_size=8",
    "languages.targets=[sw,es]",
    "languages.items={high: 6, middle: 6, low: 6}",
    "distill.epochs=1",
    "distill.batch_size=6",
    "distill.max_prompt_length=5000",
    "dtype=float32",
)


def train(base: Path, folder: Path, tracker: str) -> Run:
    run = open_run(load_config(None, (*SETTINGS, f"model={base}", f"run={folder}", f"report_to=[{tracker}]")))
    run_tune(run)
    run_distill(run)
    return run


def lines(run: Run) -> list[dict]:
    return [json.loads(line) for line in run.curve.read_text("utf-8").splitlines()]


def test_a_tracker_gets_the_curves_of_both_stages(base, tmp_path, monkeypatch):
    """It gets every line of curves.jsonl under its stage's name; the log folder is the run's."""
    shown, folders = [], set()

    class Fake(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            folders.add(os.environ["TENSORBOARD_LOGGING_DIR"])
            stages = {name.partition("/")[0] for name in logs} & {"tune", "distill"}
            if stages:  # the trainer's own last line has none
                (stage,) = stages
                values = {n.removeprefix(f"{stage}/"): v for n, v in logs.items() if "/" in n}
                shown.append({"stage": stage, "step": state.global_step, **values})

    monkeypatch.setattr(tracking, "find_spec", lambda name: name)
    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "tensorboard", Fake)
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    run = train(base, tmp_path / "run", "tensorboard")
    drawn = lines(run)
    assert {line["stage"] for line in drawn} == {"tune", "distill"} and shown == drawn
    assert folders == {str(run.folder.resolve() / "tracking" / "tensorboard")}
    assert "TENSORBOARD_LOGGING_DIR" not in os.environ


def test_tensorboard_writes_the_curves(base, tmp_path):
    """They are read back with TensorBoard's own reader."""
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = train(base, tmp_path / "run", "tensorboard")
    drawn = lines(run)
    events = EventAccumulator(str(run.folder / "tracking" / "tensorboard"))
    events.Reload()
    for stage in ("tune", "distill"):
        found = [(one.step, one.value) for one in events.Scalars(f"train/{stage}/loss")]
        wanted = [(line["step"], line["loss"]) for line in drawn if line["stage"] == stage]
        assert found == [(step, pytest.approx(loss)) for step, loss in wanted]


def test_trackers_stay_in_the_runs_folder_and_send_nothing(tmp_path, monkeypatch):
    """Their own variables may say otherwise; afterwards the environment is restored."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://team.example")
    for name in ("WANDB_MODE", "WANDB_DIR", "WANDB_PROJECT", "MLFLOW_EXPERIMENT_NAME", "TRACKIO_DIR"):
        monkeypatch.delenv(name, raising=False)
    before = dict(os.environ)
    with tracking.tracking(tmp_path, ("wandb", "mlflow", "trackio")):
        added = {name: value for name, value in os.environ.items() if before.get(name) != value}
        assert Path(os.environ["WANDB_DIR"]).is_dir()
    folder = tmp_path.resolve() / "tracking"
    assert added == {
        "WANDB_MODE": "offline",
        "WANDB_DIR": str(folder / "wandb"),
        "WANDB_PROJECT": "isogloss",
        "MLFLOW_EXPERIMENT_NAME": "isogloss",
        "TRACKIO_DIR": str(folder / "trackio"),
        "TRACKIO_PROJECT": "isogloss",
    }
    assert dict(os.environ) == before


def test_without_trackers_nothing_changes(tmp_path):
    """No folder is created and no variable set."""
    before = dict(os.environ)
    with tracking.tracking(tmp_path, ()):
        assert dict(os.environ) == before
    assert not list(tmp_path.iterdir())


def test_a_tracker_that_is_not_installed_is_named(base, tmp_path, monkeypatch):
    """The error comes before training starts."""
    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    with pytest.raises(ConfigError) as caught:
        train(base, tmp_path / "run", "wandb")
    said = "report_to: wandb is not installed; pip install wandb, or leave it out"
    assert str(caught.value) == said and not (tmp_path / "run" / "curves.jsonl").exists()


@pytest.mark.parametrize("value", ["[comet]", "tensorboard", "{tensorboard: true}"])
def test_only_known_trackers_are_accepted(value):
    """They are given as a list."""
    with pytest.raises(ConfigError, match="report_to"):
        load_config(None, (f"report_to={value}",))
