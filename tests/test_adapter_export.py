"""Exporting languages as PEFT adapters and merged models: cards, warnings and refusals."""

import json
import math
from dataclasses import replace
from types import SimpleNamespace
from typing import get_args

import pytest

from isogloss.adapters.lora import TreeLora
from isogloss.config import AnySource, FileData, load_config
from isogloss.errors import DataError, RunError
from isogloss.export import adapters
from isogloss.export.adapters import refuse_bare
from isogloss.pipeline.folder import ProgressReporter, Run
from isogloss.pipeline.provenance import learned_from


@pytest.mark.parametrize("kind", ["peft", "merged"])
def test_the_code_in_a_card_loads_the_export_and_answers(aligned, tmp_path, capsys, kind):
    """Running the card's code as it is prints the run's own answer."""
    (one,) = adapters.export(aligned.run, ["sw"], kind, tmp_path)
    card = (one.folder / "README.md").read_text()
    assert "Data: demo (the package); licence: Apache-2.0." in card
    exec(card.split("```")[1].removeprefix("python").replace('"..."', '"Habari ya leo"'), {})
    assert capsys.readouterr().out.strip() == aligned.generate(["Habari ya leo"], "sw")[0]


def test_without_its_data_a_run_is_compared_on_fixed_instructions(aligned, tmp_path, monkeypatch):
    """A run that was moved to another machine can be exported there."""

    def examples(self):
        raise DataError("there is no such file", tmp_path / "gone.jsonl")

    said = []
    reporter = type("Heard", (ProgressReporter,), {"say": lambda self, text: said.append(text)})()
    run = Run(aligned.run.config, reporter)
    assert "sw" in run.taught  # while the data is there, as this run does not name its families
    monkeypatch.setattr(Run, "examples", property(examples))
    (one,) = adapters.export(run, ["sw"], "peft", tmp_path)
    assert (one.tokens, one.same, one.asked) == (16, 4, 4)
    assert said[0].endswith("there is no such file; the export is compared on 4 fixed instructions")


def test_an_adapter_of_a_bfloat16_run_is_compared_in_float32(aligned, tmp_path):
    """The tolerance is the same as for a float32 run."""
    run = Run(aligned.run.config.model_copy(update={"dtype": "bfloat16"}), aligned.run.reporter)
    (one,) = adapters.export(run, ["ru"], "peft", tmp_path)
    assert one.difference <= 1e-4 and one.same == one.asked == 4
    assert "Compared in float32 with the run's own model on " in (one.folder / "README.md").read_text()


def test_a_card_asks_for_the_licence_of_a_users_own_file(tmp_path, monkeypatch):
    """The package cannot know it; a language added later may also come from another file."""
    data = f"data={{type: parallel, path: {tmp_path}/mine.jsonl}}"
    run = Run(load_config(None, [data, "languages.targets=[ru]"]), ProgressReporter())
    monkeypatch.setattr(Run, "families", {"ru": "Slavic", "sw": "Bantu"})
    mine = "mine.jsonl; licence not known here: state it before you pass this on."
    assert learned_from(run, "ru") == mine
    later = "The language was added later, from these data or from a file of its own."
    assert learned_from(run, "sw") == f"{mine} {later}"


def test_an_export_that_differs_from_the_run_is_refused(aligned, tmp_path, monkeypatch):
    """Another language's path is written instead; only the unfinished folder is left."""
    write = TreeLora.export
    monkeypatch.setattr(TreeLora, "export", lambda self, code, *rest: write(self, "ru", *rest))
    with pytest.raises(
        RunError, match=r"^sw: loaded again, the export differs from the run's own model: largest"
    ):
        adapters.export(aligned.run, ["sw"], "peft", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["sw.part"]


def test_an_approximate_export_warns_about_differing_answers(aligned, tmp_path):
    """One line is printed; an export that must be exact is refused for a differing answer or NaN."""
    said = []
    reporter = type("Heard", (ProgressReporter,), {"say": lambda self, text: said.append(text)})()
    run = Run(aligned.run.config, reporter)
    one = adapters.Exported("sw", tmp_path, 4, 0.5, 0.1, 9, same=3, asked=4)
    adapters._judge(run, one, tmp_path, "rank 4 is lower than the path's")
    assert said == ["Warning: sw: 1 of 4 greedy answers differ; rank 4 is lower than the path's"]
    for wrong in ({"difference": 0.0}, {"difference": math.nan, "same": 4}):
        with pytest.raises(RunError, match=r"a difference of 0\.0001 and no differing answer; it is left in"):
            adapters._judge(run, replace(one, **wrong), tmp_path, "")


def test_a_language_without_adapter_rows_is_not_exported():
    """German was not taught and English is the root's, so their path is only the root, which has rank 0."""
    ranks = "distill.adapter.ranks={root: 0, family: 0, language: 2}"
    config = load_config(None, ["languages.targets=[es, sw]", ranks, "run=runs/a"])
    run = Run(config, ProgressReporter())
    refuse_bare(run, ["es", "sw"])
    with pytest.raises(RunError, match=r"^en has no adapter"):
        refuse_bare(run, ["es", "en"])
    with pytest.raises(
        RunError, match=r"^de has no adapter: its answers are those of the tuned model in runs/a/tuned"
    ):
        refuse_bare(run, ["es", "de"])


PUBLIC = [kind for kind in get_args(get_args(AnySource)[0]) if not issubclass(kind, FileData)]


@pytest.mark.parametrize("kind", [*(kind.model_fields["type"].default for kind in PUBLIC), "parallel"])
def test_a_card_names_every_kind_of_data(kind):
    """It also gives the licence, or says that it is unknown."""
    given = {"type": kind} | ({"path": "mine.jsonl"} if kind == "parallel" else {})
    config = load_config(None, [f"data={json.dumps(given)}", "parallel_text=[{type: tico19}]"])
    told = learned_from(SimpleNamespace(config=config, families={}))
    assert "licence" in told and told.endswith(
        "Pairs of sentences of tico19; licence not known here: state it before you pass this on."
    )
