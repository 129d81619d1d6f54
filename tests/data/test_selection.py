"""Selection: each rule drops what it targets and keeps what only looks like it."""

import json
import time
from pathlib import Path

import pytest

from isogloss.data.examples import ParallelExample, Turn
from isogloss.data.selection import (
    Dropped,
    Selection,
    instruction_following_difficulty,
    keep_best,
    select,
    summary,
    write,
)
from isogloss.data.selection_rules import Duplicates, NearDuplicates, repeated_unit, truncation
from isogloss.errors import ConfigError

WORDS = "one two three four five six seven eight nine ten eleven twelve"
PROSE = "The river rises in the hills above the town. It then flows slowly through the wide valley and"
TEMPLATE = (
    "Read the short note below with care and then tell me in one full sentence what it says about the colour "
    "of the big old house that stands at the very end of our street near the {}"
)


def example(instruction: str, response: str | None = "A good answer.", id: str = "1", task: str = "qa"):
    return ParallelExample(id, task, {"en": Turn(instruction, response)})


def reasons(*examples: ParallelExample) -> list[tuple[str, str]]:
    return [(dropped.reason, dropped.detail) for dropped in select(examples).dropped]


@pytest.mark.parametrize(
    ("instruction", "response", "task", "expected"),
    [
        ("Say hi.", "Hi.", "qa", []),
        ("Say hi.", "42", "qa", []),
        (" ", "Hi.", "qa", [("empty", "no instruction")]),
        ("Say hi.", "\n", "qa", [("empty", "no response")]),
        ("Say hi.", None, "qa", [("empty", "no response")]),
        ("Say hi.", "say  HI.", "qa", [("degenerate", "the response is the instruction")]),
        ("Say hi.", "Say hi.", "copy", []),
        ("Say hi.", "Say hi.", "translation", []),
        ("Talk.", "no " * 20, "qa", [("degenerate", "repeats 'no'")]),
        ("Talk.", "a" * 8_001, "qa", [("degenerate", "8001 characters")]),
        ("Explain.", f"{PROSE} {PROSE}", "qa", [("truncated", "ends in mid-sentence")]),
        ("Say hi.", "Привет.", "qa", [("wrong_language", "response: 0 of 6 letters are Latn")]),
        ("Скажи привет.", "Hi.", "qa", [("wrong_language", "instruction: 0 of 11 letters are Latn")]),
        ("Say hi.", "Привет.", "translation", []),
        ("Say hi.", "√2 ≈ 1.41", "qa", []),
    ],
)
def test_each_rule_drops_what_it_targets(
    instruction: str, response: str | None, task: str, expected: list[tuple[str, str]]
) -> None:
    """The reason is the first rule that an example fails."""
    assert expected == reasons(example(instruction, response, task=task))


def test_another_language_in_the_same_script_is_detected() -> None:
    """German prose is dropped, English prose is kept."""
    german = "Der Fluss entspringt in den Bergen und fließt dann langsam durch das breite Tal zum Meer."
    english = "The river rises in the mountains and then flows slowly through the wide valley to the sea."
    assert reasons(example("Where is it?", german)) == [("wrong_language", "response: de (1.00)")]
    assert reasons(example("Where is it?", english)) == []


def test_an_example_without_english_is_empty() -> None:
    swahili = ParallelExample("1", "qa", {"sw": Turn("Habari?", "Nzuri.")})
    assert reasons(swahili) == [("empty", "no instruction")]


@pytest.mark.parametrize(
    ("text", "unit"),
    [
        ("ha ha ha", None),  # short
        ("the cat sat. " * 6, "the cat sat."),
        ("Sure! " + "哈" * 30, "哈"),
        (
            "| --- | --- | --- |\n| the river | rises in | the hills |\n| it flows | through | a valley |",
            None,
        ),
        (PROSE * 4, None),  # only four times, and the unit is too long
        ("", None),
    ],
)
def test_repetition_over_half_of_a_text_is_found(text: str, unit: str | None) -> None:
    """A unit counts if it fills half the text, with at least five repetitions and twenty characters."""
    assert unit == repeated_unit(text)


LIST = "To save water at home, try:\n- Take short showers in the morning\n- Fix every tap that drips at once"


@pytest.mark.parametrize(
    ("text", "language", "detail"),
    [
        (f"{WORDS} {WORDS}. {WORDS} and then", "en", "ends in mid-sentence"),
        (f"{WORDS} {WORDS}. {WORDS} and,", "en", "ends in ','"),
        (f"{WORDS} {WORDS}. {WORDS} (and so", "en", "ends in an open ("),
        (f'{WORDS} {WORDS}. {WORDS} "and so', "en", 'ends in an open "'),
        ("```python\nprint(1)", "en", "ends in an open code fence"),
        (
            "यह नदी पहाड़ों से निकलती है। " * 3 + "फिर यह घाटी से होकर धीरे धीरे बहती है और",
            "hi",
            "ends in mid-sentence",
        ),
        (f"{WORDS} {WORDS}. {WORDS}.", "en", None),
        (f"{WORDS} {WORDS}. He said: “{WORDS}.”", "en", None),
        (f"{WORDS} {WORDS}. {WORDS} :(", "en", None),
        (f"{WORDS} {WORDS}. {WORDS} #water", "en", None),
        (f"{WORDS} {WORDS}. {WORDS} ❤️", "en", None),
        (f"{WORDS} {WORDS}.\n" + "Fizz 7 8 " * 4 + "Buzz", "en", None),
        (f"{WORDS} {WORDS}.\n```python\nprint(1)\n```", "en", None),
        (f"{WORDS} {WORDS}.\nBest regards,\nJohn", "en", None),
        (f"{LIST}\n- Water the garden in the evening and not at noon", "en", None),
        ("the capital of France", "en", None),
        ("apples, pears, " * 15 + "plums", "en", None),
        ("แม่น้ำไหลผ่านหุบเขา " * 30, "th", None),
        ("", "en", None),
    ],
)
def test_truncation_is_only_detected_at_the_end_of_long_prose(
    text: str, language: str, detail: str | None
) -> None:
    """Short answers, lists, hashtags, letter closings and code may end without a full stop."""
    assert detail == truncation(text, language)


