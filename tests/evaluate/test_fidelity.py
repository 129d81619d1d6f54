"""Language fidelity: short answers judged by hand, and the detector's error on FLORES-101 dev."""

import os
import unicodedata
from pathlib import Path

import pytest

from isogloss.evaluate.fidelity import (
    by_word,
    detect,
    guess,
    in_language,
    tells_languages_apart,
)
from isogloss.languages import languages
from isogloss.languages.scripts import SCRIPTS

MAIN = ("ar", "bg", "de", "el", "en", "es", "fr", "hi", "ru", "sw", "th", "tr", "ur", "vi", "zh")
DATA = Path(os.environ.get("ISOGLOSS_DATA") or Path(__file__).parents[3] / "shared" / "data")
FLORES = DATA / "flores101_dataset" / "dev"
ENGLISH = "The weather is going to be very nice tomorrow."
SWAHILI = "Hali ya hewa itakuwa nzuri sana kesho."


@pytest.mark.parametrize(
    ("text", "language"),
    [
        (ENGLISH, "en"),
        (SWAHILI, "sw"),
        ("Das Wetter wird morgen sehr schön sein.", "de"),
        ("Hava yarın çok güzel olacak.", "tr"),
        ("Утре времето ще бъде много хубаво.", "bg"),
        ("Завтра погода будет очень хорошая.", "ru"),
        ("سيكون الطقس جميلا جدا غدا.", "ar"),
        ("کل موسم بہت اچھا ہو گا۔", "ur"),
        ("ναι", "el"),  # identified by its script, however short
        ("हाँ", "hi"),
        ("ใช่", "th"),
        ("是", "zh"),
        ("Apple ने iPhone को बाज़ार में उतारा है", "hi"),
        ("yes", None),  # too short to tell Latin-script languages apart
        ("да", None),
        ("한국어", None),  # no candidate has this script
        ("42", None),
        ("", None),
    ],
)
def test_the_detector_names_the_language_or_none(text, language):
    """The script first, then the language identifier, and no guess for a short text."""
    assert detect(text, MAIN) == language


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("добрый", "ru"),  # cannot be English, so the likeliest, however short
        ("какъв", "bg"),
        ("مرحبا", "ar"),
        ("ہیلو", "ur"),
        ("danke schön", "de"),  # Latin: from six letters on
        ("günaydın", "tr"),
        ("hello", None),
        ("danke", None),
        ("한국어", None),
        ("42", None),
    ],
)
def test_the_likeliest_language_of_a_short_instruction_is_guessed(text, language):
    """Only texts under six letters that could be English stay undecided."""
    assert guess(text, MAIN) == language
    assert detect(text, MAIN) is None


def test_simplified_and_traditional_are_told_apart():
    """By characters that only one of them uses, as the language identifier does not distinguish them."""
    assert detect("这个国家的语言说明书", ["zh", "zh-Hant", "en"]) is None  # under 12 letters
    assert detect("这个国家的语言说明书很难读懂吗", ["zh", "zh-Hant", "en"]) == "zh"
    assert detect("這個國家的語言說明書很難讀懂嗎", ["zh", "zh-Hant", "en"]) == "zh-Hant"


def test_kana_identifies_japanese_among_han_scripts():
    """Japanese sentences are mostly kana, which Chinese does not use."""
    assert detect("ありがとう", ["ja", "zh"]) == "ja"


def test_a_language_unknown_to_the_identifier_is_not_mistaken_for_its_neighbour():
    """The identifier has no label for Kamba: a Kamba text is not called Swahili, a Swahili text still is."""
    kamba = "Nĩtonya kũkwatya ũvoo ũsu nũndũ wa mũndũ ũla wĩ vaa ĩndĩ ĩĩ"
    assert detect(kamba, ["kam", "sw"]) is None
    assert in_language(kamba, "kam", candidates=["kam", "sw"])
    assert detect(SWAHILI, ["kam", "sw"]) == "sw"
    assert not in_language(SWAHILI, "kam", candidates=["kam", "sw"])


KNOWN = {"en": ["yes", "no"], "es": ["sí", "no"], "sw": ["ndiyo", "hapana"], "xx": ["zzz"]}


