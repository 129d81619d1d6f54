"""Adding a language to a finished run: refusals before its model is loaded."""

import pytest
import torch
from safetensors.torch import save_file

from isogloss.config import load_config
from isogloss.errors import ConfigError, RunError
from isogloss.pipeline import add_language
from isogloss.pipeline.folder import ProgressReporter, Run

SMALL = ("languages.targets=[sw]", "languages.items={high: 2, middle: 2, low: 2}")


def distilled(folder, *overrides: str) -> Run:
    """Return a run whose tree teaches Swahili, without model weights."""
    (folder / "adapters").mkdir()
    state = {"rows": torch.zeros(1)}
    save_file(state, folder / "adapters" / "tree.safetensors", {"families": '{"sw": "Bantu"}'})
    return Run(load_config(None, (*SMALL, f"run={folder}", *overrides)), ProgressReporter())


@pytest.mark.parametrize(
    ("overrides", "codes", "held"),
    [
        (["languages.tree=shared"], ["es"], "root"),
        (["distill.adapter.ranks={family: 0, language: 0}"], ["es"], "root"),
        (["distill.adapter.ranks={root: 0, family: 3, language: 0}"], ["es", "fr"], None),
    ],
)
def test_a_language_whose_nodes_would_have_no_rows_is_refused(tmp_path, overrides, codes, held):
    """It would be trained for nothing; a new family with rows is enough to learn."""
    run = distilled(tmp_path, *overrides)
    with pytest.raises((RunError, ConfigError)) as caught:
        add_language.add_languages(run, codes)
    nothing = (
        f"{codes[0]} would learn nothing: its new nodes have no adapter rows; all rows of its path are "
        f"in {held}, and trained nodes do not change"
    )
    # If the tree is accepted, the next error is about the tuned model, which does not exist.
    assert str(caught.value) == nothing if held else "would learn nothing" not in str(caught.value)


def test_a_sharded_run_in_a_single_process_is_refused_first(tmp_path):
    """It is refused before data is read or layers are counted."""
    run = distilled(tmp_path, "shard=true", "tune.method=lora")
    with pytest.raises(ConfigError, match=r"^shard: needs several processes"):
        add_language.add_languages(run, ["es"])


def test_several_gpus_in_a_single_process_are_refused_first(tmp_path, monkeypatch):
    """Before data are read; a launcher gives each process one."""
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    with pytest.raises(ConfigError) as caught:
        add_language.add_languages(distilled(tmp_path), ["es"])
    assert str(caught.value) == (
        "one process uses one GPU: start several with `accelerate launch`, or set CUDA_VISIBLE_DEVICES=0"
    )


def test_scores_stay_valid_when_notes_are_added_to_the_model(tmp_path):
    """Only files that decide the prompt's token IDs or the weights count."""
    run = distilled(tmp_path)
    run.tuned.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        (run.tuned / name).write_text(name)
    before = run.answering
    (run.tuned / "README.md").write_text("Licence")
    assert Run(run.config, ProgressReporter()).answering == before
    (run.tuned / "tokenizer_config.json").write_text("other")
    assert Run(run.config, ProgressReporter()).answering["template"] != before["template"]
