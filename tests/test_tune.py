"""Stage 1 leaves out rows that are longer than the model can read."""

import json

import pytest
import torch
from transformers import LlamaConfig, MptConfig

from isogloss.config import load_config
from isogloss.data.examples import ParallelExample, Turn
from isogloss.errors import ConfigError
from isogloss.model.load import positions
from isogloss.pipeline import folder, stages
from isogloss.train import stage1


def run_of(base, tmp_path, *overrides: str) -> folder.Run:
    """Return a run with English items of 1, 100 and 1,100 characters; a character is a token."""
    asked = {"short": "q", "long": "q" * 100, "longest": "q" * 1100}
    rows = [
        {"id": id, "en": {"instruction": text, "response": "a"}, "sw": {"instruction": "s", "response": "b"}}
        for id, text in asked.items()
    ]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = (
        f"data={{type: parallel, path: {tmp_path / 'own.jsonl'}}}", "languages.targets=[sw]", f"model={base}",
        f"run={tmp_path / 'run'}", "tune.selection.enabled=false", *overrides,
    )  # fmt: skip
    return folder.Run(load_config(None, settings), folder.ProgressReporter())


@pytest.mark.parametrize(
    ("setting", "left_out", "limit"),
    [((), ["longest"], 1024), (("tune.max_tokens=60",), ["long", "longest"], 60)],
)
def test_rows_that_are_too_long_are_left_out_with_a_reason(base, tmp_path, setting, left_out, limit):
    """The model has 1,024 positions; the settings may set a lower limit."""
    found = stages.select_english(run_of(base, tmp_path, *setting))
    assert [one.example_id for one in found.dropped] == left_out
    for one in found.dropped:
        assert one.reason == "too_long" and one.detail.endswith(f" tokens; tune.max_tokens is {limit}")
    assert {e.id for e in found.kept} == {"short", "long", "longest"} - set(left_out)


def test_a_limit_above_the_models_positions_is_refused(base, tmp_path):
    """The error gives both numbers."""
    with pytest.raises(ConfigError) as caught:
        stages.select_english(run_of(base, tmp_path, "tune.max_tokens=1025"))
    assert str(caught.value) == "tune.max_tokens is 1025; the model has 1024 positions"


@pytest.mark.parametrize(
    "config", [MptConfig(max_seq_len=64), LlamaConfig(max_position_embeddings=64)], ids=["mpt", "llama"]
)
def test_positions_are_found_under_any_name(tmp_path, config):
    """They are read from the config alone."""
    config.save_pretrained(tmp_path)
    assert positions(str(tmp_path)) == 64


def test_a_loss_that_rounding_made_negative_counts_as_0(tiny, tokenizer, monkeypatch):
    """Both losses of the certain response are 0, so its instruction does not help."""
    monkeypatch.setattr(
        stage1, "token_log_probs", lambda base, states, *given: (torch.full((len(states),), 1e-6), None)
    )
    example = ParallelExample("1", "qa", {"en": Turn("Say a.", "a")})
    assert stage1.difficulty(tiny(), tokenizer, [example], lambda done, of: None) == [1.0]
