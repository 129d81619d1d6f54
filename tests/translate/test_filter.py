"""The filter of translations: what each check detects, by hand."""

import math
from pathlib import Path

import pytest
import yaml

from isogloss.translate import filter as filtering
from isogloss.translate.filter import Limits, chrf, limits_of, reasons, surplus

SW = Limits(ratio=1.0, shortest=-3.0, longest=3.0, foreign=-1.0, ends=True, likeness=0.0)


def found(english, text, code="sw", **more):
    return [str(one) for one in reasons(english, text, code, **{"limits": SW, **more})]


@pytest.mark.parametrize(
    ("english", "text", "code"),
    [
        ("Where is the library?", "Maktaba iko wapi?", "sw"),
        ("Where is the library?", "کتب خانہ کہاں ہے؟", "ur"),
        ("Say hello to {name} at https://a.b/c.", "Msalimie {name} kwenye https://a.b/c.", "sw"),
        ("It costs 1,000.50 dollars.", "Inagharimu dola 1.000,50.", "sw"),
        ("Wake me at seven.", "Niamshe saa 7.", "sw"),  # a word in English, a digit in Swahili
        ("I have 3 children.", "Nina watoto watatu.", "sw"),  # the other way round
        ("It is 25 degrees.", "درجہ حرارت ۲۵ ہے۔", "ur"),
        ("`ls -l`", "`ls -l`", "sw"),  # nothing to translate
        ("- one\n- two", "- moja\n- mbili", "sw"),
    ],
)
def test_good_translations_are_kept(english, text, code):
    assert found(english, text, code, limits=Limits(1.0, -4.0, 4.0, -9.0, True, None)) == []


@pytest.mark.parametrize(
    ("english", "text", "code"),
    [
        ("Red", "Rot", "de"), ("No", "Nein", "de"), ("Yes", "Oui", "fr"), ("Hello", "سلام", "ur"),
        ("Yes", "نعم", "ar"), ("Paris", "Paris", "es"), ("No", "No", "es"), ("Paris", "Paris", "ur"),
    ],
)  # fmt: skip
def test_short_answers_are_kept(english, text, code):
    """The identifier cannot judge them, and some are the same in both languages."""
    assert reasons(english, text, code, response=True) == []


@pytest.mark.parametrize(
    ("text", "response"), [("Wake me up", False), ("I do not know.", True), ("The cat sat on the mat.", True)]
)
def test_a_copied_instruction_or_sentence_is_a_copy(text, response):
    assert [one.check for one in reasons(text, text, "es", response=response)] == ["copy"]


@pytest.mark.parametrize(
    ("english", "text", "reason"),
    [
        ("Where is the library?", "  ", "empty: there is no text"),
        ("Where is the library?", "where is the LIBRARY?", "copy: it is the English text"),
        ("Where is the library?", "کتب خانہ کہاں ہے؟", "language: not written in Latn"),
        ("Where is the big library?", "¿Dónde está la gran biblioteca?", "language: rather es"),
        ("Where is the library?", "Wapi?", "length: 5 characters for 21 in English"),
        ("I am going to town today.", "Leo ninakwenda mjini kwa", "cut off: no final punctuation"),
        ("I am going to town.", "Ninakwenda (mjini sasa.", "cut off: ( is not closed"),
        ("Wake me at 7 tomorrow.", "Niamshe saa 8 kesho asubuhi.", "numbers: 8 in place of 7"),
        ("Wake me tomorrow morning.", "Niamshe saa 8 kesho asubuhi.", "numbers: 8 in place of no number"),
        ("It was 1984 when it began.", "Ulikuwa mwaka ilipoanza hivi.", "numbers: 1984 is missing"),
        ("Say hello to {name} now.", "Msalimie {jina} sasa hivi.", "kept parts: '{name}' is missing"),
        ("Open <b>this</b> now, please.", "Fungua hii sasa, tafadhali nawe.", "kept parts: '<b>' is missing"),
        ("Say hello to them now.", "Msalimie {name} sasa.", "kept parts: '{name}' is not in the English"),
        ("Use %s and %d here, please.", "Tumia %s hapa, tafadhali sana.", "kept parts: '%d' is missing"),
        ("- tea\n- milk", "- chai na maziwa", "kept parts: 1 list items, 2 in English"),
    ],
)  # fmt: skip
def test_faults_are_named(english, text, reason):
    assert reason in found(english, text)


def test_a_very_long_number_is_a_reason():
    """Python converts at most 4,300 digits into a number; leading zeros do not count."""
    long = "7" * 5000
    assert f"numbers: {long} in place of 7" in found("Wake me at 7 tomorrow.", f"Niamshe saa {long}.")
    assert filtering.other_numbers(f"It was {long} then.", "Ilikuwa hivyo.") == f"{long} is missing"
    assert filtering.other_numbers("It was 007.", "Ilikuwa 7.") is None
    assert filtering.other_numbers("It was 0.", "Ilikuwa 00.") is None


