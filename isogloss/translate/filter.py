"""Filter translations by what can be seen from the pair itself; style is not judged.

Every check returns a readable detail. Limits are per language and stored in `limits.yaml`, chosen by
`benchmarks/filter.py` on clean pairs; a language without an entry gets wide limits derived from the others.
Flow: English and translation → checks, most reliable first → reasons to drop the pair, or none.
"""

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from statistics import median
from typing import Final

import yaml
from sacrebleu.metrics.chrf import CHRF

from isogloss.data.reading import normalise
from isogloss.evaluate.fidelity import by_word, rank
from isogloss.languages import languages

CHECKS: Final = (
    "empty",
    "copy",
    "language",
    "length",
    "cut off",
    "repetition",
    "numbers",
    "kept parts",
    "likeness",
    "round trip",
)
"""Names of the checks that can drop a pair, in order of evaluation."""
ROUND_TRIP: Final = 25.0
"""Default minimum chrF of a back-translation."""
SHORT: Final = 3
"""Maximum words of a response that may equal the English one: a name, a number, "No" in Spanish."""
FEWEST_LETTERS: Final = 20
"""Minimum letters for the language identifier to judge; it is often wrong about shorter texts."""


@dataclass(frozen=True)
class Limits:
    """Limits for pairs of English and one language.

    Attributes:
        ratio: Characters per English character, over all clean pairs.
        shortest, longest: Bounds of `surplus`, the standardised difference in length.
        foreign: Lower bound of the language identifier's margin over the likeliest other language.
        ends: True if a text that ends in a full stop, question or exclamation mark must also end in one
            when translated.
        likeness: Lower bound of `likeness.scores`; None if not measured, which disables the check.
    """

    ratio: float
    shortest: float
    longest: float
    foreign: float
    ends: bool
    likeness: float | None


@dataclass(frozen=True)
class Reason:
    """Why a pair is dropped: one of `CHECKS`, and the details."""

    check: str
    detail: str

    def __str__(self) -> str:
        return f"{self.check}: {self.detail}"


@cache
def limits_of(code: str) -> Limits:
    """Return a language's limits.

    Without an entry, they are derived from the languages that likewise do or do not separate words by
    spaces: the median ratio, twice the widest length bounds, and the most lenient of the rest.
    """
    text = resources.files("isogloss.translate").joinpath("limits.yaml").read_text(encoding="utf-8")
    table = {name: Limits(**entry) for name, entry in yaml.safe_load(text).items()}
    if code in table:
        return table[code]
    alike = [one for name, one in table.items() if languages()[name].unspaced == languages()[code].unspaced]
    return Limits(
        ratio=median(one.ratio for one in alike),
        shortest=2 * min(one.shortest for one in alike),
        longest=2 * max(one.longest for one in alike),
        foreign=min(one.foreign for one in alike),
        ends=all(one.ends for one in alike),
        likeness=None,
    )


def reasons(
    english: str,
    text: str,
    code: str,
    *,
    keep: Sequence[str] = (),
    response: bool = False,
    likeness: float | None = None,
    back: str | None = None,
    least: float = ROUND_TRIP,
    limits: Limits | None = None,
) -> list[Reason]:
    """Return the reasons to drop a translation; empty if it passes every check.

    Args:
        english: English source text.
        text: Its translation.
        code: isogloss code of the expected language.
        keep: Regular expressions of further parts that must appear in both texts.
        response: Whether it is a response, which may be the same in both languages if it is short.
        likeness: The pair's value from `likeness.scores`, if computed.
        back: Back-translation into English, if there is one; empty if back-translation failed.
        least: Minimum chrF of `back`.
        limits: Replaces the language's limits.
    """
    limits = limits or limits_of(code)
    if not text.strip():
        return [Reason("empty", "there is no text")]
    # A short answer such as "Paris" may be the same in both languages, whatever their scripts.
    same = response and len(english.split()) <= SHORT and normalise(english) == normalise(text)
    checks: dict[str, Callable[[], str | None]] = {
        "copy": lambda: None if same else copied(english, text),
        "language": lambda: None if same else foreign(text, code, limits, without=kept_parts(english, keep)),
        "length": lambda: too_long_or_short(english, text, limits),
        "cut off": lambda: cut_off(english, text, limits),
        "repetition": lambda: repeated(english, text),
        "numbers": lambda: other_numbers(english, text),
        "kept parts": lambda: lost_parts(english, text, keep),
        "likeness": lambda: (
            f"{likeness:.2f}, below the minimum of {limits.likeness:.2f}"
            if likeness is not None and limits.likeness is not None and likeness < limits.likeness
            else None
        ),
        "round trip": lambda: None if back is None else lost_on_the_way(english, back, least),
    }
    found = ((name, check()) for name, check in checks.items())
    return [Reason(name, detail) for name, detail in found if detail is not None]


