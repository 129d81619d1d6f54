"""Leaks: what counts as the same text and as a long passage."""

import pytest

from isogloss.evaluate.leaks import Text, find_leaks

LONG = "one two three four five six seven eight nine ten eleven twelve thirteen"


def said(text: str, language: str = "en", suite: str = "xnli", id: str = "1") -> Text:
    return Text(suite, id, language, text)


@pytest.mark.parametrize(
    ("tested", "trained", "whole"),
    [
        (said("It rained!"), said("it  RAINED"), True),
        (said(f"{LONG} and on"), said(f"so {LONG}."), False),
        (said(LONG, "sw"), said(f"so {LONG}", "fr"), False),  # any language
        (said("猫" * 29 + "狗猫", "zh"), said("狗" + "猫" * 29 + "狗", "zh"), False),  # 30 letters
        (said("It rained!"), said("It rained today."), None),
        (said(LONG), said(LONG.replace("seven", "7")), None),
        (said("猫" * 28 + "狗", "zh"), said("猫" * 28 + "鱼", "zh"), None),
        (said(f"{LONG} and on", suite="demo"), said(f"so {LONG}"), None),  # one grammar makes all
    ],
)
def test_what_leaks(tested, trained, whole):
    """Case, blanks and punctuation do not hide a text; twelve words in a row are no passage."""
    found = find_leaks([tested], [trained])
    assert [leak.whole for leak in found] == ([] if whole is None else [whole])


def test_what_a_suite_says_in_every_item_is_no_leak():
    """Two items with a passage leak, three have it as their wording; a whole text of theirs still leaks."""
    tests = [said(f"{LONG} {n}", id=str(n)) for n in range(3)]
    assert find_leaks(tests, [said(f"{LONG} other")]) == []
    assert len(find_leaks(tests[:2], [said(f"{LONG} other")])) == 2
    (leak,) = find_leaks(tests, [Text("", "t", "en", f"{LONG} 2!")])
    assert leak.line() == (
        "xnli 2 in en is t in en: one two three four five six seven eight nine ten eleven twelve thirteen 2"
    )
