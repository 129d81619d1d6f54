"""Leaks: test items that occur in the training data, verbatim or by a long passage, in any language.

A passage is 13 consecutive words (Brown et al. 2020, appendix C), or 30 letters in scripts without spaces. A
shared task template is not a leak: the content of an instruction is extracted from its template on both
sides and compared part by part, however many items share it. Nor is a passage that most test items and many
training texts share, such as a system prompt. The demo's texts come from one grammar, so all their passages
are common; they are only compared as a whole.
Model-independent. Flow: texts of the suites → index of passages → training texts, one by one → leaks.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Final

from isogloss.data.division import words_of
from isogloss.data.examples import ParallelExample
from isogloss.data.tasks.templates import parts_of
from isogloss.evaluate.items import SuiteData
from isogloss.languages import languages

WORDS: Final = 13
LETTERS: Final = 30
"""Length of a passage in scripts without spaces; also the minimum length of a response to be checked."""
FEWEST: Final = 5
TESTED: Final = 0.5
TRAINED: Final = 0.1
"""A passage in more than half of a suite's texts in a language and a tenth of the training texts, and in at
least five of each, is no leak but a system prompt or the like."""
_MADE: Final = ("demo",)


@dataclass(frozen=True)
class Text:
    """A text of a suite's item or of a training example (`suite` is then empty).

    Attributes:
        parts: The content extracted from an instruction whose template is known; else empty, and the whole
            text is compared.
    """

    suite: str
    id: str
    language: str
    text: str
    parts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Leak:
    """A test text found in a training text.

    Attributes:
        whole: True if the two are identical; else they share `passage`.
        trained: ID and language of the training example.
    """

    suite: str
    id: str
    language: str
    whole: bool
    passage: str
    trained: tuple[str, str]

    def line(self) -> str:
        """Return a one-line description."""
        how = "is" if self.whole else "shares a passage with"
        words = self.passage if len(self.passage) <= 80 else self.passage[:79] + "…"
        return (
            f"{self.suite} {self.id} in {self.language} {how} {self.trained[0]} in {self.trained[1]}: {words}"
        )


def texts_of(suite: SuiteData) -> list[Text]:
    """Return a suite's instructions and sentences; answers are left out, as most are single common words."""
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
    """Yield instructions and long open responses; a label may well be someone's whole utterance."""
    for example in examples:
        for code, turn in example.turns.items():
            asked = turn.instruction
            yield Text("", example.id, code, asked, parts_of(example.task, code, asked))
            if turn.response and example.options is None and len(turn.response) >= LETTERS:
                yield Text("", example.id, code, turn.response)


def find_leaks(tests: Iterable[Text], training: Iterable[Text]) -> list[Leak]:
    """Return, per test text, the first identical training text, else the first that shares a passage."""
    tests = list(tests)
    same: dict[int, Leak] = {}
    shared: dict[int, Leak] = {}
    for number, text, whole, tokens in _meetings(tests, training):
        test, trained = tests[number], (text.id, text.language)
        passage = ("" if languages()[test.language].unspaced else " ").join(tokens)
        leak = Leak(test.suite, test.id, test.language, whole, passage, trained)
        (same if whole else shared).setdefault(number, leak)
    found = shared | same
    return [found[number] for number in sorted(found)]


def leaking(tests: Iterable[Text], training: Iterable[Text]) -> list[str]:
    """Return the IDs of all training examples that equal a test text or share a passage with one."""
    return list(dict.fromkeys(text.id for _, text, _, _ in _meetings(list(tests), training)))


def _meetings(
    tests: Sequence[Text], training: Iterable[Text]
) -> Iterator[tuple[int, Text, bool, tuple[str, ...]]]:
    """Yield (test text index, training text, whether identical, shared tokens) for every match."""
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
    sizes = Counter((test.suite, test.language) for test in tests)
    # Training texts by passage, as a passage is only known to be common at the end.
    matched: dict[tuple[str, ...], list[Text]] = {}
    total = 0
    for text in training:
        total += 1
        parts = _parts(text)
        for number in whole.get(parts, ()):
            yield number, text, True, tuple(chain(*parts))
        for part in parts if passages else ():
            for passage in {p for p in _passages(part, text.language) if p in passages}:
                matched.setdefault(passage, []).append(text)
    for passage, texts in matched.items():
        numbers = passages[passage]
        common = len(texts) >= FEWEST and len(texts) > TRAINED * total
        if common and _asked_by_most([tests[number] for number in numbers], sizes):
            continue
        for text in texts:
            for number in numbers:
                yield number, text, False, passage


def _asked_by_most(tests: Sequence[Text], sizes: Mapping[tuple[str, str], int]) -> bool:
    """Return whether most texts of a suite in a language are among some tests."""
    found = Counter((test.suite, test.language) for test in tests)
    return any(count >= FEWEST and count > TESTED * sizes[where] for where, count in found.items())


def _parts(text: Text) -> tuple[tuple[str, ...], ...]:
    """Split each part into case-folded words (letters, marks, digits), or characters in unspaced scripts."""
    found = []
    for part in text.parts or (text.text,):
        words = words_of(part)
        found.append(tuple("".join(words)) if languages()[text.language].unspaced else tuple(words))
    return tuple(found)


def _passages(tokens: tuple[str, ...], language: str) -> Iterator[tuple[str, ...]]:
    length = LETTERS if languages()[language].unspaced else WORDS
    for start in range(len(tokens) - length + 1):
        yield tokens[start : start + length]
