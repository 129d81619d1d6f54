"""Table: what the terminal shows, character by character."""

import io

import pytest
from rich.console import Console

from isogloss.errors import RunError
from isogloss.report import headline, summary_table

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
    del scores["suites"]["demo"]["before"]["accuracy"]["languages"]["sw"]
    scores["suites"]["demo"]["after"].pop("retrieval")
    scores["suites"]["demo"]["before"].pop("retrieval")
    assert show(summary_table(scores, "demo"))[10].split()[:6] == [
        "Swahili",
        "12.2",
        "→",
        "40.7",
        "–",
        "21.2",
    ]


def test_an_unknown_suite_is_refused_with_those_there_are():
    with pytest.raises(RunError, match=r"scores\.json has no suite 'flores'; it has demo, massive"):
        headline(make_scores("demo", "massive"), "flores")
