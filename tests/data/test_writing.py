"""Spelling, script by script: equivalent spellings become equal, and different words stay distinct."""

import unicodedata

import pytest

from isogloss.data.examples import Turn
from isogloss.data.reading import REFERENCE, normalise, read_answer
from isogloss.evaluate.items import Item

SAME = {
    "Arabic": [
        ("نعم", "نَعَم"),  # vowel marks
        ("نعم", "نعـــم"),  # tatweel
        ("هذا", "هٰذا"),
        ("مدرسة", "مدرّسة"),
        ("الله", "ﷲ"),
        ("٣", "3"),
        ("۳", "3"),
        ("١٢٫٥٪", "12.5%"),
    ],
    "Persian": [("کتاب", "كتاب"), ("یک", "يك"), ("می\u200cخواهم", "میخواهم")],
    "Urdu": [("ہاں", "هاں"), ("اُردو", "اردو")],
    "Hebrew": [("שלום", "שָׁלוֹם"), ("תל־אביב", "תל-אביב"), ("ג׳ירפה", "ג'ירפה")],
    "Devanagari": [
        ("हाँ", "हां"),
        ("हिन्दी", "हिंदी"),
        ("सम्बन्ध", "संबंध"),
        ("ज़रूर", "जरूर"),
        ("\u0958लम", "\u0915\u093cलम"),  # composed or not
        ("३", "3"),
        ("शक्\u200dति", "शक्ति"),
    ],
    "Bengali": [("\u09dc", "\u09a1\u09bc"), ("৭", "7")],
    "Malayalam": [("അവന്\u200d", "അവൻ")],
    "Thai": [
        ("แมว", "เเมว"),
        ("น้ำ", "น้\u0e4dา"),
        ("น\u0e49\u0e33", "น\u0e4d\u0e49\u0e32"),  # the tone mark typed last
        ("๗", "7"),
    ],
    "Lao": [("ແມວ", "ເເມວ"), ("ນ\u0ec9\u0eb3", "ນ\u0ecd\u0ec9\u0eb2")],
    "Amharic": [("ሀገር", "ሐገር"), ("ሰላም", "ሠላም"), ("ዓለም", "ኣለም")],
    "Greek": [("ΟΧΙ", "όχι"), ("ΝΑΙ", "ναι"), ("δρόμος", "ΔΡΟΜΟΣ")],
    "Cyrillic": [("ещё", "еще"), ("м\u2019ята", "м'ята"), ("м\u02bcята", "м'ята")],
    "Vietnamese": [("hoà bình", "hòa bình"), ("thuý", "thúy"), ("khoẻ", "khỏe"), ("TIẾNG", "tiếng")],
    "Turkish": [("ISPARTA", "ısparta"), ("İYİ", "iyi")],
    "Romanian": [("însă și", "însă şi"), ("ţară", "țară")],
    "Uzbek": [("o\u02bbzbek", "o\u2018zbek"), ("o\u02bbzbek", "o'zbek")],
    "French": [("l\u2019œuvre", "l'oeuvre"), ("c\u2019est", "c`est")],
    "German": [("Straße", "STRASSE")],
    "English": [
        ("twenty\u2010one", "twenty-one"),
        ("twenty\u2011one", "twenty-one"),
        ("\u22125", "-5"),
        ("co\u00adoperate", "cooperate"),
        ("don\u00b4t", "don't"),
        ("say \u201chi\u201d now", 'say "hi" now'),
    ],
    "Han": [("ＡＢＣ１２３", "abc123"), ("是\ufe00", "是")],
    "Japanese": [("ﾊｲ", "ハイ"), ("が", "か\u3099")],
    "Korean": [("네", "\u1102\u1166")],
    "Armenian": [("և", "եւ")],
}
APART = {
    "Arabic": [("على", "علي"), ("أن", "إن"), ("مدرسة", "مدرسه"), ("ب", "ت"), ("سأل", "سال")],
    "Urdu": [("کہا", "کھا"), ("میں", "مین")],
    "Hebrew": [("אב", "אם")],
    "Devanagari": [("कि", "की"), ("कल", "काल"), ("सडक", "सड़क"), ("अन्न", "अंन"), ("जन्म", "जंम"), ("न", "ना")],
    "Bengali": [("কি", "কী"), ("চাদ", "চাঁদ")],
    "Tamil": [("கல்", "கால்"), ("ன", "ந")],
    "Thai": [("มา", "ม้า"), ("ใช่", "ใช้"), ("เก", "แก")],
    "Lao": [("ມາ", "ມ້າ")],
    "Khmer": [("កា", "កី")],
    "Vietnamese": [("ma", "má"), ("má", "mà"), ("cô", "co"), ("đi", "di"), ("quý", "quy"), ("toán", "tóan")],
    "Yoruba": [("ọkọ", "oko"), ("ọkọ́", "ọkọ̀")],
    "Spanish": [("año", "ano"), ("sí", "si")],
    "German": [("schön", "schon"), ("Bär", "Bar")],
    "Swedish": [("far", "får")],
    "Polish": [("łaska", "laska")],
    "Cyrillic": [("мой", "мои"), ("і", "и"), ("е", "э")],
    "Greek": [("ναι", "ναΐ"), ("ε", "η")],
    "Amharic": [("ሰ", "ሸ"), ("በ", "ቡ")],
    "Han": [("土", "士"), ("未", "末")],
    "Japanese": [("は", "ば"), ("か", "が"), ("おばさん", "おばあさん")],
    "English": [("5", "-5"), ("1.5", "15"), ("50%", "50"), ("cant", "can't"), ("re-sign", "resign")],
    "digits": [("٣", "2"), ("३", "२")],
}


def pairs(table: dict[str, list[tuple[str, str]]]) -> list:
    return [
        pytest.param(*pair, id=f"{script}-{n}")
        for script, all_ in table.items()
        for n, pair in enumerate(all_)
    ]


@pytest.mark.parametrize(("one", "other"), pairs(SAME))
def test_equivalent_spellings_become_equal(one, other):
    """Composed or not, in both directions; normalising twice changes nothing more."""
    assert one != other
    assert normalise(one) == normalise(other) != ""
    assert normalise(unicodedata.normalize("NFD", one)) == normalise(unicodedata.normalize("NFC", other))
    assert normalise(normalise(one)) == normalise(one)


@pytest.mark.parametrize(("one", "other"), pairs(APART))
def test_different_words_stay_distinct(one, other):
    """Vowel signs, tones, dots and hamza distinguish words."""
    assert normalise(one) != normalise(other)


@pytest.mark.parametrize("answer", ["نَعَم", "نعـم", "«نعم»", "الجواب: نَعَم."])
def test_a_vowelled_answer_is_read_as_its_option(answer):
    """Alone or inside a sentence."""
    item = Item("1", "x", {"ar": Turn("?")}, options={"ar": {"yes": "نعم", "no": "لا"}})
    assert read_answer(item, "ar", answer) == "yes"


def test_an_open_answer_in_other_digits_matches_the_reference():
    """٣, 3 and ३ are equal, in any language."""
    item = Item("1", "x", {"ar": Turn("?", "٣"), "hi": Turn("?", "३"), "en": Turn("?", "3")})
    for language in ("ar", "hi", "en"):
        for digit in "3٣३۳๓３":
            assert read_answer(item, language, f"{digit}.") == REFERENCE
