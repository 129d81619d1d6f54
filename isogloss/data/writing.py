"""Writing: merges the spelling variants of each script that do not change the meaning.

Only used to compare answers: training and displayed text keep their spelling. Each rule belongs to one script
and holds in all its languages. Marks that distinguish words in any of them are kept (vowel signs of India,
tones of Thai, Vietnamese and Yoruba, hamza, the dots of Arabic letters, й, ä).
Flow: marks of every script → width and case → letters of one script.
"""

import re
import unicodedata
from typing import Final


def same_spelling(text: str) -> str:
    """Return the text with equivalent spellings merged into one.

    Every script: composition, width and ligatures (NFKC), case, apostrophes, hyphens, quotation marks and
    digits are unified; joiners, direction marks, variation selectors and soft hyphens are removed.
    Latin: Turkish ı and İ become i, as capitals would otherwise hide that two words are the same; Romanian
    ș and ț become the older ş and ţ; œ becomes oe; the tone of Vietnamese oa, oe, uy moves to the first vowel
    (hoà → hòa).
    Cyrillic: ё becomes е. Greek: the tonos is removed, as capitals lack it.
    Arabic: vowel marks and tatweel are removed; Arabic ك, ي, ه become ک, ی, ہ, as keyboards have either form.
    Hebrew: points are removed. Ethiopic: letters that sound alike in Amharic are merged.
    Devanagari: anusvara and a nasal before a consonant of its class become candrabindu (हिन्दी, हिंदी); the
    nukta of क, ख, ग, ज and फ is removed. Malayalam: chillu letters become single characters. Thai and Lao:
    e written twice becomes the letter ae, and a tone mark comes before nikhahit (niggahita), as in am (น้ำ).
    """
    text = unicodedata.normalize("NFKC", text.translate(_MARKS))
    text = unicodedata.normalize("NFKC", text.casefold())
    for chillu, letter in _CHILLU.items():
        text = text.replace(chillu, letter)
    text = unicodedata.normalize("NFC", _DROPPED.sub("", text).translate(_LETTERS))
    text = text.replace("i\u0307", "i").replace("\u0e40\u0e40", "\u0e41").replace("\u0ec0\u0ec0", "\u0ec1")
    text = _AM.sub(r"\2\1", text)
    text = _NUKTA.sub("", _NASAL.sub("\u0902", text)).replace("\u0902", "\u0901")
    text = _TONED.sub(lambda found: _FIRST_VOWEL[found[0]], text)
    return re.sub(r"\d", lambda digit: str(unicodedata.decimal(digit[0])), text)


def _all(characters: str, become: str) -> dict[int, str]:
    return dict.fromkeys(map(ord, characters), become)


_MARKS: Final = {
    **_all("\u2018\u2019\u201a\u201b\u2032\u02b9\u02bb\u02bc\u05f3\uff07`\u00b4", "'"),
    **_all("\u201c\u201d\u201e\u201f\u2033\u05f4\u00ab\u00bb", '"'),
    **_all("\u2010\u2011\u2012\u2013\u2212\u058a\u05be\ufe63\uff0d", "-"),
    **_all("\u066a", "%"),
    **_all("\u066b", "."),
    **_all("\u066c", ","),
}
_DROPPED: Final = re.compile(
    "[\u00ad\u034f\u061c\u200b-\u200f\u202a-\u202e\u2060\u2066-\u2069\ufeff\ufe00-\ufe0f"  # invisible
    "\u0610-\u061a\u0640\u064b-\u0652\u0656-\u065f\u0670"
    "\u06d6-\u06dc\u06df-\u06e4\u06e7\u06e8\u06ea-\u06ed"
    "\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7]"
)
"""Invisible characters, Arabic vowel marks and tatweel (but not hamza), and Hebrew points."""
_ETHIOPIC: Final = {
    ord(alike) + order: chr(ord(letter) + order)
    for alike, letter in (("ሐ", "ሀ"), ("ኀ", "ሀ"), ("ሠ", "ሰ"), ("ዐ", "አ"), ("ፀ", "ጸ"))
    for order in range(7)
}
_LETTERS: Final = {
    **dict(zip(map(ord, "ıșțёάέήίόύώΐΰ"), "işţеαεηιουωϊϋ", strict=True)),
    **dict(zip(map(ord, "كيه"), "کیہ", strict=True)),
    **_all("œ", "oe"),
    **_ETHIOPIC,
}
_CHILLU: Final = {letter + "\u0d4d\u200d": chillu for letter, chillu in zip("ണനരലളക", "ൺൻർൽൾൿ", strict=True)}
_NASAL: Final = re.compile("ङ्(?=[क-घ])|ञ्(?=[च-झ])|ण्(?=[ट-ढ])|न्(?=[त-ध])|म्(?=[प-भ])")
_NUKTA: Final = re.compile("(?<=[कखगजफ])\u093c")
_AM: Final = re.compile("([\u0e4d\u0ecd])([\u0e48-\u0e4b\u0ec8-\u0ecb])")
_FIRST_VOWEL: Final = {
    unicodedata.normalize("NFC", first + second + tone): unicodedata.normalize("NFC", first + tone + second)
    for first, second in ("oa", "oe", "uy")
    for tone in "\u0300\u0301\u0303\u0309\u0323"
}
_TONED: Final = re.compile(rf"(?<!q)({'|'.join(_FIRST_VOWEL)})(?!\w)")
