"""Overview: the short summary of a run; every verdict and figure is a literal."""

import json

import pytest

from isogloss.report.overview import Overview
from isogloss.report.page import write_report
from isogloss.report.table import overview_table, tasks_table

from .conftest import CODES, make_run, make_scores
from .test_page import plain
from .test_table import show

CONSISTENCY = {"es": (0.5, 0.92), "sw": (0.3, 0.6), "th": (0.71, 0.75), "ur": (0.4, 0.85)}


def measure(at, shift=0.0, codes=tuple(CONSISTENCY)):
    """Return a measure of the summary, with intervals of ± 5 points for each language."""
    values = {code: CONSISTENCY[code][at] + shift for code in codes}
    cells = {c: {"value": v, "low": v - 0.05, "high": v + 0.05, "n": 2} for c, v in values.items()}
    mean = sum(values.values()) / len(values)
    return {"mean": mean, "low": mean - 0.02, "high": mean + 0.02, "languages": cells}


def made():
    """Return scores of two suites, one with a mastered task and one without, and their summary."""
    scores = make_scores("massive", "xnli")
    summary = {"tasks": ["massive/scenario", "xnli/xnli"], "mastered": ["massive/scenario"], "low": ["sw"]}
    for at, phase in enumerate(("before", "after")):
        summary[phase] = {
            "consistency_mastered": measure(at), "consistency_all": measure(at, -0.1),
            "alignment_mastered": measure(at, 0.05), "alignment_all": measure(at, -0.05),
            "alignment_low": measure(at, 0.0, ("sw",)), "retrieval": measure(at, 0.05),
            "retrieval_raw": measure(at, -0.2), "fidelity": measure(at, 0.05, ("es", "sw")),
        }  # fmt: skip
        for name, task in (("massive", "scenario"), ("xnli", "xnli")):
            suite = scores["suites"][name]
            suite["languages"] = list(CONSISTENCY)
            suite["tasks"][phase] = {task: {code: pair[at] for code, pair in CONSISTENCY.items()}}
            suite.setdefault("kappa", {})[phase] = {task: dict.fromkeys(CONSISTENCY, 0.2 + at / 4)}
    summary["after"]["retention"] = {"mean": -0.01, "low": -0.02, "high": 0.0}
    gains = {c: (after - before - 0.05, after - before + 0.05) for c, (before, after) in CONSISTENCY.items()}
    gained = {
        code: {"value": (low + high) / 2, "low": low, "high": high} for code, (low, high) in gains.items()
    }
    summary["after"]["consistency_gain"] = {"mean": 0.3, "low": 0.2, "high": 0.4, "languages": gained}
    english = {"accuracy": 0.91, "commonest": 0.2, "rephrased": 0.94, "mastered": True, "items": 105}
    scores["suites"]["massive"]["english"] = {"accuracy": 0.91, "tasks": {"scenario": english}}
    english = {"accuracy": 0.6, "commonest": 0.7, "rephrased": None, "mastered": False, "items": 210}
    scores["suites"]["xnli"]["english"] = {"accuracy": 0.6, "tasks": {"xnli": english}}
    scores["suites"]["massive"]["cut"] = {"before": {}, "after": {"en": 0.0, "es": 0.0, "th": 0.04}}
    return {**scores, "summary": summary}


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("es", "reliable"),
        ("ur", "reliable"),  # 85 % is enough
        ("th", "with care; no gain shown; up to 4.0 % truncated"),  # 4 points more, ± 5
        ("sw", "not to be relied on; 35.0 % not in the language"),
    ],
)
def test_each_language_has_a_verdict(code, says):
    assert Overview(made()).verdict(code).text == says


@pytest.mark.parametrize(
    ("low", "high", "says"),
    [
        (-0.1, -0.01, "reliable; worse than before"),
        (-0.1, 0.0, "reliable; no gain shown"),
        (0.01, 0.1, "reliable"),
    ],
)
def test_a_loss_is_not_only_a_missing_gain(low, high, says):
    scores = made()
    scores["summary"]["after"]["consistency_gain"]["languages"]["es"] = {"value": 0, "low": low, "high": high}
    assert Overview(scores).verdict("es").text == says


def test_without_a_mastered_task_there_is_nothing_to_conclude():
    scores = made()
    scores["summary"]["mastered"] = []
    for phase in ("before", "after"):
        for name in ("consistency_mastered", "alignment_mastered"):
            del scores["summary"][phase][name]
    view = Overview(scores)
    assert view.verdict("es").text == "no conclusion; none of its tasks is mastered in English"
    assert (view.kind, view.counted) == ("all", "0 of 2 tasks mastered in English")
    for phase in ("before", "after"):
        del scores["summary"][phase]["consistency_all"]
    assert Overview(scores).verdict("es").text == "no conclusion; measured by retrieval only"


