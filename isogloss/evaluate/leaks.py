"""Leaks: test items that stand in the training data, word for word or by a long passage, in any language.

A passage is 13 words in a row (Brown et al. 2020, appendix C), or 30 letters where a script puts no spaces
between words. How a task is worded is no leak: what an instruction is about is taken out of its template, on
both sides, and compared part by part, however many items share it. The demo's texts are made from one
grammar, so every passage of theirs is common: they are compared whole.
Knows no model. Flow: texts of the suites → index of passages → training texts, one by one → leaks.
"""

import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Final

from isogloss.data.examples import ParallelExample
from isogloss.data.tasks.templates import parts_of
from isogloss.evaluate.items import SuiteData
from isogloss.languages import languages

WORDS: Final = 13
LETTERS: Final = 30
"""Fewest letters of such a passage, and of an answer that counts as a text."""
_MADE: Final = ("demo",)


@dataclass(frozen=True)
class Text:
    """A text in a language; of a suite's item, or of a training example, whose suite is empty.

    Attributes:
        parts: What it is about, where it is an instruction whose template is known; else the text itself.
    """

    suite: str
    id: str
    language: str
    text: str
    parts: tuple[str, ...] = ()


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
        Text(suite.name, item.id, code, turn.instruction, parts_of(item.task, code, turn.instruction))
        for item in suite.items
        for code, turn in item.turns.items()
    ]
    return asked + [
        Text(suite.name, f"sentence {number}", code, sentence)
        for code, sentences in suite.sentences.items()
        for number, sentence in enumerate(sentences, start=1)
    ]


def trained_texts(examples: Iterable[ParallelExample]) -> Iterator[Text]:
    """What examples ask and answer in words of their own: a label may well be somebody's whole utterance."""
    for example in examples:
        for code, turn in example.turns.items():
            asked = turn.instruction
            yield Text("", example.id, code, asked, parts_of(example.task, code, asked))
            if turn.response and example.options is None and len(turn.response) >= LETTERS:
                yield Text("", example.id, code, turn.response)


def find_leaks(tests: Iterable[Text], training: Iterable[Text]) -> list[Leak]:
    """For every test text the first training text that is the same, else the first that shares a passage."""
    tests = list(tests)
    same: dict[int, Leak] = {}
    shared: dict[int, Leak] = {}
    for number, text, whole, tokens in _meetings(tests, training):
        (same if whole else shared).setdefault(number, _leak(tests[number], text, whole, tokens))
    found = shared | same
    return [found[number] for number in sorted(found)]


def leaking(tests: Iterable[Text], training: Iterable[Text]) -> list[str]:
    """Ids of all training examples that are the same as a test text or share a passage with one."""
    return list(dict.fromkeys(text.id for _, text, _, _ in _meetings(list(tests), training)))


def _meetings(
    tests: Sequence[Text], training: Iterable[Text]
) -> Iterator[tuple[int, Text, bool, tuple[str, ...]]]:
    """The number of a test text, a training text, whether they are the same, and what they share."""
    whole: dict[tuple[tuple[str, ...], ...], list[int]] = {}
    passages: dict[tuple[str, ...], list[int]] = {}
    for number, test in enumerate(tests):
        parts = _parts(test)
        if not any(parts):
            continue
        whole.setdefault(parts, []).append(number)
        if test.suite not in _MADE:
            for passage in {passage for part in parts for passage in _passages(part, test.language)}:
                passages.setdefault(passage, []).append(number)
    for text in training:
        parts = _parts(text)
        for number in whole.get(parts, ()):
            yield number, text, True, tuple(chain(*parts))
        for part in parts if passages else ():
            for passage in _passages(part, text.language):
                for number in passages.get(passage, ()):
                    yield number, text, False, passage


def _leak(test: Text, text: Text, whole: bool, tokens: tuple[str, ...]) -> Leak:
    passage = ("" if languages()[test.language].unspaced else " ").join(tokens)
    return Leak(test.suite, test.id, test.language, whole, passage, (text.id, text.language))


def _parts(text: Text) -> tuple[tuple[str, ...], ...]:
    """Of each part letters, signs and digits alone, case folded; by word, or by character without spaces."""
    found = []
    for part in text.parts or (text.text,):
        folded = unicodedata.normalize("NFKC", part).casefold()
        kept = "".join(c if unicodedata.category(c)[0] in "LMN" else " " for c in folded)
        words = kept.split()
        found.append(tuple("".join(words)) if languages()[text.language].unspaced else tuple(words))
    return tuple(found)


def _passages(tokens: tuple[str, ...], language: str) -> Iterator[tuple[str, ...]]:
    length = LETTERS if languages()[language].unspaced else WORDS
    for start in range(len(tokens) - length + 1):
        yield tokens[start : start + length]
