"""The public API: `isogloss.run` does the whole job, `load` and `load_peft` give its model."""

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
    """A run of the API; its overrides are Python's own values."""
    folder = tmp_path_factory.mktemp("runs") / "done"
    assert isogloss.run(**SMALL, run=folder, model=str(base)) == folder
    return folder


def test_exports_equal_all():
    """What the package defines under a public name is what it promises."""
    own = {name for name, value in vars(isogloss).items() if getattr(value, "__module__", "") == "isogloss"}
    assert (
        {name for name in own if not name.startswith("_")}
        == set(isogloss.__all__)
        == {"load", "load_peft", "run"}
    )


def test_a_run_leaves_the_folder_that_the_design_names(finished):
    """Settings, reference model, an adapter per language, scores, ledger, predictions, report."""
    names = {"config.yaml", "tuned", "adapters", "scores.json", "ledger.json", "predictions", "report.html"}
    assert names <= {p.name for p in finished.iterdir()}
    assert {"sw", "ur"} <= {p.name for p in (finished / "adapters").iterdir()}
    assert list(json.loads((finished / "scores.json").read_text())["suites"]) == ["demo"]


def test_load_peft_gives_the_model_with_the_adapter_of_one_language(finished):
    """Any of the language's codes; the logits are finite and those of the vocabulary."""
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
def test_load_peft_refuses_a_language_that_is_not_there(language, says, finished):
    """And says which there are."""
    with pytest.raises(RunError) as caught:
        isogloss.load_peft(finished, language)
    assert str(caught.value) == says.format(run=finished)


def test_load_refuses_what_is_no_run(tmp_path):
    """In one line."""
    for load in (isogloss.load, lambda folder: isogloss.load_peft(folder, "sw")):
        with pytest.raises(RunError) as caught:
            load(tmp_path)
        assert str(caught.value) == f"{tmp_path} is no run folder; it has no config.yaml"


def test_run_refuses_wrong_settings_and_makes_no_folder(tmp_path):
    """The same sentences as on the command line; a caller may catch the one base class."""
    with pytest.raises(ConfigError) as caught:
        isogloss.run(**{"run": tmp_path / "new", "distill.learning_rate": 0, "evaluate.suites": ["flores"]})
    assert str(caught.value).split("\n") == [
        "--set distill.learning_rate=0: distill.learning_rate is 0; it must be a number above 0",
        '--set evaluate.suites=["flores"]: evaluate.suites holds "flores"; each must be demo, massive, '
        "flores101, ntrex, translation, xnli, pawsx, sib200, xcopa, xquad, mlqa, xglue, language_confusion "
        "or parallel; did you mean flores101?",
    ]
    assert issubclass(ConfigError, IsoglossError) and issubclass(IsoglossError, ValueError)
    assert list(tmp_path.iterdir()) == []
