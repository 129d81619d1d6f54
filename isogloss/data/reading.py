"""Reading: what a free-text answer means, so that answers in different languages can be compared.

A closed task's answer becomes one of the item's options; an open task's becomes REFERENCE or its own words.
Whether it is in the asked language is not judged here: fidelity does that. Knows no model and no metric.
What a script writes in several ways without a change of meaning is in `writing`.
Flow: normalise → the wordings of the asked language, of English, of the others → a wording inside the answer.
"""

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Final, Protocol

from isogloss.data.examples import Turn
from isogloss.data.writing import same_spelling

REFERENCE: Final = "=reference"
"""The meaning of an open answer that is worded like the reference response."""


_WRAPPING: Final = "\"'`´‘’‚‛“”„‟«»‹›「」『』〝〞〟()[]{}*_"  # quotes, brackets, the emphasis of Markdown
_OPENING: Final = "¿¡"
# Sentence and clause marks of Latin, Greek, Arabic, Devanagari, Ethiopic, Khmer, Burmese, Armenian, Hebrew
# and Tibetan, and the CJK ones that NFKC leaves as they are.
_FINAL: Final = ".,;:!?‥·،؛؞؟۔।॥።፣፤፥፦፧፨។៕၊။։՞՜׃།。、"
_CLAUSE: Final = re.compile(r"[.,;:!?،؛。、！？，；：]+")
_UNSPACED: Final = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR")
_BEFORE: Final = {
    "ar": ("غير", "ليس", "ليست", "لا"),
    "bg": ("не",),
    "de": ("nicht", "kein", "keine"),
    "el": ("δεν", "μη", "όχι"),
    "en": ("not", "isn't", "aren't", "don't", "doesn't"),
    "es": ("no",),
    "fr": ("pas", "non"),
    "id": ("tidak", "bukan"),
    "it": ("non",),
    "ja": ("不", "非"),
    "pt": ("não",),
    "ru": ("не",),
    "sw": ("si", "sio", "siyo", "hakuna", "haina", "hazina", "hayana"),
    "th": ("ไม่",),
    "vi": ("không", "chẳng"),
    "zh": ("不", "没", "非", "無", "无"),
}
"""What turns a wording round where it stands before it with at most two words between, by language."""
_BEHIND: Final = {"hi": ("नहीं",), "ja": ("ではない", "じゃない"), "tr": ("değil",), "ur": ("نہیں",)}
"""What does so right behind it."""


class Question(Protocol):
    """What an answer is read by: a training example, or a suite's item."""

    @property
    def turns(self) -> Mapping[str, Turn]:
        """Instruction and reference response by language."""
        ...

    @property
    def options(self) -> Mapping[str, Mapping[str, str]] | None:
        """By language, the wording of each possible meaning; None: open task."""
        ...


@lru_cache(maxsize=1 << 16)
def normalise(text: str) -> str:
    """The text without what does not change its meaning; empty when nothing is left.

    One spelling of what `writing.same_spelling` knows to be the same, single spaces; no quotes, brackets or
    emphasis around it, no punctuation at its end.
    """
    text = " ".join(same_spelling(text).split())
    return text.lstrip(_WRAPPING + _OPENING + " ").rstrip(_WRAPPING + _FINAL + " ")


def readable(text: str) -> bool:
    """Whether the text holds a letter or a digit; nothing else can be an answer."""
    return any(_is_letter_or_digit(c) for c in text)


