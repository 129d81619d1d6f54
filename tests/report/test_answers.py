"""Answers: the ten that are shown depend on the files only."""

from collections import Counter

from isogloss.report.answers import chosen, cut, pairs, tally

from .conftest import make_predictions


def row(identity, language, consistent, task="t"):
    return {"id": identity, "language": language, "task": task, "consistent": consistent}


def test_a_pair_needs_the_same_item_in_the_same_language():
    found = pairs([row("1", "sw", False), row("2", "sw", True)], [row("1", "sw", True), row("2", "ur", True)])
    assert [(pair.language, pair.after["id"], pair.verdict) for pair in found] == [("sw", "1", "mended")]


def test_verdicts_compare_agreement_before_and_after():
    before = [row(i, "sw", i in "kl") for i in "mkls"]
    after = [row(i, "sw", i in "mk") for i in "mkls"]
    expected = [("mended", 1), ("still wrong", 1), ("kept", 1), ("lost", 1)]
    assert tally(pairs(before, after)) == expected


def test_ten_answers_mix_verdicts_and_spread_over_languages_and_tasks():
    ten = chosen(pairs(make_predictions(0), make_predictions(1)))
    assert Counter(pair.verdict for pair in ten) == {"mended": 4, "still wrong": 3, "kept": 2, "lost": 1}
    assert len({pair.language for pair in ten}) == 10
    assert sorted(Counter(pair.task for pair in ten).values()) in ([3, 3, 4], [2, 4, 4])


def test_the_choice_does_not_depend_on_the_order_of_the_file():
    found = pairs(make_predictions(0), make_predictions(1))
    assert chosen(found) == chosen(list(reversed(found)))


def test_a_missing_verdict_gives_its_places_to_the_others():
    before = [row(str(i), "sw", False) for i in range(12)]
    after = [row(str(i), "sw", True) for i in range(12)]
    assert [pair.verdict for pair in chosen(pairs(before, after))] == ["mended"] * 10


def test_fewer_than_ten_answers_are_all_shown():
    assert len(chosen(pairs([row("1", "sw", True)], [row("1", "sw", True)]))) == 1


def test_a_long_text_is_cut_and_says_so():
    assert cut("a" * 802) == "a" * 800 + "… (2 more characters)"
    assert cut(None) == ""
