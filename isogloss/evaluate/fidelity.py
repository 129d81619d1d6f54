"""Fidelity: is an answer in the requested language?

Known wordings decide first, then the script, then a language identifier among the candidates written in that
script. Correctness is not judged here. An empty or unreadable answer fails; an answer that could equally be
English is undecided.
Flow: known wordings → detector (script, then py3langid) → the script, if it is not English's, or undecided.
"""

import copy
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from functools import cache, lru_cache
from typing import Final

from py3langid.langid import MODEL_FILE, LanguageIdentifier

from isogloss.data.reading import normalise, readable
from isogloss.languages import SOURCE, languages
from isogloss.languages.scripts import SCRIPTS

_LABELS: Final = {
    "nb": "no",
    "ff": "fuv",
    "zh-Hant": "zh",
}  # py3langid's labels that differ from our codes
# On fragments of FLORES-101 dev in 15 languages, where the script leaves a choice, py3langid's error rate is
# 12 % at 7 to 9 letters, 7 % at 13 to 15, 3 % at 21 to 30 and 1 % at 31 to 45.
_FEWEST_LETTERS: Final = 12
_FEWEST_GUESSED: Final = 6  # benchmarks/detector.py: below, English is misclassified too often


Detector = Callable[[str, Collection[str]], str | None]
"""Detects in which of the candidate languages a text is written; None if undecidable."""


def in_language(
    text: str,
    language: str,
    *,
    candidates: Collection[str],
    known: Mapping[str, Collection[str]] | None = None,
) -> bool | None:
    """Whether the text is in the language rather than in another candidate; None if undecidable.

    Undecidable are digits, wordings that also exist in English, and texts in English's script that are too
    short to detect. A script other than English's is sufficient evidence.

    Args:
        text: An answer. Empty or without a letter or digit: False.
        language: Our code of the requested language, which is added to the candidates.
        candidates: Our codes of the languages that may occur, such as those of the run.
        known: By language, wordings that are certainly in it, such as an item's options. A text among the
            language's own wordings is in it; a text found only among other candidates' wordings is not. All
            other texts are decided by `detect`.
    """
    if not readable(text):
        return False
    folded, letters, script = normalise(text), _letters(text), languages()[language].script
    owners = {code for code, wordings in (known or {}).items() if folded in map(normalise, wordings)}
    if language in owners:
        return None if owners & _rivals(language, candidates) else True
    if owners.intersection(candidates):
        return False
    if (found := detect(text, {*candidates, language})) is not None:
        return found == language
    share = _share(letters, script)
    if share is None:
        return None
    short = letters.total() < _FEWEST_LETTERS and script == languages()[SOURCE].script
    return (None if short else True) if share >= 0.5 else False


def tells_languages_apart(
    language: str, *, candidates: Collection[str], known: Mapping[str, Collection[str]]
) -> bool:
    """Whether answers to an item reveal their language.

    False if all of the language's wordings also occur in English (for English: in the other candidates), such
    as labels that are identical in every language.
    """
    own = set(map(normalise, known.get(language, ())))
    theirs = {normalise(text) for code in _rivals(language, candidates) for text in known.get(code, ())}
    return not own or not own <= theirs


def _rivals(language: str, candidates: Collection[str]) -> set[str]:
    """Return the languages it must be told from: English, or for English all other candidates."""
    return {SOURCE} if language != SOURCE else set(candidates) - {SOURCE}


def by_word(text: str, language: str) -> float:
    """Share of words in the language's script; without letters, 1 if the text has digits, else 0.

    Words without a letter do not count. For scripts without spaces, letters are counted instead of words;
    otherwise a Thai sentence would weigh as much as one English word.
    """
    spoken = languages()[language]
    words, script = text if spoken.unspaced else text.split(), spoken.script
    shares = [share for word in words if (share := _share(_letters(word), script)) is not None]
    if not shares:
        return float(_has_digit(text))
    return sum(share >= 0.5 for share in shares) / len(shares)