def test_exact_duplicates_ignore_case_width_and_spaces() -> None:
    """The later of two equal examples is dropped; another response makes it a different example."""
    first = example("Say hi.", "Hi.", "a")
    again = example("ｓａｙ  HI.", "hi.\n", "a")  # an equal id changes nothing
    other = example("Say hi.", "Hello.", "c")
    assert Selection((first, other), (Dropped("a", "duplicate", "same as a"),)) == select(
        [first, again, other]
    )


@pytest.mark.parametrize(
    ("instruction", "expected"),
    [
        (TEMPLATE.format("church!"), [("near_duplicate", "1.00 like 1")]),
        ("Please " + TEMPLATE.format("church"), [("near_duplicate", "0.96 like 1")]),
        (TEMPLATE.format("school"), []),
        (TEMPLATE.format("church 2"), []),
        (TEMPLATE.format("church").replace("big", "not big"), []),
        (TEMPLATE.format("church").replace("big old", "old big"), []),
    ],
)
def test_near_duplicates_have_the_same_content_words(
    instruction: str, expected: list[tuple[str, str]]
) -> None:
    """Punctuation and function words may differ; another content word, number or order keeps both."""
    first, second = example(TEMPLATE.format("church")), example(instruction, "Another answer.", "2")
    assert expected == reasons(first, second)


def test_short_instructions_are_never_near_duplicates() -> None:
    """Below twenty words only exact duplicates count."""
    assert reasons(example(WORDS), example(WORDS + "!", "Another answer.", "2")) == []


def test_fifty_thousand_template_items_are_all_kept_within_a_minute() -> None:
    """The items differ in one number."""
    items = [example(TEMPLATE.format(f"house {n}"), f"It is {n}.", str(n)) for n in range(50_000)]
    begin = time.perf_counter()
    same, near = Duplicates(), NearDuplicates()
    assert not any(same(one, one.turns["en"]) or near(one, one.turns["en"]) for one in items)
    assert time.perf_counter() - begin < 60


def test_difficulty_is_the_ratio_of_the_losses() -> None:
    """The loss with the instruction divided by the loss without it, row by row."""
    assert instruction_following_difficulty([1.0, 2.5, 0.0], [2.0, 2.0, 1.0]) == [0.5, 1.25, 0.0]


def test_an_instruction_does_not_help_with_a_response_without_loss() -> None:
    """The base is sure of it without the instruction."""
    assert instruction_following_difficulty([0.0, 2.0], [0.0, 0.0]) == [1.0, 1.0]


@pytest.mark.parametrize(
    ("told", "alone"), [([1.0], []), ([1.0], [-0.1]), ([float("nan")], [1.0]), ([-1.0], [1.0])]
)
def test_difficulty_refuses_invalid_losses(told: list[float], alone: list[float]) -> None:
    """Different lengths, NaN, or a negative loss."""
    with pytest.raises(ValueError):
        instruction_following_difficulty(told, alone)


@pytest.mark.parametrize(
    ("share", "kept"),
    [(0.5, ["b", "d"]), (1.0, ["a", "b", "d", "e"]), (0.25, ["b"]), (0.01, ["b"])],
)
def test_the_hardest_share_below_one_is_kept(share: float, kept: list[str]) -> None:
    """Rows with a ratio of 1 or more are dropped; of the four others the highest are kept, ties in order."""
    examples = [example("Q", id=id) for id in "abcde"]
    selection = keep_best(examples, [0.2, 0.9, 1.0, 0.9, 0.3], share)
    assert kept == [one.id for one in selection.kept]
    assert Dropped("c", "instruction_does_not_help", "ratio 1.000") in selection.dropped


def test_nothing_is_kept_where_no_instruction_helps() -> None:
    """Every ratio is 1 or above."""
    assert keep_best([example("Q")], [1.5], 0.5).kept == ()


@pytest.mark.parametrize("share", [0.0, 1.1, float("nan")])
def test_an_impossible_share_is_refused(share: float) -> None:
    with pytest.raises(ConfigError) as caught:
        keep_best([], [], share)
    assert f"share is {share}; it must be above 0 and at most 1" == str(caught.value)


def test_summary_counts_in_the_order_of_the_rules() -> None:
    """Each reason that occurred is listed once."""
    dropped = [Dropped("1", "duplicate", ""), Dropped("2", "empty", ""), Dropped("3", "duplicate", "")]
    assert list(summary(Selection((), tuple(dropped))).items()) == [("empty", 1), ("duplicate", 2)]


def test_selection_is_written_as_json_lines(tmp_path: Path) -> None:
    """One line per example, kept ones before dropped ones."""
    write(select([example("Say hi.", "", "é"), example("Say ho.", id="2")]), tmp_path / "s.jsonl")
    assert [json.loads(line) for line in (tmp_path / "s.jsonl").read_text(encoding="utf-8").splitlines()] == [
        {"id": "2", "kept": True},
        {"id": "é", "kept": False, "reason": "empty", "detail": "no response"},
    ]
