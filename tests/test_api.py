"""The public API: `isogloss.run` runs the whole pipeline; `load` and `load_peft` load its model."""

import json
from pathlib import Path

import pytest
import torch

import isogloss
from isogloss.errors import ConfigError, IsoglossError, RunError

SMALL = {
    "data.english_items": 24,
    "tune.epochs": 1,
    "tune.batch_size": 8,
    "languages.targets": ("sw", "ur"),
    "languages.items": {"high": 6, "middle": 6, "low": 6},
    "distill.epochs": 1,
    "distill.batch_size": 6,
    "distill.max_prompt_length": 5000,
    "distill.learning_rate": 1e-5,
    "evaluate.items": 7,
    "evaluate.sentences": 6,
    "evaluate.max_new_tokens": 3,
    "dtype": "float32",
    "data_root": None,
}


@pytest.fixture(scope="module")
def finished(base, tmp_path_factory) -> Path:
    """A run started from the API, with overrides as Python values."""
    folder = tmp_path_factory.mktemp("runs") / "done"
    assert isogloss.run(**SMALL, run=folder, model=str(base)) == folder
    return folder


def test_exports_equal_all():
    """`__all__` lists exactly the public names that the package defines."""
    own = {name for name, value in vars(isogloss).items() if getattr(value, "__module__", "") == "isogloss"}
    assert (
        {name for name in own if not name.startswith("_")}
        == set(isogloss.__all__)
        == {"load", "load_peft", "run"}
    )


def test_a_run_writes_all_its_files(finished):
    """Settings, reference model, an adapter per language, scores, ledger, predictions and report."""
    names = {"config.yaml", "tuned", "adapters", "scores.json", "ledger.json", "predictions", "report.html"}
    assert names <= {p.name for p in finished.iterdir()}
    assert {"sw", "ur"} <= {p.name for p in (finished / "adapters").iterdir()}
    assert list(json.loads((finished / "scores.json").read_text())["suites"]) == ["demo"]


def test_load_peft_returns_the_model_with_the_adapter_of_one_language(finished):
    """Any code of the language works; the logits are finite and cover the vocabulary."""
    model, tokenizer = isogloss.load_peft(finished, "swh_Latn")
    ids = tokenizer("Habari", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        logits = model(input_ids=ids).logits
    assert logits.shape == (1, 6, model.config.vocab_size) and torch.isfinite(logits).all()
    assert not model.training


@pytest.mark.parametrize(
    ("language", "says"),
    [
        ("pt", "{run} has no adapter for pt; it has sw, ur"),
        ("sww", "'sww' is not a known language code; use one such as sw, swh_Latn or Swahili"),
    ],
)
def test_load_peft_refuses_a_language_without_an_adapter(language, says, finished):
    """The error lists the languages that have an adapter, or says that the code is unknown."""
    with pytest.raises(RunError) as caught:
        isogloss.load_peft(finished, language)
    assert str(caught.value) == says.format(run=finished)


def test_load_refuses_a_folder_that_is_not_a_run(tmp_path):
    for load in (isogloss.load, lambda folder: isogloss.load_peft(folder, "sw")):
        with pytest.raises(RunError) as caught:
            load(tmp_path)
        assert str(caught.value) == f"{tmp_path} is not a run folder; it has no config.yaml"


def test_run_refuses_invalid_settings_and_creates_no_folder(tmp_path):
    """The messages are those of the command line; callers can catch one base class."""
    with pytest.raises(ConfigError) as caught:
        isogloss.run(**{"run": tmp_path / "new", "distill.learning_rate": 0, "evaluate.suites": ["flores"]})
    assert str(caught.value).split("\n") == [
        "--set distill.learning_rate=0: distill.learning_rate is 0; it must be a number above 0",
        '--set evaluate.suites=["flores"]: evaluate.suites contains "flores"; each must be demo, massive, '
        "flores101, ntrex, translation, xnli, pawsx, sib200, xcopa, xquad, mlqa, xglue, language_confusion "
        "or parallel; did you mean flores101?",
    ]
    assert issubclass(ConfigError, IsoglossError) and issubclass(IsoglossError, ValueError)
    assert list(tmp_path.iterdir()) == []
