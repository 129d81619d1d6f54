"""Reading: maps a free-text answer to its meaning, so that answers in different languages can be compared.

A closed task's answer becomes one of the item's options; an open task's becomes REFERENCE or the normalised
answer. Whether it is in the requested language is not judged here but by fidelity. Depends on no model and no
metric. Spelling variants within a script are handled in `writing`.
Flow: normalise → wordings in the requested language, in English, in the others → a wording as a clause.
"""

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Final, Protocol

from isogloss.data.examples import Turn
from isogloss.data.writing import same_spelling

REFERENCE: Final = "=reference"
"""The meaning of an open answer that matches the reference response."""


_WRAPPING: Final = "\"'`´‘’‚‛“”„‟«»‹›「」『』〝〞〟()[]{}*_"  # quotes, brackets, Markdown emphasis
_OPENING: Final = "¿¡"
# Sentence and clause punctuation of Latin, Greek, Arabic, Devanagari, Ethiopic, Khmer, Burmese, Armenian,
# Hebrew and Tibetan, and the CJK marks that NFKC does not change.
_FINAL: Final = ".,;:!?‥·،؛؞؟۔।॥።፣፤፥፦፧፨។៕၊။։՞՜׃།。、"
_BULLET: Final = re.compile(r"^(?:- |[—•] ?)+")  # a hyphen without a space is a sign; – is a hyphen here
_UNDERSCORE: Final = re.compile(r"(?<=[^\W\d_])_+(?=[^\W\d_])")  # between letters
_CLAUSE: Final = re.compile(rf"[\n/|{re.escape(_FINAL)}\"“”„‟«»‹›「」『』〝〞〟()\[\]{{}}*_]+|\s[-–—]\s")


class Question(Protocol):
    """What is needed to read an answer: a training example or a suite's item."""

    @property
    def turns(self) -> Mapping[str, Turn]:
        """Instruction and reference response by language."""
        ...

    @property
    def options(self) -> Mapping[str, Mapping[str, str]] | None:
        """By language, the wording of each possible meaning; None for an open task."""
        ...


@lru_cache(maxsize=1 << 16)
def normalise(text: str) -> str:
    """Remove from a text what does not change its meaning; empty if nothing is left.

    Applies `writing.same_spelling`, collapses white space, reads an underscore between letters as a space,
    and strips quotes, brackets and emphasis around the text, bullets, ¿ and ¡ at its start, and punctuation
    at its end.
    """
    text = _BULLET.sub("", " ".join(_UNDERSCORE.sub(" ", same_spelling(text)).split()))
    return text.lstrip(_WRAPPING + _OPENING + " ").rstrip(_WRAPPING + _FINAL + " ")


def readable(text: str) -> bool:
    """Return whether the text contains a letter or a digit; nothing else can be an answer."""
    return any(unicodedata.category(character)[0] in "LMN" for character in text)


def read_answer(item: Question, language: str, answer: str) -> str | None:
    """Return the meaning of an answer to the item in this language; None if it is empty or cannot be read.

    Closed task: the option whose wording equals the answer, in the requested language, in English, or in any
    other, in this order; otherwise the one whose wording is a clause of it ("Answer: yes.", "No, it is
    false"), in the requested language or in English. None if two options match. A wording inside a clause
    does not count: what the clause says about the option ("not the same", "I have no idea") takes a speaker
    of the language.
    Open task: REFERENCE if it matches the reference response, otherwise the normalised answer.
    """
    given = normalise(answer)
    if not readable(given):
        return None
    if item.options is None:
        reference = item.turns[language].response
        return REFERENCE if reference is not None and given == normalise(reference) else given
    stages = _stages(item.options, language)
    for stage in stages:  # one at a time: nearly every answer is in the first
        if given in (meanings := _meanings_by_wording(stage)):
            return _only(meanings[given])
    clauses = _clauses(answer)
    for stage in stages[:-1]:
        if found := _stated(meanings := _meanings_by_wording(stage), clauses):
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


def _clauses(text: str) -> tuple[str, ...]:
    parts = _CLAUSE.split(_UNDERSCORE.sub(" ", same_spelling(text)))
    return tuple(clause for part in parts if (clause := normalise(part)))


def _stated(wordings: Iterable[str], clauses: Sequence[str]) -> set[str]:
    """Return the wordings that are clauses of an answer; longer ones ("yes, always") before their parts."""
    parts = sorted(((_clauses(wording), wording) for wording in wordings), key=lambda one: -len(one[0]))
    found, place = set(), 0
    while place < len(clauses):
        fit = next((one for one in parts if one[0] == tuple(clauses[place : place + len(one[0])])), None)
        if fit:
            found.add(fit[1])
        place += len(fit[0]) if fit else 1
    return found
