"""Scores and prediction files of suites with their own metrics, from a tiny random model."""

import json
import shutil
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from xglue_files import put

from isogloss.config import load_config
from isogloss.data.examples import ParallelExample, Turn
from isogloss.data.formats import parallel_jsonl
from isogloss.errors import RunError
from isogloss.evaluate.signature import fields_of
from isogloss.evaluate.suites import load_suite
from isogloss.pipeline import checks, evaluation, suite_scores, training
from isogloss.pipeline.folder import ProgressReporter, Run, load_run, open_run
from isogloss.report.page import write_report
from isogloss.report.table import headline, official_table, summary_table

EVALUATE = (
    "languages.targets=[es,fr]", "languages.items={high: 4, middle: 4, low: 4}", "data.english_items=8",
    "distill.adapter.ranks={root: 2, family: 1, language: 2}", "evaluate.suites=[xglue,parallel]",
    "evaluate.likelihood=[xglue]", "evaluate.split=dev", "evaluate.items=4", "evaluate.max_new_tokens=3",
    "evaluate.xglue.tasks=[XNLI,NC,QAM,QG]", "evaluate.xglue.skip_missing=true", "dtype=float32",
)  # fmt: skip


@pytest.fixture(scope="module")
def finished(tokenizer, tiny, tmp_path_factory) -> Run:
    """Return a run with random adapters, evaluated on XGLUE's official layout and on your own file."""
    folder = tmp_path_factory.mktemp("scored")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("isogloss.data.division.LEARNED", 0.0)  # two rows per task are too few to divide
        yield scored(folder, tokenizer, tiny)


def scored(folder, tokenizer, tiny) -> Run:
    put(folder)
    own = folder / "own.jsonl"
    own.write_text('{"id": "1", "en": {"instruction": "Hi"}, "es": {"instruction": "Hola"}}\n')
    more = (f"run={folder / 'run'}", f"data_root={folder}", f"evaluate.parallel.path={own}")
    run = open_run(load_config(None, (*EVALUATE, *more)))
    tiny("qwen3").save_pretrained(run.tuned)
    tokenizer.save_pretrained(run.tuned)
    adapters = run.student(run.reference_model(), trained=False)
    torch.manual_seed(1)
    state = {name: torch.randn_like(p) * 0.3 for name, p in adapters.state().items()}
    training.save_whole(state, run.trained, {"families": json.dumps(adapters.tree.families)})
    evaluation.run_evaluate(run)
    return run


def scores(run: Run) -> dict:
    return json.loads((run.folder / "scores.json").read_text("utf-8"))


def test_the_benchmarks_own_metrics_are_reported_beside_ours(finished):
    """For both sides and with English; languages with different items each have a mean."""
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
    assert entry["unreadable"]["after"] == {"es": 0, "fr": 0}  # options chosen by likelihood are readable
    # The files here have no French for NC and QG, and QAM has no Spanish at all.
    assert entry["notes"] == [
        *(f"XGLUE's {task} dev was not found in fr." for task in ("XNLI", "NC", "QG")),
        "XNLI has no training file: 40 % of its dev set, divided by premise, are reported, and the rest "
        "may be used for training.",
    ]
    assert "|split:dev (40 % of XNLI)|" in entry["signature"]


