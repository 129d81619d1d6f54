"""Reading: answers as models write them, and the meanings that a person would read."""

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
        ("- alarm set", "alarm set"),
        ("– alarm set", "alarm set"),
        ("—alarm set", "alarm set"),
        ("• alarm set", "alarm set"),
        ("* alarm set", "alarm set"),
        ("alarm_set", "alarm set"),
        ("a_1", "a_1"),
        ("50%", "50%"),
        ("(B)", "b"),
        (" .!? ", ""),
        ("", ""),
    ],
)
def test_normalise_drops_only_what_does_not_change_the_meaning(text, expected):
    """Case, width, quotes, final punctuation and extra spaces are dropped; signs of numbers are kept."""
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
        ("en", "Entailment - it follows", "e"),
        ("en", "**Neutral**\nbecause nothing is said of it", "n"),
        ("en", "entailment / neutral", None),
        ("en", "It is not entailment.", None),  # inside a clause: no longer the option's meaning
        ("en", "entailment or neutral", None),
        ("en", "non-entailment", None),  # another word
        ("en", "entailments", None),
        ("hi", "उत्तर: ना।", "c"),
        ("hi", "नाम", None),
        ("hi", "शायद, पता नहीं", "n"),
        ("hi", "Neutral, ना", "c"),  # the requested language comes first
        ("th", "คำตอบคือใช่ครับ", None),
        ("th", "ใช่ ครับ", None),
        ("zh", "答案：不是。", "c"),
        ("zh", "这是真的", None),
        ("tr", "शायद, पता नहीं", None),  # words of a third language only count as the whole answer
        ("sw", "neutral", "n"),  # a language without wordings of its own
        ("en", "", None),
        ("en", "...", None),
        ("en", "🙂", None),
        ("en", "something else", None),
    ],
)
def test_a_closed_answer_means_one_option_or_none(language, answer, meaning):
    """Wordings of any language count; an answer with two options or none is unreadable."""
    assert read_answer(CLOSED, language, answer) == meaning


@pytest.mark.parametrize(
    ("language", "answer", "meaning"),
    [
        ("en", "A", "0"),
        ("en", "(b)", "1"),
        ("es", "A", "1"),  # the requested language comes first
        ("de", "A", "0"),  # then English
        ("en", "a cat", None),  # an article, not an option
    ],
)
def test_a_single_letter_is_an_option_only_alone(language, answer, meaning):
    """Option letters only count as the whole answer."""
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
    ("code", "task", "said"),
    [
        ("en", "paraphrase", "They are not the same."), ("es", "paraphrase", "No es igual."),
        ("th", "inference", "ไม่เป็นความจริง"), ("tr", "paraphrase", "aynı anlama gelmiyor"),
        ("hi", "paraphrase", "समान अर्थ नहीं है"), ("zh", "paraphrase", "未必相同"),
        ("ar", "inference", "لا أعرف"),
        ("hi", "inference", "पता नहीं"), ("es", "inference", "No está claro"),
        ("bg", "inference", "Може да е така"),
        ("en", "inference", "no way of knowing"), ("ru", "inference", "Не очевидно"),
    ],
)  # fmt: skip
def test_an_option_inside_a_statement_about_it_is_not_read(code, task, said):
    """Negated or part of an idiom, the word may mean anything."""
    item = closed({language: phrases(language).labels(task) for language in ("en", "bg", code)})
    assert read_answer(item, code, said) is None


@pytest.mark.parametrize(
    ("said", "meaning"),
    [
        ("No, es diferente.", None),
        ("No: diferente.", "other"),
        ("Es decir: igual", "same"),
        ("igual, diferente", None),
    ],
)
def test_an_option_in_its_own_clause_is_read(said, meaning):
    item = closed({"es": {"same": "igual", "other": "diferente"}})
    assert read_answer(item, "es", said) == meaning


def test_an_option_of_several_clauses_is_not_read_as_its_first():
    item = closed({"en": {"a": "yes", "b": "yes, always", "c": "no"}})
    assert read_answer(item, "en", "I would say: yes, always.") == "b"
    assert read_answer(item, "en", "I would say: yes.") == "a"


@pytest.mark.parametrize("said", ["- alarm set", "• alarm set", "alarm_set", "Answer: alarm_set"])
def test_a_label_is_read_in_a_list_and_with_underscores(said):
    item = closed({"en": {"alarm_set": "alarm set", "alarm_query": "alarm query"}})
    assert read_answer(item, "en", said) == "alarm_set"
