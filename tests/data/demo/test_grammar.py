"""The demo grammar words every meaning in every language, and each meaning only once."""

import pytest

from isogloss.data.demo.grammar import LANGUAGES, Event, Opinion, check, events, phrases

EVENT = Event("maria", "buy_bread", "market", "monday")


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_phrase_file_words_every_meaning_exactly_once(language):
    """Nothing is missing, superfluous or ambiguous, and every answer stands in its sentence."""
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
    """Word order and agreement come out of the stored phrases."""
    assert phrases(language).event(EVENT) == sentence


def test_a_denied_event_is_worded_with_the_denial():
    """The same template serves the statement and its denial."""
    denied = Event("maria", "buy_bread", "market", "monday", denied=True)
    assert phrases("en").event(denied, "fronted") == "On Monday, Maria did not buy bread at the market."


def test_verbs_agree_with_the_subject_where_the_language_asks_for_it():
    """Russian past tense has a feminine and a masculine form."""
    omar = Event("omar", "buy_bread", "market", "monday")
    assert "купила" in phrases("ru").event(EVENT)
    assert "купил " in phrases("ru").event(omar)


def test_turkish_capitalises_a_dotted_i():
    """A Turkish sentence never begins with a dotless I where an i stood."""
    assert phrases("tr")._sentence("itfaiye geldi.") == "İtfaiye geldi."


def test_there_are_as_many_events_as_the_meanings_allow():
    """12 people, 40 actions, 6 places each and 12 times."""
    assert len(events()) == 12 * 40 * 6 * 12


def test_an_opinion_knows_its_sentiment():
    """The quality alone decides."""
    assert Opinion("soup", "terrible").sentiment == "negative"
    assert phrases("en").opinion(Opinion("soup", "terrible")) == "The soup was terrible."
