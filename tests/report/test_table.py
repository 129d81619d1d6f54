"""The terminal's table, character by character."""

import io

import pytest
from rich.console import Console

from isogloss.errors import RunError
from isogloss.report.table import headline, summary_table

from .conftest import make_scores


def show(table, width=80):
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(table)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def test_the_table_fits_eighty_columns_and_cuts_nothing():
    lines = show(summary_table(make_scores("demo"), "demo"))
    assert "…" not in "".join(lines)
    assert lines[1] == "language    consistency    retrieval    alignment     accuracy      fidelity"
    assert lines[10] == "Swahili     12.2 → 40.7  30.2 → 58.7  21.2 → 49.7  16.2 → 44.7   46.2 → 74.7"


def test_the_last_row_is_the_mean_with_its_interval():
    lines = show(summary_table(make_scores("demo"), "demo"))
    assert lines[-2:] == [
        "mean        33.1 → 53.7  51.1 → 71.7  42.1 → 62.7  37.1 → 57.7   67.1 → 87.7",
        "              52.5–54.9    70.5–72.9    61.5–63.9    56.5–58.9     86.5–88.9",
    ]


def test_names_from_the_file_are_not_markup():
    scores = make_scores("[bold]x[/nope]")
    assert "[bold]x[/nope]: before → after, %" in show(summary_table(scores, "[bold]x[/nope]"))[0]


def test_the_headline_is_one_sentence():
    assert headline(make_scores("demo"), "demo") == (
        "demo: alignment accuracy 42.1 → 62.7 % (interval 61.5–63.9); worst language Swahili 49.7 %; "
        "fidelity 67.1 → 87.7 %; English accuracy −0.4 points"
    )


def test_a_language_without_a_value_keeps_its_row():
    scores = make_scores("demo")
    for phase in ("before", "after"):
        del scores["suites"]["demo"][phase]["retrieval"]["languages"]["sw"]
    assert show(summary_table(scores, "demo"))[10] == (
        "Swahili     12.2 → 40.7            –  21.2 → 49.7  16.2 → 44.7   46.2 → 74.7"
    )


def test_a_measure_that_the_suite_lacks_has_no_column_and_is_not_its_headline():
    scores = make_scores("massive")
    for phase in ("before", "after"):
        for name in ("retrieval", "retrieval_strict", "retrieval_margin", "alignment", "fidelity"):
            del scores["suites"]["massive"][phase][name]
    assert show(summary_table(scores, "massive"))[1] == "language    consistency     accuracy"
    assert headline(scores, "massive") == (
        "massive: consistency 33.1 → 53.7 % (interval 52.5–54.9); English accuracy −0.4 points"
    )


def test_a_suite_with_only_its_own_metric_has_it_as_headline():
    official = {"to_english": {"chrf": {"mean": 0.3, "languages": {"sw": 0.3}}}}
    after = {"to_english": {"chrf": {"mean": 0.44, "languages": {"sw": 0.44}}}}
    suite = {
        "languages": ["sw"], "before": {}, "after": {},
        "official": {"before": {"tasks": official}, "after": {"tasks": after}},
    }  # fmt: skip
    assert headline({"suites": {"translation": suite}}, "translation") == (
        "translation: to_english chrf 30.0 → 44.0 %"
    )


def test_corrected_and_raw_values_are_in_a_column_if_there_is_room_else_in_the_headline():
    def measure(value):
        return {"mean": value, "languages": {"sw": {"value": value}}}

    sides = {
        "before": {"consistency": measure(0.5), "consistency_kappa": measure(0.25)},
        "after": {"consistency": measure(0.75), "consistency_kappa": measure(0.5)},
    }
    scores = {"suites": {"xnli": {"languages": ["sw"], **sides}}}
    assert show(summary_table(scores, "xnli"))[1] == "language  consistency            κ"
    full = make_scores("demo")
    for side, value in (("before", 0.2), ("after", 0.4)):
        full["suites"]["demo"][side]["retrieval_raw"] = measure(value)
    assert "raw" not in show(summary_table(full, "demo"))[1]
    assert "retrieval, raw cosine 20.0 → 40.0 %" in headline(full, "demo")


def test_means_over_tasks_are_shown_below_the_mean_over_items():
    scores = make_scores("demo")
    for side, values in (("before", (0.4, 0.3)), ("after", (0.9, 0.7))):
        for kind, value in zip(("mastered", "all"), values, strict=True):
            scores["suites"]["demo"][side] |= {
                f"consistency_{kind}": {"mean": value}, f"alignment_{kind}": {"mean": value + 0.05},
            }  # fmt: skip
    lines = show(summary_table(scores, "demo"))
    assert lines[-2:] == [
        "mastered tasks  40.0 → 90.0               45.0 → 95.0",
        "all tasks       30.0 → 70.0               35.0 → 75.0",
    ]


def test_an_unknown_suite_is_refused_with_the_available_ones():
    with pytest.raises(RunError, match=r"scores\.json has no suite 'flores'; it has demo, massive"):
        headline(make_scores("demo", "massive"), "flores")