def test_the_terminal_table_fits_eighty_columns():
    lines = show(overview_table(made()))
    assert lines == [
        "          The run: 1 of 2 tasks mastered in English; before → after, %",
        "language        consistency    retrieval    alignment  conclusion",
        "────────────────────────────────────────────────────────────────────────────────",
        "Spanish         50.0 → 92.0  55.0 → 97.0  55.0 → 97.0  reliable",
        "Urdu            40.0 → 85.0  45.0 → 90.0  45.0 → 90.0  reliable",
        "Thai            71.0 → 75.0  76.0 → 80.0  76.0 → 80.0  with care; no gain shown;",
        "                                                       up to 4.0 % truncated",
        "Swahili         30.0 → 60.0  35.0 → 65.0  35.0 → 65.0  not to be relied on; 35.0",
        "                                                       % not in the language",
        "",
        "mastered tasks  47.8 → 78.0  52.8 → 83.0  52.8 → 83.0",
        "                  76.0–80.0    81.0–85.0    81.0–85.0",
        "all tasks       37.8 → 68.0  52.8 → 83.0  42.8 → 73.0",
        "                  66.0–70.0    81.0–85.0    71.0–75.0",
    ]


def test_tasks_are_listed_with_the_reference_models_english():
    lines = show(tasks_table(made()))
    assert lines[1:] == [
        "task               English  commonest  reworded  consistency     κ  mastered",
        "────────────────────────────────────────────────────────────────────────────",
        "massive: scenario     91.0       20.0      94.0  47.8 → 78.0  45.0  yes",
        "xnli                  60.0       70.0         –  47.8 → 78.0  45.0  no",
    ]


def test_scores_without_a_summary_have_no_overview():
    scores = make_scores("demo")
    assert not Overview(scores) and overview_table(scores) is None


def test_a_mean_is_over_the_languages_that_have_the_measure(tmp_path):
    """One of twelve languages has sentences but no answers, in the summary and in the suite."""
    folder = make_run(tmp_path / "run", "demo")
    scores = make_scores("demo")
    cells = {code: {"value": 0.5, "low": 0.4, "high": 0.6, "n": 2} for code in CODES}
    eleven = {code: one for code, one in cells.items() if code != "vi"}
    one = {"mean": 0.5, "low": 0.4, "high": 0.6}
    side = {
        "alignment_mastered": {**one, "languages": eleven}, "retrieval": {**one, "languages": cells}
    }  # fmt: skip
    scores["summary"] = {"tasks": ["demo/title"], "mastered": ["demo/title"], "before": side, "after": side}
    del scores["suites"]["demo"]["after"]["alignment"]["languages"]["vi"]
    (folder / "scores.json").write_text(json.dumps(scores))
    text = plain(write_report(folder).read_text("utf-8"))
    assert "over mastered tasks: 1 of 1 task mastered in English, 11 languages 50.0 → 50.0 %" in text
    assert "Alignment accuracy, mean over 11 languages" in text


def test_the_page_begins_with_the_run_and_folds_its_suites(tmp_path):
    folder = make_run(tmp_path / "run", "massive", "xnli")
    (folder / "scores.json").write_text(json.dumps(made()))
    page = write_report(folder).read_text("utf-8")
    text = plain(page)
    for part in (
        "Alignment accuracy over mastered tasks: 1 of 2 tasks mastered in English, 4 languages 52.8 → 83.0 %",
        "+30.2 points; interval 81.0–85.0",
        "Alignment accuracy, all tasks 42.8 → 73.0 % consistency alone 37.8 → 68.0",
        "raw cosine 27.7 → 58.0",
        "Alignment, low-resource languages 30.0 → 60.0 % Swahili; all tasks",
        "Retention: English accuracy −1.0 points interval −2.0 to 0.0",
        "71.0 → 75.0 with care no gain shown; up to 4.0 % truncated",
        "mastered massive: scenario 91.0 20.0 94.0 47.8 78.0 +30.2 20.0 45.0",
        "not mastered xnli 60.0 70.0 – 47.8 78.0 +30.2 20.0 45.0",
    ):
        assert part in text
    assert page.index('id="overview"') < page.index('id="suite-1"')
    assert page.count("Languages, tasks, answers and signature of") == 2