def detect(text: str, candidates: Collection[str], /, *, fewest: int = _FEWEST_LETTERS) -> str | None:
    """Detect an answer's language: candidates whose script covers half the letters, then py3langid.

    None for a text without letters, in no candidate's script, or too short for py3langid to choose between
    several candidates. Candidates unknown to py3langid are never returned when others share their script; if
    there are any, another candidate must also win against all languages that py3langid knows.

    Args:
        fewest: Minimum number of letters for py3langid to choose.

    Raises:
        KeyError: A candidate is not one of our codes.
    """
    letters = _letters(text)
    table = languages()
    fitting = [code for code in sorted(candidates) if (_share(letters, table[code].script) or 0) >= 0.5]
    if len(fitting) < 2:
        return fitting[0] if fitting else None
    if letters.total() < fewest:
        return None
    by_label: dict[str, list[str]] = {}
    for code in fitting:
        by_label.setdefault(_LABELS.get(code, code), []).append(code)
    labels = frozenset(by_label) & _all_labels()
    if not labels:
        return None
    label = _identifier(labels).classify(text)[0]
    if len(labels) < len(by_label) and _identifier(None).classify(text)[0] != label:
        return None
    return by_label[label][0] if len(by_label[label]) == 1 else _simplified_or_traditional(text)


def guess(text: str, candidates: Collection[str], /) -> str | None:
    """Detect an instruction's language: like `detect`, but also for shorter texts.

    The minimum is 6 letters, or 1 in scripts other than English's. When judging answers, undecided is better
    than wrong; when answering, the likeliest language is a better guess than English.
    """
    return detect(text, candidates, fewest=_FEWEST_GUESSED if _in_script(text, SOURCE) else 1)


def rank(text: str, code: str) -> dict[str, float]:
    """py3langid's log-likelihoods of a text, by our code, for a language and all others in its script.

    Empty if py3langid does not know the language. Of languages that share one label (Chinese in two scripts),
    only the requested one is returned.

    Raises:
        KeyError: `code` is not one of our codes.
    """
    script, label = languages()[code].script, _LABELS.get(code, code)
    alike = {_LABELS.get(name, name): name for name, one in languages().items() if one.script == script}
    if label not in _all_labels():
        return {}
    found = _identifier(frozenset(alike) & _all_labels()).rank(text)
    return {code if name == label else alike[name]: float(score) for name, score in found}


def _letters(text: str) -> Counter[str]:
    """Count letters and combining marks by the first word of their Unicode name."""
    return Counter(head for c in unicodedata.normalize("NFKC", text) if (head := _head(c)) is not None)


@cache
def _head(character: str) -> str | None:
    if unicodedata.category(character)[0] not in "LM":
        return None
    head = unicodedata.name(character, "").split(" ")[0]
    return head if head not in {"", "COMBINING", "MODIFIER", "VARIATION"} else None  # shared by all scripts


def _share(letters: Counter[str], script: str) -> float | None:
    total = letters.total()
    return sum(letters[head] for head in SCRIPTS[script]) / total if total else None


def _in_script(text: str, language: str) -> bool:
    share = _share(_letters(text), languages()[language].script)
    return _has_digit(text) if share is None else share >= 0.5


def _has_digit(text: str) -> bool:
    return any(c.isnumeric() for c in text)


@lru_cache(maxsize=64)
def _identifier(labels: frozenset[str] | None) -> LanguageIdentifier:
    """Return a view of the cached model (0.7 s to load) limited to these labels; None: all labels."""
    if labels is None:
        return LanguageIdentifier.from_model_file(MODEL_FILE)
    view = copy.copy(_identifier(None))
    view.set_languages(sorted(labels))
    return view


@cache
def _all_labels() -> frozenset[str]:
    return frozenset(_identifier(None).labels)


def _simplified_or_traditional(text: str) -> str | None:
    """Decide by the characters that only one of the two national character sets contains."""
    simplified = sum(_fits(c, "gb2312") and not _fits(c, "big5") for c in text)
    traditional = sum(_fits(c, "big5") and not _fits(c, "gb2312") for c in text)
    if simplified == traditional:
        return None
    return "zh" if simplified > traditional else "zh-Hant"


def _fits(character: str, encoding: str) -> bool:
    try:
        character.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True
