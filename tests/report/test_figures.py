"""Formatting of figures; every expected text is a literal."""

import math

import pytest

from isogloss.report import figures


@pytest.mark.parametrize(
    ("fraction", "text"), [(0.6304, "63.0"), (1, "100.0"), (0.0, "0.0"), (None, "–"), (math.nan, "–")]
)
def test_a_fraction_is_written_in_per_cent(fraction, text):
    assert figures.percent(fraction) == text


@pytest.mark.parametrize(
    ("difference", "text"),
    [(0.218, "+21.8"), (-0.004, "−0.4"), (0.0, "0.0"), (-0.0001, "0.0"), (0.0002, "0.0"), (None, "–")],
)
def test_a_difference_is_written_in_points_with_its_sign(difference, text):
    assert figures.points(difference) == text


def test_an_interval_needs_both_of_its_ends():
    assert figures.interval(0.615, 0.644) == "61.5–64.4"
    assert figures.interval_of_points(-0.011, 0.003) == "−1.1 to +0.3"
    assert figures.interval(0.615, None) == ""


@pytest.mark.parametrize(
    ("number", "unit", "text"),
    [
        (0, "", "0"),
        (3296, "", "3,296"),
        (12_345_678, "", "12.3 M"),
        (999_700, "", "1.00 M"),
        (9.21e14, "FLOP", "921 TFLOP"),
        (5e21, "FLOP", "5000 EFLOP"),
        (None, "", "–"),
    ],
)
def test_a_count_keeps_three_digits(number, unit, text):
    assert figures.count(number, unit) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (4.2, "4.2 s"),
        (59.6, "1 min 0 s"),
        (48, "48 s"),
        (1246.4, "20 min 46 s"),
        (3599.9, "1 h 0 min"),
        (11_520, "3 h 12 min"),
    ],
)
def test_a_duration_is_written_in_its_two_largest_units(seconds, text):
    assert figures.duration(seconds) == text


def test_bytes_are_written_in_binary_units():
    assert figures.size(2_254_857_830) == "2.10 GiB"
    assert figures.size(52_428_800) == "50 MiB"


@pytest.mark.parametrize(
    ("number", "text"),
    [(0.01234, "0.0123"), (0, "0"), (0.00015, "1.5e−4"), (1200, "1,200"), (-2.5, "−2.5"), (999.6, "1,000")],
)
def test_an_axis_has_short_numbers(number, text):
    assert figures.short(number) == text