@pytest.mark.parametrize(
    ("text", "language", "expected"),
    [
        ("Ndiyo.", "sw", True),
        ("Yes!", "sw", False),
        ("No", "es", None),  # a word in both languages
        ("no", "en", None),
        ("sí", "es", True),
        ("no", "sw", False),
        ("maybe", "sw", None),  # short and unknown: it could be English
        ("zzz", "sw", None),  # only known in a language that is not a candidate
        ("weather query", "tr", False),  # an English label, long enough for the identifier …
        ("weather", "tr", None),  # … and too short
        ("погода", "ru", True),  # English does not use that script
        ("I do not know", "sw", None),
        ("a red car", "sw", None),
        ("да", "sw", False),
        ("ναι", "sw", False),
        (ENGLISH, "sw", False),
        (SWAHILI, "sw", True),
        ("42", "sw", None),
        ("४२", "hi", None),
        ("", "sw", False),
        ("...", "sw", False),
        ("🙂", "sw", False),
        ("-", "sw", False),
    ],
)
def test_an_answer_is_in_the_requested_language_or_not(text, language, expected):
    """Known wordings, then the detector, then the script; None if it could also be English."""
    assert in_language(text, language, candidates=MAIN, known=KNOWN) is expected


def test_the_requested_language_counts_as_a_candidate():
    """It need not be among the given candidates."""
    assert in_language(SWAHILI, "sw", candidates=["en"])
    assert not in_language(ENGLISH, "sw", candidates=["en"])


@pytest.mark.parametrize(
    ("known", "language", "tells"),
    [
        ({"en": ["alarm set", "news"], "tr": ["alarm set", "news"]}, "en", False),  # MASSIVE: English labels
        ({"en": ["alarm set", "news"], "tr": ["Alarm set.", "News"]}, "tr", False),
        ({"en": ["yes", "no"], "es": ["sí", "no"]}, "es", True),  # one of two labels is only in this language
        ({"en": ["Paris"], "fr": ["Paris"]}, "fr", False),
        ({"en": ["At the market."]}, "en", True),  # a translation into English
        ({}, "sw", True),  # an open question has no known wordings
    ],
)
def test_answers_with_the_same_words_in_all_languages_are_not_judged(known, language, tells):
    """Neither right labels nor long wrong answers count: otherwise only the wrong ones would."""
    assert tells_languages_apart(language, candidates=MAIN, known=known) is tells


@pytest.mark.parametrize(
    ("text", "language", "share"),
    [
        ("यह एक good उदाहरण है", "hi", 0.8),
        ("это iPhone-смартфон 15", "ru", 1.0),  # 8 of 14 letters are Cyrillic; 15 is not a word
        ("yes да", "en", 0.5),
        ("ใช่ ok", "th", 0.6),  # letters: ใ ช and the tone mark, then o k
        ("我喜欢ABC", "zh", 0.5),
        ("42", "hi", 1.0),
        ("", "hi", 0.0),
        ("?!", "th", 0.0),
    ],
)
def test_words_are_judged_by_script(text, language, share):
    """The share of words in the script, or of letters if the script does not separate words."""
    assert by_word(text, language) == pytest.approx(share)


def test_every_script_of_the_registry_is_known():
    """Each language's own name is written in its script."""
    assert {entry.script for entry in languages().values()} <= SCRIPTS.keys()
    for entry in languages().values():
        heads = {unicodedata.name(c).split()[0] for c in entry.autonym if unicodedata.category(c) == "Lo"}
        assert heads <= SCRIPTS[entry.script] or entry.code == "ja", entry.code


def test_an_unknown_language_is_refused():
    """An unknown code among the candidates is a mistake of the caller."""
    with pytest.raises(KeyError, match="swahili"):
        detect(SWAHILI, ["swahili", "en"])


@pytest.mark.data
@pytest.mark.skipif(not FLORES.is_dir(), reason=f"no FLORES-101 dev in {FLORES}; set ISOGLOSS_DATA")
def test_the_detector_errs_on_few_sentences_of_flores():
    """100 dev sentences in each of 15 languages: at most 3 % wrong on average, 10 % in any."""
    errors = {}
    for code in MAIN:
        path = FLORES / f"{languages()[code].flores101}.dev"
        lines = path.read_text(encoding="utf-8").splitlines()[:100]
        assert len(lines) == 100
        errors[code] = sum(detect(line, MAIN) != code for line in lines) / 100
    assert sum(errors.values()) / len(errors) <= 0.03, errors
    assert max(errors.values()) <= 0.10, errors