# --- the language


def copied(english: str, text: str) -> str | None:
    """Check for an untranslated copy; a text of nothing but kept parts (a URL, code) may be one."""
    if normalise(english) != normalise(text):
        return None
    said = any(c.isalpha() for c in _without(kept_parts(english, ()), english))
    return "it is the English text" if said else None


def foreign(text: str, code: str, limits: Limits, without: Iterable[str] = ()) -> str | None:
    """Check the script, and that no other language is likelier to the identifier by more than usual.

    A text of fewer than `FEWEST_LETTERS` is judged by its script alone.

    Args:
        without: Parts without a language, removed before identification.
    """
    text = _without(without, text)
    letters = sum(c.isalpha() for c in text)
    if letters and by_word(text, code) < 0.5:
        return f"not written in {languages()[code].script}"
    if letters < FEWEST_LETTERS:
        return None
    margin, other = foreignness(text, code)
    return f"rather {other}" if margin < limits.foreign else None


def foreignness(text: str, code: str) -> tuple[float, str]:
    """Return the language's margin over the likeliest other language, and that language.

    In nats, divided by the square root of the text's bytes, as the spread of log-likelihoods grows with it.
    """
    scores = rank(text, code)
    if not scores:
        return math.inf, ""
    own = scores.pop(code)
    other = max(scores, key=lambda one: scores[one], default="")
    return ((own - scores[other]) / math.sqrt(len(text.encode())) if other else math.inf), other


# --- the length


def surplus(english: str, text: str, ratio: float) -> float:
    """Return how much longer the text is than expected from the English, roughly in standard deviations.

    The length difference is divided by the square root of the English length, as the variance grows with
    length (Gale and Church 1993, Computational Linguistics 19(1), section 3.1).
    """
    length = max(len(english.strip()), 1)
    return (len(text.strip()) / ratio - length) / math.sqrt(length)


def too_long_or_short(english: str, text: str, limits: Limits) -> str | None:
    """Check that the length is close to what the English length predicts."""
    found = surplus(english, text, limits.ratio)
    if limits.shortest <= found <= limits.longest:
        return None
    return f"{len(text.strip())} characters for {len(english.strip())} in English"


_ENDS: Final = ".?!…。？！؟۔।॥።៕။·;։"
_CLOSING: Final = "\"'”’»«›)]}*_`」』）】\u200f\u200e "
_PAIRS: Final = ("()", "[]", "{}", "“”", "«»", "「」", "（）")


def ends(text: str) -> bool:
    """Return True if the text ends in a full stop, question or exclamation mark of any script."""
    return text.rstrip().rstrip(_CLOSING).endswith(tuple(_ENDS))


def cut_off(english: str, text: str, limits: Limits) -> str | None:
    """Check for missing final punctuation or an unclosed bracket."""
    if limits.ends and english.rstrip().endswith((".", "?", "!")) and not ends(text):
        return "no final punctuation"
    text = re.sub("„([^„“”]*)[“”]", r"\1", text)  # where “ closes, as in German and Bulgarian
    for opening, closing in _PAIRS:
        if text.count(opening) > text.count(closing) and english.count(opening) <= english.count(closing):
            return f"{opening} is not closed"
    return None


_AGAIN: Final = re.compile(r"(.{1,40}?)\1{3,}", re.DOTALL)


def repeated(english: str, text: str) -> str | None:
    """Check for repetition that the English does not have.

    A part repeated four times in a row (20 characters in all), or the same four words three times.
    """
    for match in _AGAIN.finditer(text):
        if len(match[0]) >= 20 and any(c.isalpha() for c in match[1]) and not _AGAIN.search(english):
            return f"{match[1].strip()!r} is repeated"
    most = _often(text)
    return None if most is None or _often(english) is not None else f"{most!r} is repeated"


def _often(text: str) -> str | None:
    words = text.split()
    fours = Counter(" ".join(words[n : n + 4]) for n in range(len(words) - 3))
    return next((four for four, count in fours.most_common(1) if count >= 3), None)


# --- back-translation


def chrf(english: str, back: str) -> float:
    """Return sacrebleu's chrF of a back-translation, 0 to 100 (Popović 2015, W15-3049)."""
    return CHRF().sentence_score(back, [english]).score


def lost_on_the_way(english: str, back: str, least: float) -> str | None:
    """Check that the back-translation is close enough to the English."""
    if not back.strip():
        return "the back-translation is empty"
    found = chrf(english, back)
    return None if found >= least else f"back-translation {back!r} has chrF {found:.0f}, below {least:.0f}"


# --- what must not change

