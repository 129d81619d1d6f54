"""Leaks: what counts as the same text and as a long passage."""

import pytest

from isogloss.data.demo.grammar import LANGUAGES
from isogloss.data.examples import ParallelExample, Turn
from isogloss.data.tasks import massive, pawsx, sib200, translation, xnli
from isogloss.data.tasks.templates import parts_of
from isogloss.evaluate.leaks import Text, find_leaks, leaking, trained_texts

LONG = "one two three four five six seven eight nine ten eleven twelve thirteen"


def said(text: str, language: str = "en", suite: str = "xnli", id: str = "1") -> Text:
    return Text(suite, id, language, text)


@pytest.mark.parametrize(
    ("tested", "trained", "whole"),
    [
        (said("It rained!"), said("it  RAINED"), True),
        (said(f"{LONG} and on"), said(f"so {LONG}."), False),
        (said(LONG, "sw"), said(f"so {LONG}", "fr"), False),  # in any language
        (said("猫" * 29 + "狗猫", "zh"), said("狗" + "猫" * 29 + "狗", "zh"), False),  # 30 characters
        (said("It rained!"), said("It rained today."), None),
        (said(LONG), said(LONG.replace("seven", "7")), None),
        (said("猫" * 28 + "狗", "zh"), said("猫" * 28 + "鱼", "zh"), None),
        (said(f"{LONG} and on", suite="demo"), said(f"so {LONG}"), None),  # one grammar generates all
    ],
)
def test_what_leaks(tested, trained, whole):
    """Case, spaces and punctuation are ignored; twelve words in a row are not a passage."""
    found = find_leaks([tested], [trained])
    assert [leak.whole for leak in found] == ([] if whole is None else [whole])


def test_a_system_prompt_of_most_items_and_many_examples_is_no_leak():
    """It is still one where few training texts have it; what follows it is compared as before."""
    tests = [said(f"{LONG} a{n} apples?", suite="parallel", id=str(n)) for n in range(10)]
    training = [said(f"{LONG} p{n} pears?", id=f"t{n}") for n in range(20)]
    assert find_leaks(tests, training) == []
    assert leaking(tests, training) == []
    asked = said(f"{LONG} a3 apples?", id="same")
    assert [(one.id, one.whole, one.trained[0]) for one in find_leaks(tests, [*training, asked])] == [
        ("3", True, "same")
    ]
    assert leaking(tests, [*training, asked]) == ["same"]
    assert len(leaking(tests, training[:4])) == 4  # in fewer than five
    others = [said(f"short {n}", id=f"o{n}") for n in range(200)]
    assert len(leaking(tests, [*training, *others])) == 20  # in less than a tenth
    half = [said(f"other {n}", suite="parallel", id=f"h{n}") for n in range(10)]
    assert len(leaking([*tests, *half], training)) == 20  # of half of the items only


@pytest.mark.parametrize("items", [1, 2, 3, 50])
def test_a_passage_leaks_however_many_items_share_it(items):
    """All questions about a passage are leaks if the passage is trained on."""
    tests = [said(f"Read this. {LONG} Question {n}?", suite="xquad", id=str(n)) for n in range(items)]
    assert [leak.id for leak in find_leaks(tests, [said(f"{LONG} other")])] == [str(n) for n in range(items)]


def test_the_wording_of_a_task_is_no_leak():
    """Template words with a short hypothesis are no passage; the premise alone is one."""
    premise, other = LONG, LONG.replace("seven", "7").replace("one", "1")
    asked = [xnli.ask("en", one, "It rained.") for one in (premise, other, f"{premise} and on")]
    tested = Text("xnli", "1", "en", asked[0], parts_of("xnli", "en", asked[0]))
    assert tested.parts == (premise.capitalize(), "It rained.")
    apart, same = (Text("", "t", "en", one, parts_of("xnli", "en", one)) for one in asked[1:])
    assert find_leaks([tested], [apart]) == []
    assert [leak.whole for leak in find_leaks([tested], [same, tested])] == [True]
    assert [leak.passage for leak in find_leaks([tested], [same])] == [LONG]
    # The extracted parts are compared whole too, so another suite's wording does not hide a sentence.
    assert parts_of("sib200", "sw", sib200.ask("sw", "Mvua imenyesha.")) == ("Mvua imenyesha.",)
    assert parts_of("xnli", "en", "Something else") == ()


def test_only_a_long_open_answer_can_leak():
    """A label or a short answer may happen to be somebody's whole utterance."""
    label, said_so = "play some music for me in the kitchen", "the cat sat on the mat all day long"
    tests = [said(label, id="1"), said(said_so, id="2"), said("Yes.", id="3")]
    asked = [Turn(f"Question {n}", answer) for n, answer in enumerate((label, said_so.title(), "yes"))]
    closed = ParallelExample("a", "intent", {"en": asked[0]}, {"en": {"play": label}})
    opened = [ParallelExample(id, "chat", {"en": turn}) for id, turn in zip("bc", asked[1:], strict=True)]
    found = find_leaks(tests, trained_texts([closed, *opened]))
    assert [(leak.id, leak.whole, leak.trained) for leak in found] == [("2", True, ("b", "en"))]


@pytest.mark.parametrize("code", LANGUAGES)
def test_every_template_can_be_removed(code):
    """In all fifteen languages, whatever fills the slots."""
    assert parts_of("xnli", code, xnli.ask(code, "A b.", "c d")) == ("A b.", "c d")
    assert parts_of("pawsx", code, pawsx.ask(code, "A b.", "c d")) == ("A b.", "c d")
    assert parts_of("intent", code, massive.ask("intent", code, "a b")) == ("a b",)
    assert parts_of("to_english", code, translation.turn("to_english", code, "x", "a b").instruction) in (
        ("a b",), ("x",),
    )  # fmt: skip


def test_a_leak_is_described_in_one_line():
    """The two texts are the same except for case and punctuation."""
    (leak,) = find_leaks([said(f"{LONG} 2", id="2")], [Text("", "t", "en", f"{LONG} 2!")])
    assert leak.line() == (
        "xnli 2 in en is t in en: one two three four five six seven eight nine ten eleven twelve thirteen 2"
    )
