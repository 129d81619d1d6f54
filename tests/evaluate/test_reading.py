"""Reading: answers as models give them, and the meanings that a person would read."""

import pytest

from isogloss.data.demo.grammar import phrases
from isogloss.data.examples import Turn
from isogloss.data.reading import REFERENCE, normalise, read_answer
from isogloss.evaluate.items import Item

CLOSED = Item(
    id="1",
    task="nli",
    turns={"en": Turn("?"), "tr": Turn("?"), "hi": Turn("?"), "th": Turn("?"), "zh": Turn("?")},
    options={
        "en": {"e": "entailment", "n": "neutral", "c": "not entailment"},
        "tr": {"e": "Işık", "n": "belki", "c": "hayır"},
        "hi": {"e": "हाँ", "n": "शायद", "c": "ना"},
        "th": {"e": "ใช่", "n": "อาจจะ", "c": "ไม่ใช่"},
        "zh": {"e": "是", "n": "也许", "c": "不是"},
    },
)
LETTERS = Item(
    "2",
    "choice",
    {"en": Turn("?")},
    options={"en": {"0": "A", "1": "B"}, "fr": {"0": "A", "1": "B"}, "es": {"0": "B", "1": "A"}},
)


def closed(options: dict[str, dict[str, str]]) -> Item:
    return Item("5", "x", {code: Turn("?") for code in options}, options=options)


OPEN = Item("3", "open", {"en": Turn("?", "Paris."), "ur": Turn("?", "پیرس۔"), "sw": Turn("?")})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  “Yes.”  ", "yes"),
        ("**Yes!**", "yes"),
        ("¿Sí?", "sí"),
        ("हाँ।", "हाँ"),
        ("ہاں۔", "ہاں"),
        ("نعم؟", "نعم"),
        ("ναι;", "ναι"),
        ("是的。", "是的"),
        ("「はい」", "はい"),
        ("ＹＥＳ", "yes"),
        ("Straße", "strasse"),
        ("HAYIR", "hayir"),
        ("hayır", "hayir"),
        ("İyi", "iyi"),
        ("a \n\t b", "a b"),
        ("\u200fنعم\u200e", "نعم"),
        ("-5.", "-5"),
        ("50%", "50%"),
        ("(B)", "b"),
        (" .!? ", ""),
        ("", ""),
    ],
)
def test_normalise_drops_only_what_does_not_change_the_meaning(text, expected):
    """Case, width, quotes, end punctuation and spaces go; signs of numbers stay."""
    assert normalise(text) == expected


@pytest.mark.parametrize(
    ("language", "answer", "meaning"),
    [
        ("en", "Entailment.", "e"),
        ("en", "not entailment", "c"),
        ("tr", "IŞIK", "e"),
        ("tr", "ışık", "e"),
        ("tr", "Neutral", "n"),  # wrong language, same meaning
        ("tr", "शायद", "n"),
        ("en", "The answer is: neutral, I think", "n"),
        ("en", "It is not entailment.", "c"),  # the longer wording hides the one inside it
        ("en", "entailment or neutral", None),
        ("en", "non-entailment", None),  # another word
        ("en", "entailments", None),
        ("hi", "उत्तर: ना।", "c"),
        ("hi", "नाम", None),  # ना is not a word of its own here: म follows
        ("hi", "नाँ", None),  # nor here, where a vowel sign follows
        ("th", "คำตอบคือไม่ใช่ครับ", "c"),
        ("th", "คำตอบคือใช่ครับ", "e"),
        ("zh", "答案不是。", "c"),
        ("zh", "也许是", "n"),  # 是 is the commonest verb
        ("sw", "neutral", "n"),  # a language without wordings of its own
        ("en", "", None),
        ("en", "...", None),
        ("en", "🙂", None),
        ("en", "something else", None),
    ],
)
def test_a_closed_answer_means_one_option_or_none(language, answer, meaning):
    """The wording decides, in whichever language; two options or none are unreadable."""
    assert read_answer(CLOSED, language, answer) == meaning


@pytest.mark.parametrize(
    ("language", "answer", "meaning"),
    [
        ("en", "A", "0"),
        ("en", "(b)", "1"),
        ("es", "A", "1"),  # the asked language goes first
        ("de", "A", "0"),  # then English
        ("en", "a cat", None),  # an article, not an option
    ],
)
def test_a_single_letter_is_an_option_only_alone(language, answer, meaning):
    """Option letters are read when they are the whole answer."""
    assert read_answer(LETTERS, language, answer) == meaning


def test_one_wording_of_two_options_is_unreadable():
    """A wording that stands for two options decides nothing."""
    item = Item("4", "x", {"en": Turn("?")}, options={"en": {"a": "bank", "b": "Bank"}, "fr": {"a": "bank"}})
    assert read_answer(item, "en", "bank") is None


@pytest.mark.parametrize(
    ("language", "answer", "meaning"),
    [
        ("en", "paris", REFERENCE),
        ("ur", "پیرس", REFERENCE),
        ("en", "Lyon!", "lyon"),
        ("sw", "Paris", "paris"),  # no reference response
        ("en", " . ", None),
    ],
)
def test_an_open_answer_is_the_reference_or_its_own_words(language, answer, meaning):
    """Only the reference response of the same language is the reference."""
    assert read_answer(OPEN, language, answer) == meaning


@pytest.mark.parametrize(
    ("code", "options", "said"),
    [
        ("en", {"same": "the same", "other": "different"}, "not the same"),
        ("de", {"same": "gleich", "other": "verschieden"}, "Sie sind nicht gleich."),
        ("ru", {"same": "совпадает", "other": "отличается"}, "не совпадает"),
        ("ar", {"same": "متطابق", "other": "مختلف"}, "غير متطابق"),
        ("tr", {"same": "aynı", "other": "farklı"}, "aynı değil"),
        ("hi", {"same": "समान", "other": "अलग"}, "वे समान नहीं हैं"),
        ("vi", {"yes": "đúng", "no": "sai"}, "không đúng"),
        ("th", {"yes": "จริง", "no": "เท็จ"}, "ไม่จริง"),
        ("zh", {"yes": "是", "no": "否"}, "这是真的"),  # 是 is the commonest verb
        ("zh", {"same": "相同", "other": "有别"}, "不相同"),
    ],
)
def test_a_wording_that_is_negated_is_not_what_is_said(code, options, said):
    """Nor its opposite: a task may have more than two."""
    item = closed({code: options})
    assert read_answer(item, code, said) is None
    for meaning, wording in options.items():
        assert read_answer(item, code, wording) == meaning


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("en", "They are not the same."), ("en", "They aren't the same."), ("en", "It isn't different."),
        ("es", "No es igual."), ("bg", "Не е еднакво."), ("el", "Δεν είναι ίδιο."), ("zh", "不完全相同。"),
        ("zh", "没有不同"), ("th", "ไม่แตกต่างกัน"), ("sw", "Hakuna tofauti."),
    ],
)  # fmt: skip
def test_a_word_between_does_not_hide_the_negation(code, said):
    """With the labels that ship: an article or a verb stands between nearly always."""
    assert read_answer(closed({code: phrases(code).labels("paraphrase")}), code, said) is None


def test_an_answer_that_denies_and_goes_on_is_read():
    item = closed({"es": {"same": "igual", "other": "diferente"}, "zh": {"same": "是", "other": "否"}})
    assert read_answer(item, "es", "No, es diferente.") == "other"
    assert read_answer(item, "es", "No, diferente.") == "other"
    assert read_answer(item, "zh", "否，因为前提不同") == "other"