def test_only_items_with_an_english_twin_have_a_consistency(finished):
    """French has none: it is not in the mean, and its rows have None."""
    assert list(scores(finished)["suites"]["xglue"]["after"]["consistency"]["languages"]) == ["es"]
    lines = (finished.folder / "predictions" / "xglue.after.jsonl").read_text("utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    assert {row["consistent"] for row in rows if row["language"] == "fr"} == {None}
    assert {row["task"] for row in rows if row["english_answer"] is not None} == {"XNLI"}


def test_the_consistency_family_covers_the_questions_that_all_languages_have(finished):
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
    """One line per row."""
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


def test_the_summary_of_the_run_comes_first(finished):
    """Over both suites; means have intervals, and a task is mastered by the reference model's English."""
    found = scores(finished)
    assert list(found)[:3] == ["schema", "isogloss", "summary"]
    summary = found["summary"]
    assert summary["tasks"] == ["xglue/XNLI", "parallel/instruction"]
    english = found["suites"]["xglue"]["english"]["tasks"]
    assert summary["mastered"] == [f"xglue/{task}" for task, one in english.items() if one["mastered"]]
    for phase in ("before", "after"):
        suites = [found["suites"][name]["tasks"][phase] for name in ("xglue", "parallel")]
        each = [values["es"] for tasks in suites for values in tasks.values()]
        one = summary[phase]["consistency_all"]
        assert one["mean"] == pytest.approx(sum(each) / len(each))
        assert one["low"] <= one["mean"] <= one["high"]
    assert summary["after"]["retention"]["languages"].keys() == {"en"}


def test_truncated_answers_are_counted(finished):
    """A random model never ends within three tokens; answers chosen by likelihood are never truncated."""
    cut = scores(finished)["suites"]["parallel"]["cut"]
    assert set(cut) == {"before", "after"} and set(cut["after"]) == {"en", "es"}
    assert all(0 <= share <= 1 for shares in cut.values() for share in shares.values())
    lines = (finished.folder / "predictions" / "parallel.after.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line)["cut"] for line in lines] == [cut["after"]["es"] == 1.0]


def test_finished_suites_are_not_evaluated_again(finished):
    """Not even if the settings of another suite change."""
    assert evaluation.unscored(finished, scores(finished)) == []
    changed = finished.config.evaluate.model_copy(
        update={"translation": finished.config.evaluate.translation.model_copy(update={"spbleu": False})}
    )
    other = Run(finished.config.model_copy(update={"evaluate": changed}), ProgressReporter())
    assert evaluation.unscored(other, scores(finished)) == []


class Killed(BaseException):
    """Simulates a process that ends without notice."""


class Told(ProgressReporter):
    def __init__(self):
        self.lines: list[str] = []

    def say(self, text):
        self.lines.append(text)


class Killer(ProgressReporter):
    """Kills an evaluation, by default in its second suite."""

    def __init__(self, when: str = "parallel: after"):
        self.when = when

    @contextmanager
    def bar(self, what):
        def progress(done, of):
            if what == self.when:
                raise Killed

        yield progress


def copied(run: Run, folder: Path, *lost: str) -> Run:
    shutil.copytree(run.folder, folder)
    for name in lost:
        (folder / name).unlink()
    return load_run(folder)


def test_a_kill_in_the_second_suite_counts_no_work_twice(finished, tmp_path):
    """Work that both suites share is repeated for the second one only."""
    killed = copied(finished, tmp_path / "killed", "scores.json", "ledger.json")
    with pytest.raises(Killed):
        evaluation.run_evaluate(Run(killed.config, Killer()))
    assert list(scores(killed)["suites"]) == ["xglue"]
    evaluation.run_evaluate(load_run(killed.folder))
    assert scores(killed)["suites"] == scores(finished)["suites"]
    ours, theirs = (json.loads((run.folder / "ledger.json").read_text()) for run in (killed, finished))
    for name in ("tokens_forwarded", "tokens_generated", "flops"):
        assert ours["stages"][0][name] == pytest.approx(theirs["stages"][0][name], rel=1e-9) and name
    assert ours["stages"][0]["tokens_generated"] > 0


def test_a_kill_between_the_sides_leaves_no_scores_of_other_answers(finished, tmp_path):
    """Stopped with fewer items and rerun with all: both sides have all items."""
    run = copied(finished, tmp_path / "killed")
    fewer = run.config.evaluate.model_copy(update={"items": 1})
    killed = Run(run.config.model_copy(update={"evaluate": fewer}), Killer("xglue: after"))

    def asked(phase):
        lines = (run.folder / f"predictions/xglue.{phase}.jsonl").read_text("utf-8").splitlines()
        return [json.loads(line)["id"] for line in lines]

    every = asked("before")
    with pytest.raises(Killed):
        evaluation.run_evaluate(killed)
    assert set(asked("before")) < set(every) == set(asked("after"))
    assert list(scores(run)["suites"]) == ["parallel"]
    evaluation.run_evaluate(run)
    assert asked("before") == asked("after") == every
    assert scores(run)["suites"] == scores(finished)["suites"]


def test_the_summary_does_not_mix_dev_and_test(finished, tmp_path):
    run = copied(finished, tmp_path / "mixed")
    found = scores(run)
    whole = evaluation._summary(run, found)
    assert {task.partition("/")[0] for task in whole["tasks"]} == {"xglue", "parallel"}
    found["suites"]["parallel"]["settings"]["split"] = "test"
    assert {task.partition("/")[0] for task in evaluation._summary(run, found)["tasks"]} == {"xglue"}


def answers_of(run: Run) -> dict[str, bytes]:
    """Return the contents of the files in `predictions/`."""
    folder = run.folder / "predictions"
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_runs_on_one_reference_model_measure_it_once(finished, tmp_path, monkeypatch):
    """A second run has the same scores and files without evaluating its reference model."""
    kept = tmp_path / "kept"
    runs = [copied(finished, tmp_path / name, "scores.json") for name in ("one", "two")]
    for run in runs:
        shutil.rmtree(run.folder / "predictions")
    evaluation.run_evaluate(runs[0], kept)
    measured = suite_scores.score_before
    asked: list[str] = []
    monkeypatch.setattr(
        suite_scores, "score_before", lambda *given: (asked.append(given[2].name), measured(*given))[1]
    )
    evaluation.run_evaluate(runs[1], kept)
    assert asked == []
    for run in runs:
        assert scores(run)["suites"] == scores(finished)["suites"]
        assert answers_of(run) == answers_of(finished)
    (runs[1].folder / "scores.json").unlink()
    other = runs[1].config.evaluate.model_copy(update={"likelihood": ()})
    evaluation.run_evaluate(Run(runs[1].config.model_copy(update={"evaluate": other}), Told()), kept)
    assert asked == ["xglue"]


def test_other_adapters_data_or_limits_are_evaluated_again(finished, tmp_path):
    """Scores belong to the model and the data they were measured with; the batch size does not matter."""
    run = copied(finished, tmp_path / "copy")
    assert evaluation.unscored(run, scores(run)) == []
    settings = run.config.evaluate
    for change, suites in (({"max_new_tokens": 4}, ["xglue", "parallel"]), ({"likelihood": ()}, ["xglue"])):
        changed = settings.model_copy(update=change)
        other = Run(run.config.model_copy(update={"evaluate": changed}), run.reporter)
        assert set(suites) <= set(evaluation.unscored(other, scores(run)))
    loaded = {name: load_suite(name, run.data_root, settings, run.measured) for name in settings.suites}
    assert evaluation.unscored(run, scores(run), loaded) == []
    (item,) = loaded["parallel"].items
    turns = {**item.turns, "en": Turn("Hello")}
    loaded["parallel"] = replace(loaded["parallel"], items=(replace(item, turns=turns),))
    assert evaluation.unscored(run, scores(run), loaded) == ["parallel"]
    state = load_file(run.trained)
    training.save_whole(
        {name: 2 * p for name, p in state.items()}, run.trained, {"families": json.dumps(run.families)}
    )
    assert evaluation.unscored(run, scores(run)) == ["xglue", "parallel"]
    pages = run.config.evaluate.model_copy(update={"suites": ("parallel",)})
    told = Told()
    evaluation.run_evaluate(Run(run.config.model_copy(update={"evaluate": pages}), told))
    assert list(scores(run)["suites"]) == ["parallel"]  # none from the replaced adapters
    assert told.lines == ["xglue was scored with another model or other measures; its scores are dropped"]
    run = load_run(run.folder)
    was = fields_of(scores(finished)["suites"]["parallel"]["signature"])
    now = fields_of(suite_scores.suite_signature(run, loaded["parallel"], None, None))
    assert {name for name in was if was[name] != now[name]} == {"adapters", "data"}


def test_the_terminal_shows_the_official_scores(finished):
    """One row per metric and the overall mean; the other tables work without alignment."""
    found = scores(finished)
    table = official_table(found, "xglue")
    assert [str(cell) for cell in table.columns[0].cells] == ["XNLI", "NC", "QAM", "QG", "overall"]
    assert [str(cell) for cell in table.columns[2].cells] == ["2", "2", "2", "2", ""]
    # Two languages, their mean, and the mean over all tasks; none is mastered.
    assert summary_table(found, "xglue").row_count == 4 and headline(found, "xglue").startswith("xglue: ")


def test_test_items_in_the_training_data_are_found_and_left_out(finished, tmp_path, monkeypatch):
    """A data file contains items of a suite: they are found, and no stage uses them."""
    path: Path = finished.config.evaluate.parallel.path  # type: ignore[assignment]
    texts = {code: {"instruction": f"{code} x", "response": "y"} for code in ("en", "es", "fr", "sw")}
    path.write_text(json.dumps({"id": "1", **texts}) + "\n")
    assert len(parallel_jsonl.read(path)) == 1
    other = {code: {"instruction": f"{code} z", "response": "y"} for code in ("en", "es", "fr")}
    trained = tmp_path / "trained.jsonl"
    trained.write_text(path.read_text() + json.dumps({"id": "2", **other}) + "\n")
    settings_given = (
        *EVALUATE[:2],
        f"run={tmp_path}",
        "evaluate.suites=[parallel]",
        f"evaluate.parallel.path={path}",
        f"data={{type: parallel, path: {trained}}}",
    )
    run, told = Run(load_config(None, settings_given), ProgressReporter()), Told()
    found = checks.leaks(run)
    assert [(leak.suite, leak.id, leak.language, leak.whole, leak.trained) for leak in found] == [
        ("parallel", "1", code, True, ("1", code)) for code in ("en", "es", "fr")
    ]
    assert [e.id for e in run.examples] == [e.id for e in run.english] == ["1", "2"]
    checks.leave_out_leaks(replace(run, reporter=told))
    assert told.lines == [
        "1 training example is left out, as it occurs in the evaluation suites: leaks.json lists its id"
    ]
    assert [e.id for e in run.examples] == [e.id for e in run.english] == ["2"]
    assert checks.leaks(run) == []
    # The search is repeated if the suites change, and only then.
    elsewhere = load_config(None, (*settings_given, "evaluate.suites=[demo]", f"run={tmp_path / 'demo'}"))
    checks.leave_out_leaks(early := Run(elsewhere, ProgressReporter()))
    assert [e.id for e in early.examples] == ["1", "2"]
    changed = elsewhere.model_copy(update={"evaluate": run.config.evaluate})
    later, told = Run(changed, ProgressReporter()), Told()
    # A trained run only gets a warning.
    checks.tell_of_leaks(replace(later, reporter=told))
    later.trained.parent.mkdir(parents=True)
    shutil.copy(finished.trained, later.trained)
    checks.tell_of_leaks(replace(early, reporter=told))
    assert told.lines == []
    checks.tell_of_leaks(replace(later, reporter=told))
    assert told.lines == [
        "Warning: 1 test item occurs in the run's training data, as it was trained with other suites or "
        "items configured; scores may be too high. `isogloss check-leaks` lists them"
    ]
    later.trained.unlink()
    checks.leave_out_leaks(later)
    assert [e.id for e in later.examples] == ["2"]
    monkeypatch.setattr(checks, "_compared", None)
    checks.leave_out_leaks(later)
    # A language that is added later is checked too, though the run is not evaluated in it.
    new = [
        ParallelExample(id, "", {"en": Turn(f"en {id}", "y"), "sw": Turn(f"sw {word}")})
        for id, word in (("3", "x"), ("4", "v"))
    ]
    assert [e.id for e in checks.without_leaks(run, new, ["sw"])] == ["4"]
    # So are its sentence pairs, and what was left out before stays out.
    (tmp_path / "tatoeba").mkdir()
    (tmp_path / "tatoeba/en-sw.tsv").write_text("en\tsw\nother\tsw x\nOne.\tMoja.\n")
    text = load_config(None, (*settings_given, "parallel_text=[{type: tatoeba}]", f"data_root={tmp_path}"))
    run = Run(text, ProgressReporter())
    assert {pair.text for pair in run.pairs(["sw"], "alignment")["sw"]} == {"sw x", "Moja."}
    checks.without_leaks(run, [], ["sw"])
    assert {pair.text for pair in run.pairs(["sw"], "alignment")["sw"]} == {"Moja."}
    assert [e.id for e in run.examples] == ["2"]
    (tmp_path / "leaks.json").write_text("{}")
    with pytest.raises(RunError, match=r"leaks\.json has no left_out; remove it"):
        _ = run.examples


def test_the_page_has_the_official_scores(finished):
    """They are among each suite's facts, whatever measures the suite lacks."""
    page = write_report(finished.folder).read_text("utf-8")
    for name in ("XNLI accuracy", "NC accuracy", "QAM accuracy", "QG bleu"):
        assert name in page
