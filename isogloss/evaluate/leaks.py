"""Leaks: test items that stand in the training data, word for word or by a long passage, in any language.

A passage is 13 words in a row (Brown et al. 2020, appendix C), or 30 letters where a script puts no spaces
between words. Passages that three items of a suite share are its own wording and no leak. The demo's texts
are made from one grammar, so every passage of theirs is common: they are compared whole.
Knows no model. Flow: texts of the suites → index of passages → training texts, one by one → leaks.
"""

import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from isogloss.evaluate.items import SuiteData
from isogloss.languages import languages

WORDS: Final = 13
LETTERS: Final = 30
OWN_WORDING: Final = 3
"""Items of a suite that share a passage which is then no leak."""
_UNSPACED: Final = ("Hans", "Hant", "Jpan", "Khmr", "Laoo", "Mymr", "Thai")
_MADE: Final = ("demo",)


@dataclass(frozen=True)
class Text:
    """A text in a language; of a suite's item, or of a training example, whose suite is empty."""

    suite: str
    id: str
    language: str
    text: str


@dataclass(frozen=True)
class Leak:
    """A test text that was met in a training text.

    Attributes:
        whole: The two are the same; else they share `passage`.
        trained: Id and language of the training example.
    """

    suite: str
    id: str
    language: str
    whole: bool
    passage: str
    trained: tuple[str, str]

    def line(self) -> str:
        """In one line."""
        how = "is" if self.whole else "shares a passage with"
        words = self.passage if len(self.passage) <= 80 else self.passage[:79] + "…"
        return (
            f"{self.suite} {self.id} in {self.language} {how} {self.trained[0]} in {self.trained[1]}: {words}"
        )


def texts_of(suite: SuiteData) -> list[Text]:
    """What a suite asks and retrieves; its answers are single words as a rule, and stand anywhere."""
    asked = [
        Text(suite.name, item.id, code, turn.instruction)
        for item in suite.items
        for code, turn in item.turns.items()
    ]
    return asked + [
        Text(suite.name, f"sentence {number}", code, sentence)
        for code, sentences in suite.sentences.items()
        for number, sentence in enumerate(sentences, start=1)
    ]


def find_leaks(tests: Iterable[Text], training: Iterable[Text]) -> list[Leak]:
    """For every test text the first training text that is the same, else the first that shares a passage."""
    tests = list(tests)
    whole: dict[tuple[str, ...], list[int]] = {}
    passages: dict[tuple[str, ...], list[int]] = {}
    for number, test in enumerate(tests):
        tokens = _tokens(test)
        if not tokens:
            continue
        whole.setdefault(tokens, []).append(number)
        if test.suite not in _MADE:
            for passage in set(_passages(tokens, test.language)):
                passages.setdefault(passage, []).append(number)
    passages = {passage: numbers for passage, numbers in passages.items() if not _own(tests, numbers)}
    same: dict[int, Leak] = {}
    shared: dict[int, Leak] = {}
    for text in training:
        tokens = _tokens(text)
        for number in whole.get(tokens, ()):
            same.setdefault(number, _leak(tests[number], text, True, tokens))
        for passage in _passages(tokens, text.language) if passages else ():
            for number in passages.get(passage, ()):
                shared.setdefault(number, _leak(tests[number], text, False, passage))
    found = shared | same
    return [found[number] for number in sorted(found)]


def _own(tests: Sequence[Text], numbers: Sequence[int]) -> bool:
    items: dict[str, set[str]] = {}
    for number in numbers:
        items.setdefault(tests[number].suite, set()).add(tests[number].id)
    return any(len(ids) >= OWN_WORDING for ids in items.values())


def _leak(test: Text, text: Text, whole: bool, tokens: tuple[str, ...]) -> Leak:
    passage = ("" if _unspaced(test.language) else " ").join(tokens)
    return Leak(test.suite, test.id, test.language, whole, passage, (text.id, text.language))


def _tokens(text: Text) -> tuple[str, ...]:
    """Letters, signs and digits alone, case folded; by word, or by character without spaces."""
    folded = unicodedata.normalize("NFKC", text.text).casefold()
    kept = "".join(c if unicodedata.category(c)[0] in "LMN" else " " for c in folded)
    return tuple("".join(kept.split())) if _unspaced(text.language) else tuple(kept.split())


def _passages(tokens: tuple[str, ...], language: str) -> Iterator[tuple[str, ...]]:
    length = LETTERS if _unspaced(language) else WORDS
    for start in range(len(tokens) - length + 1):
        yield tokens[start : start + length]


def _unspaced(language: str) -> bool:
    return languages()[language].script in _UNSPACED
