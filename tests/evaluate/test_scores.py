"""What `scores.json` and the prediction files hold for suites with their own metrics; a tiny random model."""

import json
from pathlib import Path

import pytest
import torch
from xglue_files import put

from isogloss import pipeline
from isogloss.config import load_config
from isogloss.data.formats import parallel_jsonl
from isogloss.report.table import headline, official_table, summary_table

EVALUATE = (
    "languages.targets=[es,fr]", "languages.items={high: 4, middle: 4, low: 4}", "data.english_items=8",
    "distill.carrier.ranks={root: 2, family: 1, language: 2}", "evaluate.suites=[xglue,parallel]",
    "evaluate.likelihood=[xglue]", "evaluate.split=dev", "evaluate.items=4", "evaluate.max_new_tokens=3",
    "evaluate.xglue.tasks=[XNLI,NC,QAM,QG]", "evaluate.xglue.skip_missing=true", "dtype=float32",
)  # fmt: skip


@pytest.fixture(scope="module")
def finished(tokenizer, tiny, tmp_path_factory) -> pipeline.Run:
    """A run whose carriers are random, evaluated on XGLUE's official layout and on a file of one's own."""
    folder = tmp_path_factory.mktemp("scored")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("isogloss.data.division.LEARNED", 0.0)  # two rows a task are too few to divide
        yield scored(folder, tokenizer, tiny)


def scored(folder, tokenizer, tiny) -> pipeline.Run:
    put(folder)
    own = folder / "own.jsonl"
    own.write_text('{"id": "1", "en": {"instruction": "Hi"}, "es": {"instruction": "Hola"}}\n')
    more = (f"run={folder / 'run'}", f"data_root={folder}", f"evaluate.parallel.path={own}")
    run = pipeline.open_run(load_config(None, (*EVALUATE, *more)))
    tiny("qwen3").save_pretrained(run.tuned)
    tokenizer.save_pretrained(run.tuned)
    carrier = run.student(run.reference_model(), trained=False)
    torch.manual_seed(1)
    state = {name: torch.randn_like(p) * 0.3 for name, p in carrier.state().items()}
    pipeline.save_whole(state, run.carriers, {"families": json.dumps(carrier.tree.families)})
    pipeline.run_evaluate(run)
    return run


def scores(run: pipeline.Run) -> dict:
    return json.loads((run.folder / "scores.json").read_text("utf-8"))


def test_the_benchmarks_own_metrics_stand_beside_ours(finished):
    """Of both sides, English included; languages with other items each still have a mean."""
    entry = scores(finished)["suites"]["xglue"]
    for phase in ("before", "after"):
        tasks = entry["official"][phase]["tasks"]
        assert {task: list(by) for task, by in tasks.items()} == {
            "XNLI": ["accuracy"], "NC": ["accuracy"], "QAM": ["accuracy"], "QG": ["bleu"],
        }  # fmt: skip
        assert list(tasks["NC"]["accuracy"]["languages"]) == ["en", "es"]
        mains = [by[next(iter(by))]["mean"] for by in tasks.values()]
        assert entry["official"][phase]["overall"] == pytest.approx(sum(mains) / 4)
    accuracy = entry["after"]["accuracy"]
    assert {code: one["n"] for code, one in accuracy["languages"].items()} == {"es": 4, "fr": 2}
    mean = sum(one["value"] for one in accuracy["languages"].values()) / 2
    assert accuracy["mean"] == pytest.approx(mean)
    assert entry["unreadable"]["after"] == {"es": 0, "fr": 0}  # by likelihood all are options
    # French is no language of NC's and QG's files here, and Spanish none of QAM's at all.
    lacking = [f"XGLUE's {task} dev was not found in fr." for task in ("XNLI", "NC", "QG")]
    assert entry["notes"][:3] == lacking and entry["notes"][3].startswith("XNLI has no training file")
    assert "|split:dev (40 % of XNLI)|" in entry["signature"]


