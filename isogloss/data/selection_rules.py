"""Rules that detect bad examples: one function per rule, each returning None if nothing is wrong."""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from typing import Final

import numpy as np

from isogloss.data.examples import ParallelExample, Turn
from isogloss.languages.registry import XGLUE_TWELVE, languages, resolve
from isogloss.languages.scripts import SCRIPTS

_SAYS_AGAIN: Final = re.compile(r"copy|repeat|echo|translat")  # tasks whose answer may equal the instruction
_LONGEST_PERIOD: Final = 60  # maximum length of a repeated unit, in characters
_LEAST_REPEATED: Final = 20  # minimum length of a repetition, in characters, so that "ha ha ha" passes
_LONG: Final = 20  # words from which a text counts as long
_PROSE_LINE: Final = 8  # words from which a line counts as prose
_LEAST_LETTERS: Final = 40  # minimum for the language detector
_SURE: Final = 0.99  # probability from which the detector is trusted
_SHINGLE: Final = 5  # length of an n-gram, in characters
_NEAR: Final = 0.9  # Jaccard similarity of near duplicates

_BRACKETS: Final = {"(": ")", "[": "]", "{": "}"}
_TERMINAL: Final = ".!?…。！？｡।॥۔؟።፧។៕။։"
_WORD: Final = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\s\u3040-\u30ff\u3400-\u9fff]+")
# Words that do not change what an instruction asks; "not", "no" and numbers do, so they are not listed.
_FUNCTION_WORDS: Final = frozenset(
    """
    a an the please kindly of to and that this these those following given below above is are be
    i me you your can could would will
    """.split()  # noqa: SIM905  # one word per line would fill a page
)


def empty(turn: Turn) -> str | None:
    """Instruction or response is empty."""
    if not turn.instruction.strip():
        return "no instruction"
    return None if turn.response and turn.response.strip() else "no response"


def degenerate(task: str, turn: Turn, max_chars: int) -> str | None:
    """The response is too long, repeats itself, or repeats the instruction."""
    response = turn.response or ""
    if len(response) > max_chars:
        return f"{len(response)} characters"
    said = _normalise(response)
    if said == _normalise(turn.instruction) and not _SAYS_AGAIN.search(task.casefold()):
        return "the response is the instruction"
    unit = repeated_unit(said)
    return unit and f"repeats {unit!r}"