def test_repetition_is_detected_if_the_english_has_none():
    text = "Ninapenda chai " * 9
    assert "repetition: 'Ninapenda chai' is repeated" in found("I like tea very much indeed.", text)
    assert not any(r.startswith("repetition") for r in found("I like tea " * 9, text))


def test_back_translations_are_compared_by_characters():
    """Equal texts have 100, texts without a common character 0; a text with another word passes."""
    assert chrf("Close the door.", "Close the door.") == pytest.approx(100)
    assert chrf("abcdef", "ghijkl") == pytest.approx(0, abs=1e-9)
    right, wrong = ("Close the door.", "Shut the door."), ("Close the door.", "He died in 1999.")
    assert reasons("Close the door.", "Funga mlango.", "sw", back=right[1]) == []
    (found,) = reasons("Close the door.", "Funga mlango.", "sw", back=wrong[1])
    assert found.check == "round trip" and found.detail.startswith(
        "back-translation 'He died in 1999.' has chrF "
    )


def test_likeness_only_counts_if_there_is_a_limit():
    pair = "Where is the library?", "Maktaba iko wapi?"
    assert found(*pair, likeness=-0.2) == ["likeness: -0.20, below the minimum of 0.00"]
    assert found(*pair, likeness=-0.2, limits=Limits(1.0, -3.0, 3.0, -1.0, True, None)) == []


def test_a_pattern_of_the_users_must_occur_in_both():
    assert "kept parts: 'ACME' is missing" in found("Call ACME now.", "Piga simu sasa.", keep=["ACME"])


def test_a_pattern_may_match_nothing():
    """An empty match is no part that could be lost, and no letter is set apart by it."""
    pair = "Where is the big library?", "¿Dónde está la gran biblioteca, por favor?"
    assert found(*pair, keep=[r"\d*"]) == found(*pair)


def test_surplus_by_hand():
    """25 characters in English, 40 at twice the length: (20 - 25) / 5."""
    assert surplus("a" * 25, "b" * 40, 2.0) == pytest.approx(-1.0)


def test_swahili_and_urdu_are_distinguished_from_their_neighbours():
    """Other languages of the same script: Spanish and Turkish, Arabic and Persian."""
    for text in ("Quiero comprar dos kilos de carne.", "İki kilo et almak istiyorum."):
        assert filtering.foreignness(text, "sw")[0] < limits_of("sw").foreign
    for text in ("أريد شراء كيلوغرامين من اللحم.", "می‌خواهم دو کیلو گوشت بخرم."):
        assert filtering.foreignness(text, "ur")[0] < limits_of("ur").foreign
    assert filtering.foreignness("Nataka kununua kilo mbili za nyama.", "sw")[1] != "sw"


def test_a_language_without_limits_has_the_widest():
    """The widest of those languages that write spaces, or of those that do not."""
    table = yaml.safe_load((Path(filtering.__file__).parent / "limits.yaml").read_text("utf-8"))
    spaced = [one for code, one in table.items() if code not in ("zh", "ja", "th")]
    assert limits_of("yo").shortest == 2 * min(one["shortest"] for one in spaced)
    assert limits_of("yo").likeness is None
    assert not limits_of("km").ends and math.isclose(
        limits_of("km").longest, 2 * max(table[code]["longest"] for code in ("zh", "ja", "th"))
    )


def test_a_german_quotation_is_closed():
    """Its closing mark is an opening one in English."""
    for text in ("Er sagte „Hallo“ zu ihm.", "Er sagte „Hallo“ und „Tschüss“."):
        assert filtering.cut_off('He said "hello" to him.', text, limits_of("de")) is None
    assert filtering.cut_off('He said "hi".', "Er sagte “Hallo.", limits_of("de")) == "“ is not closed"


@pytest.mark.parametrize(
    ("english", "text"),
    [
        ("at 7:30", "pukul 07.30"), ("on 12/05/2020", "am 12.05.2020"), ("3, 1, 2", "3，1，2"),
        ("50 square metres", "50 m²"), ("1.50", "1,5"), ("1,000,000", "10,00,000"), ("1,000", "1’000"),
    ],
)  # fmt: skip
def test_a_number_in_the_languages_own_format_is_the_same(english, text):
    assert filtering.other_numbers(english, text) is None


def test_a_lost_decimal_point_is_another_number():
    """So is a different minute."""
    assert filtering.other_numbers("It is 1.5.", "Ni 15.") == "15 in place of 1.5"
    assert filtering.other_numbers("at 7:30", "saa 07.31") == "7.31 in place of 7, 30"


def test_parts_beside_letters_without_a_space_are_found():
    english = "Visit https://example.com/docs, then sign in."
    assert filtering.lost_parts(english, "请访问https://example.com/docs，然后登录。", ()) is None
    assert filtering.lost_parts("1. Apple\n2. Pear", "1.苹果\n2.梨", ()) is None