def test_only_items_with_an_english_twin_are_consistent_or_not(finished):
    """French has none, so it is not in the mean; its rows say so."""
    assert list(scores(finished)["suites"]["xglue"]["after"]["consistency"]["languages"]) == ["es"]
    lines = (finished.folder / "predictions" / "xglue.after.jsonl").read_text("utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    assert {row["consistent"] for row in rows if row["language"] == "fr"} == {None}
    assert {row["task"] for row in rows if row["english_answer"] is not None} == {"XNLI"}


def test_the_consistency_family_is_of_the_questions_that_all_answer(finished):
    """The two of XNLI, ranked by likelihood."""
    family = scores(finished)["suites"]["xglue"]["family"]["before"]
    assert family["items"] == 2 and family["languages"] == ["en", "es"]
    assert family["rankc"]["chance"] == pytest.approx(0.474930, abs=1e-5)
    assert family["consistency"]["all"] == family["agreement"]["en"]["es"]
    assert scores(finished)["suites"]["parallel"]["family"] == {
        "before": {},
        "after": {},
    }  # no closed question


def test_official_prediction_files_are_written_for_both_sides(finished):
    """One line a row."""
    for phase in ("before", "after"):
        folder = finished.folder / "predictions" / f"xglue.{phase}"
        found = {
            str(path.relative_to(folder)): path.read_text("utf-8") for path in folder.rglob("*.prediction")
        }
        assert set(found) == {
            f"{task}/{code}.prediction"
            for task, codes in (("XNLI", "en es"), ("NC", "en es"), ("QAM", "en fr"), ("QG", "en es"))
            for code in codes.split()
        }
        assert all(text.count("\n") == 2 for text in found.values())


def test_what_is_evaluated_stays_so(finished):
    """Settings of another suite do not have it measured again."""
    assert pipeline._unscored(finished, scores(finished)) == []
    changed = finished.config.evaluate.model_copy(
        update={"translation": finished.config.evaluate.translation.model_copy(update={"spbleu": False})}
    )
    other = pipeline.Run(finished.config.model_copy(update={"evaluate": changed}), pipeline.Watcher())
    assert pipeline._unscored(other, scores(finished)) == []


def test_the_terminal_shows_the_official_scores(finished):
    """A row a metric, and the overall mean; the other tables stand a suite without alignment."""
    found = scores(finished)
    table = official_table(found, "xglue")
    assert [str(cell) for cell in table.columns[0].cells] == ["XNLI", "NC", "QAM", "QG", "overall"]
    assert [str(cell) for cell in table.columns[2].cells] == ["2", "2", "2", "2", ""]
    assert summary_table(found, "xglue").row_count == 3 and headline(found, "xglue").startswith("xglue: ")


def test_test_items_in_the_training_data_are_found(finished, tmp_path):
    """A file that is both trained and tested on leaks whole."""
    path: Path = finished.config.evaluate.parallel.path  # type: ignore[assignment]
    texts = {code: {"instruction": f"{code} x", "response": "y"} for code in ("en", "es", "fr")}
    path.write_text(json.dumps({"id": "1", **texts}) + "\n")
    assert len(parallel_jsonl.read(path)) == 1
    settings = load_config(
        None,
        (*EVALUATE[:2], f"run={tmp_path}", "evaluate.suites=[parallel]", f"evaluate.parallel.path={path}",
         f"data={{type: parallel, path: {path}}}"),
    )  # fmt: skip
    found = pipeline.leaks(pipeline.Run(settings, pipeline.Watcher()))
    assert [(leak.suite, leak.id, leak.language, leak.whole, leak.trained) for leak in found] == [
        ("parallel", "1", code, True, ("1", code)) for code in ("en", "es", "fr")
    ]


def test_the_page_has_the_official_scores(finished):
    """Among each suite's facts, whatever measures the suite lacks."""
    page = pipeline.run_report(finished).read_text("utf-8")
    for name in ("XNLI accuracy", "NC accuracy", "QAM accuracy", "QG bleu"):
        assert name in page