def repeated_unit(text: str) -> str | None:
    """Return the unit that a text repeats at least five times, over at least half its length; else None."""
    grams = max(1, len(text) - 2)
    # If five repetitions fill half a text, at most 0.6 of its 3-grams are distinct; others skip the search.
    if len(text) < _LEAST_REPEATED or len({text[i : i + 3] for i in range(grams)}) > 0.65 * grams + 3:
        return None
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    needed = max(_LEAST_REPEATED, len(text) / 2)
    for period in range(1, min(_LONGEST_PERIOD, len(text) // 5) + 1):
        breaks = np.flatnonzero(codes[period:] != codes[:-period])
        edges = np.concatenate(([-1], breaks, [len(text) - period]))
        gaps = np.diff(edges) - 1
        longest = int(gaps.argmax())
        filled = int(gaps[longest]) + period
        if filled >= needed and filled >= 5 * period:
            start = int(edges[longest]) + 1
            return text[start : start + period].strip() or text[start : start + period]
    return None


def truncation(text: str, language: str) -> str | None:
    """Return how a long free text breaks off, or None if it ends properly."""
    if text.count("```") % 2:
        return "ends in an open code fence"
    prose = re.sub(r"```.*?```", "\n\n", text, flags=re.DOTALL).rstrip()
    if "```" in text and not prose.endswith(text.rstrip()[-1:]):
        return None  # ends with a code block
    lines = [line.strip() for line in prose.split("\n") if line.strip()]
    if not lines or len(_words(prose)) < _LONG:
        return None
    last = lines[-1]
    if last.rstrip("\"'”’»)]}*_")[-1:] in _TERMINAL:
        return None
    opened = _open_mark(prose, last)
    return f"ends in an open {opened}" if opened else _broken_off(lines, prose, language)


def _open_mark(text: str, last: str) -> str | None:
    # Only brackets at the start of a word of the last line count: :( opens nothing, and 1) closes nothing.
    opened: list[str] = []
    for before, character in zip(" " + last, last, strict=False):
        if character in _BRACKETS and not before.isalnum() and before not in ":;=-":
            opened.append(character)
        elif opened and character in _BRACKETS.values():
            opened.pop()
    if opened:
        return opened[-1]
    # Straight and curly quotation marks are mixed in practice; 10" means inches.
    marks = re.compile(r"(?<!\d)[\"“”„]")
    if len(marks.findall(last)) % 2 and len(marks.findall(text)) % 2:
        return marks.findall(last)[-1]
    return None


def _broken_off(lines: list[str], text: str, language: str) -> str | None:
    last = lines[-1]
    words = _words(last)
    if resolve(language).script in ("Thai", "Laoo") or len(words) < _PROSE_LINE:
        return None
    if words[-1].startswith("#") or sum(any(map(str.isalpha, word)) for word in words) * 3 < len(words) * 2:
        return None  # a hashtag, or mostly figures
    if re.search(r"[=<>{}|\\_;]|https?:|\w\(", last):
        return None  # code, a table or a URL
    end = last.rstrip("\ufe0f")[-1:]  # the emoji variation selector is a mark (M) like those of Hindi
    if end in ",،、，:：-–—":
        return f"ends in {end!r}"
    if unicodedata.category(end)[0] not in "LM":
        return None
    # If most earlier lines lack a full stop, as in lists and verse, the text is not truncated.
    earlier = [line for line in lines[:-1] if len(_words(line)) >= _PROSE_LINE // 2]
    if earlier and sum(line.rstrip("\"'”’)]*")[-1:] in _TERMINAL for line in earlier) * 2 < len(earlier):
        return None
    sentences = any(mark in text for mark in "。！？।॥۔؟።") or re.search(r"[.!?…][\"'”’)]*\s", text)
    count = len(_words(text))
    if sentences or (count >= _LONG * 3 // 2 and text.count(",") * 4 < count):
        return "ends in mid-sentence"
    return None


def wrong_language(task: str, turn: Turn, code: str) -> str | None:
    """Instruction or response is in another language than the example's."""
    if "translat" in task.casefold():
        return None
    for part, text in (("instruction", turn.instruction), ("response", turn.response or "")):
        detail = _foreign(text, code)
        if detail:
            return f"{part}: {detail}"
    return None


def _foreign(text: str, code: str) -> str | None:
    letters = {c: n for c, n in Counter(unicodedata.normalize("NFKC", text)).items() if c.isalpha()}
    total = sum(letters.values())
    script = resolve(code).script
    ours = sum(n for c, n in letters.items() if _letter_of(c, script))
    if total and ours * 2 < total:
        return f"{ours} of {total} letters are {script}"
    identify = _identifier(code)
    if total < _LEAST_LETTERS or identify is None:
        return None
    found, probability = identify(text)
    return f"{found} ({probability:.2f})" if found != code and probability >= _SURE else None


@cache
def _letter_of(character: str, script: str) -> bool:
    return unicodedata.name(character, "").split(" ")[0] in SCRIPTS[script]


@cache
def _identifier(code: str) -> Callable[[str], tuple[str, float]] | None:
    """Return a detector for this language, English, German and XGLUE's twelve, limited to its script.

    None if the detector does not know the language or no other one shares the script.
    """
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    script = languages()[code].script
    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    others = {other for other in ("en", "de", *XGLUE_TWELVE) if languages()[other].script == script}
    if code not in identifier.labels or not others - {code}:
        return None
    identifier.set_languages({code, *others})
    return identifier.classify


class Duplicates:
    """Finds the earlier example with the same instruction and response."""

    def __init__(self) -> None:
        self._ids: dict[tuple[str, str], str] = {}

    def __call__(self, example: ParallelExample, turn: Turn) -> str | None:
        key = _normalise(turn.instruction), _normalise(turn.response or "")
        if key in self._ids:
            return f"same as {self._ids[key]}"
        self._ids[key] = example.id
        return None


class NearDuplicates:
    """Finds an earlier example that asks the same in nearly the same words."""

    def __init__(self) -> None:
        self._buckets: dict[tuple[str, ...], list[tuple[str, str]]] = {}

    def __call__(self, example: ParallelExample, turn: Turn) -> str | None:
        words = list(_bare_words(turn.instruction))
        if len(words) < _LONG:
            return None
        text = " ".join(words)
        bucket = self._buckets.setdefault(tuple(w for w in words if w not in _FUNCTION_WORDS), [])
        for id, other in bucket:
            alike = _jaccard(text, other)
            if alike >= _NEAR:
                return f"{alike:.2f} like {id}"
        bucket.append((example.id, text))
        return None


def _jaccard(text: str, other: str) -> float:
    if text == other:
        return 1.0
    ours, theirs = ({t[i : i + _SHINGLE] for i in range(len(t) - _SHINGLE + 1)} for t in (text, other))
    return len(ours & theirs) / len(ours | theirs)


def _normalise(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _bare_words(text: str) -> Iterator[str]:
    for word in _words(_normalise(text)):
        bare = word.strip("".join({c for c in word if unicodedata.category(c)[0] in "PZ"}))
        if bare:
            yield bare


def _words(text: str) -> list[str]:
    """Split a text at spaces; each Chinese or Japanese character counts as a word."""
    return _WORD.findall(text)
