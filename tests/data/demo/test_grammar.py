"""The demo grammar has exactly one wording per language for every meaning."""

import pytest

from isogloss.data.demo.grammar import LANGUAGES, Event, Opinion, check, events, phrases

EVENT = Event("maria", "buy_bread", "market", "monday")


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_phrase_file_covers_every_meaning_exactly_once(language):
    """Nothing is missing, superfluous or ambiguous, and every answer occurs in its sentence."""
    assert check(language) == []


@pytest.mark.parametrize(
    ("language", "sentence"),
    [
        ("en", "Maria bought bread at the market on Monday."),
        ("de", "Maria hat am Montag auf dem Markt Brot gekauft."),
        ("sw", "Maria alinunua mkate sokoni siku ya Jumatatu."),
        ("tr", "Maria pazartesi günü pazarda ekmek aldı."),
        ("zh", "玛丽亚星期一在市场买了面包。"),
    ],
)
def test_a_sentence_reads_as_a_speaker_would_write_it(language, sentence):
    """Word order and agreement come from the stored phrases."""
    assert phrases(language).event(EVENT) == sentence


def test_a_denied_event_is_negated():
    """The same template serves the statement and its negation."""
    denied = Event("maria", "buy_bread", "market", "monday", denied=True)
    assert phrases("en").event(denied, "fronted") == "On Monday, Maria did not buy bread at the market."


def test_verbs_agree_with_the_subject_where_the_language_requires_it():
    """The Russian past tense has a feminine and a masculine form."""
    omar = Event("omar", "buy_bread", "market", "monday")
    assert "купила" in phrases("ru").event(EVENT)
    assert "купил " in phrases("ru").event(omar)


def test_turkish_capitalises_a_dotted_i():
    """A Turkish sentence never begins with a dotless I in place of a dotted one."""
    assert phrases("tr")._sentence("itfaiye geldi.") == "İtfaiye geldi."


def test_there_are_as_many_events_as_the_meanings_allow():
    """12 people, 40 actions with 6 places each, and 12 times."""
    assert len(events()) == 12 * 40 * 6 * 12


def test_an_opinion_has_a_sentiment():
    """The quality alone decides it."""
    assert Opinion("soup", "terrible").sentiment == "negative"
    assert phrases("en").opinion(Opinion("soup", "terrible")) == "The soup was terrible."