def read_answer(item: Question, language: str, answer: str) -> str | None:
    """The meaning of the answer to the item in this language; None when it is empty or cannot be read.

    Closed task: the option whose wording is the answer, or stands in it as whole words and is not part of a
    longer wording there. The asked language's wordings go first, then the English, then all others. Wordings
    of two options at the same stage, or one that is negated: None. Scripts that write no spaces have no whole
    words, so of them a single character has to stand by itself; and a single Latin letter is not looked for
    inside an answer ("a" is also an article).
    Open task: REFERENCE for the wording of the reference response, otherwise the normalised answer itself.
    """
    given = normalise(answer)
    if not readable(given):
        return None
    if item.options is None:
        reference = item.turns[language].response
        return REFERENCE if reference is not None and given == normalise(reference) else given
    stages = [_meanings_by_wording(stage) for stage in _stages(item.options, language)]
    for meanings in stages:
        if given in meanings:
            return _only(meanings[given])
    for meanings in stages:
        found, negated = _contained(meanings, given, language)
        if negated:
            return None
        if found:
            return _only(meaning for wording in found for meaning in meanings[wording])
    return None


def _stages(options: Mapping[str, Mapping[str, str]], language: str) -> Sequence[list[Mapping[str, str]]]:
    first = [language] if language == "en" else [language, "en"]
    rest = [wordings for code, wordings in options.items() if code not in first]
    return [*([options[code]] for code in first if code in options), rest]


def _meanings_by_wording(stage: Iterable[Mapping[str, str]]) -> dict[str, set[str]]:
    meanings: dict[str, set[str]] = {}
    for wordings in stage:
        for meaning, wording in wordings.items():
            meanings.setdefault(normalise(wording), set()).add(meaning)
    meanings.pop("", None)
    return meanings


def _only(meanings: Iterable[str]) -> str | None:
    distinct = set(meanings)
    return distinct.pop() if len(distinct) == 1 else None


def _contained(wordings: Iterable[str], given: str, language: str) -> tuple[set[str], bool]:
    """The wordings that stand in the answer, and whether one of them is negated there."""
    patterns: dict[str, str] = {}  # what is looked for, with the wording that it stands for
    for wording in sorted(wordings, key=len, reverse=True):  # the first alternative that fits is the longest
        words = _words(wording)
        if words and not (len(words) == 1 and "a" <= words <= "z"):
            patterns.setdefault(words, wording)
    if not patterns:
        return set(), False
    pattern = re.compile("|".join(_bounded(words) for words in patterns))
    found = {patterns[match] for match in pattern.findall(f" {_words(given)} ")}
    # "No, different" says no and different, "not different" neither.
    clauses = f" {' , '.join(map(_words, _CLAUSE.split(given)))} "
    negated = any(_negated(clauses, one.start(), one.end(), language) for one in pattern.finditer(clauses))
    return found, negated


def _negated(text: str, start: int, end: int, language: str) -> bool:
    """Whether what stands there is turned round by what stands before or behind it."""
    before, behind = text[:start].rpartition(" , ")[2], text[end:].lstrip(" ")
    spoken = dict.fromkeys((language, "en"))
    if any(_near_end(before, _words(normalise(word))) for code in spoken for word in _BEFORE.get(code, ())):
        return True
    words = map(normalise, _BEHIND.get(language, ()))
    return any(behind.startswith(word) for word in words)


def _near_end(text: str, word: str) -> bool:
    """Whether a word is one of the last three, or in a script without spaces one of the last characters."""
    if not _spaced(word):
        return word in text.replace(" ", "")[-len(word) - 4 :]
    return f" {word} " in f" {' '.join(text.split()[-len(word.split()) - 2 :])} "


def _words(text: str) -> str:
    """Words apart by single spaces. Not by `\\w`, which ends a word at every vowel sign of Hindi."""
    kept = "".join(c if _is_letter_or_digit(c) or c == "-" else " " for c in text)
    return " ".join(word.strip("-") for word in kept.split() if word.strip("-"))


def _bounded(words: str) -> str:
    escaped = re.escape(words)
    return rf"(?<= ){escaped}(?= )" if _spaced(words) or len(words) == 1 else escaped


def _spaced(words: str) -> bool:
    return not any(unicodedata.name(c, "").startswith(_UNSPACED) for c in words)


def _is_letter_or_digit(character: str) -> bool:
    return unicodedata.category(character)[0] in "LMN"