_NUMBER: Final = re.compile(r"\d+(?:[.,'٫٬\u00a0\u202f ](?=\d{3}(?!\d))\d{3}|[.,٫]\d+)*")
_WORDS: Final = frozenset(
    """
    zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen
    sixteen seventeen eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred
    thousand million first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth
    twentieth thirtieth fortieth fiftieth sixtieth seventieth eightieth ninetieth hundredth once twice
    single double half quarter dozen noon midnight every a an ii iii iv january february march april may
    june july august september october november december
    """.split()  # noqa: SIM905  # 60 words, one a line as a list
)
"""Words that another language may write in digits; any one of them counts, whatever its value."""
_SPELLED: Final = 100
"""Whole numbers up to this may be spelled out in the translation."""


def other_numbers(english: str, text: str) -> str | None:
    """Check for numbers that the English has neither in digits nor in words, and for lost large numbers."""
    if _digits(english) == _digits(text):
        return None  # only the separators differ: 7:30 and 07.30
    theirs, ours = _numbers(english), _numbers(text)
    raised = Counter(str(unicodedata.digit(c)) for c in text if _is_raised(c))  # m² contains no number
    added, gone = ours - theirs - raised, theirs - ours
    if not added and not gone:
        return None
    worded = any(word in _WORDS for word in re.findall(r"[a-z]+", english.casefold()))
    if added and (gone or not worded):
        return f"{', '.join(added)} in place of {', '.join(gone) or 'no number'}"
    lost = [number for number in gone if not added and (len(number) > 3 or float(number) > _SPELLED)]
    return f"{', '.join(lost)} is missing" if lost else None


def _numbers(text: str) -> Counter[str]:
    """Normalise numbers, without thousands separators: 1,000 and 1.000 are 1000, 1,5 and 1.50 are 1.5."""
    # Not with int(), which rejects the thousands of digits that a degenerate translation may contain.
    found = Counter[str]()
    for match in _NUMBER.finditer(_plain(text)):
        *whole, last = re.split(r"\D", match[0])
        if whole and len(last) != 3:
            found[f"{''.join(whole).lstrip('0') or '0'}.{last}".rstrip("0").rstrip(".")] += 1
        else:
            found["".join((*whole, last)).lstrip("0") or "0"] += 1
    return found


def _digits(text: str) -> Counter[str]:
    """Count runs of digits, ignoring the separators between them."""
    return Counter(run.lstrip("0") or "0" for run in re.findall(r"\d+", _plain(text)))


def _plain(text: str) -> str:
    return "".join(
        str(unicodedata.decimal(c)) if unicodedata.category(c) == "Nd" else c
        for c in unicodedata.normalize("NFKC", text)
    )


def _is_raised(character: str) -> bool:
    return character.isdigit() and unicodedata.decomposition(character).startswith("<super>")


_KEPT: Final = re.compile(
    r"""
    ```.*?```                               # a block of code
    | `[^`\n]+`                             # code in a line
    | \b(?:https?|ftp)://(?:(?![<>"')\]}])[!-~])+(?<![.,;:!?])  # a URL, without a mark or a letter behind it
    | \b[\w.+-]+@[\w-]+(?:\.[\w-]+)+\b      # an e-mail address
    | \$?\{\{?[^{}\n]{0,80}\}\}?            # {name}, {{name}}, ${name}
    | %\([A-Za-z_]\w*\)[sdif] | (?<![\d%])%[sdif]\b   # printf
    | </?[A-Za-z][^<>\n]{0,200}>            # a tag
    """,
    re.VERBOSE | re.DOTALL | re.ASCII,
)
_LINES: Final = {
    "headings": re.compile(r"^#{1,6} ", re.MULTILINE),
    "list items": re.compile(r"^[ \t]*(?:[-*+•] |\d+[.)] |\d+[.)．）、۔](?=[^\W\d_a-zA-Z]))", re.MULTILINE),
    "rows of a table": re.compile(r"^\|.*\|[ \t]*$", re.MULTILINE),
}


def kept_parts(text: str, keep: Sequence[str]) -> Counter[str]:
    """Count the parts of a text that a translation must keep unchanged."""
    found = Counter(match[0] for match in _KEPT.finditer(text))
    for pattern in keep:
        found.update(match[0] for match in re.finditer(pattern, text) if match[0])
    return found


def _without(parts: Iterable[str], text: str) -> str:
    for part in parts:
        text = text.replace(part, " ")
    return text


def lost_parts(english: str, text: str, keep: Sequence[str]) -> str | None:
    """Check that placeholders, URLs, code, tags, headings, list items and table rows match the English."""
    theirs, ours = kept_parts(english, keep), kept_parts(text, keep)
    if lost := theirs - ours:
        return f"{next(iter(lost))!r} is missing"
    if added := ours - theirs:
        return f"{next(iter(added))!r} is not in the English"
    for name, pattern in _LINES.items():
        if (there := len(pattern.findall(english))) != (here := len(pattern.findall(text))):
            return f"{here} {name}, {there} in English"
    return None
