"""Filter: what is wrong with a translation, as far as its two sides show it; no judgement of style.

Every check says what it saw, in words. Limits differ by language and stand in `limits.yaml`, chosen by
`benchmarks/filter.py` on clean pairs; a language without an entry has the widest of all that have one.
Flow: English and translation → checks, the surest first → reasons to leave the pair out, or none.
"""

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
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
"""What a pair is left out for, in the order in which they are looked at."""


ROUND_TRIP: Final = 25.0
"""chrF that a text must reach which is translated back, unless said otherwise."""


@dataclass(frozen=True)
class Limits:
    """Of one language, in pairs with English.

    Attributes:
        ratio: Characters of the language for one of English, over all clean pairs.
        shortest, longest: Bounds of `surplus`, the standardised difference in length.
        foreign: Bound of the identifier's score for the language, beside the likeliest other.
        ends: Whether a translation of a text that ends in a full stop, question or exclamation mark does.
        likeness: Lower bound of `likeness.scores`; None where it was not measured, so that it is no reason.
    """

    ratio: float
    shortest: float
    longest: float
    foreign: float
    ends: bool
    likeness: float | None


@dataclass(frozen=True)
class Reason:
    """Why a pair is left out: one of `CHECKS`, and what was seen."""

    check: str
    detail: str

    def __str__(self) -> str:
        return f"{self.check}: {self.detail}"


@cache
def limits_of(code: str) -> Limits:
    """The limits of a language, or the widest, where it has none of its own."""
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
    likeness: float | None = None,
    back: str | None = None,
    least: float = ROUND_TRIP,
    limits: Limits | None = None,
) -> list[Reason]:
    """Why a translation is not to be learned from; empty where nothing speaks against it.

    Args:
        english: What was translated.
        text: Its translation.
        code: Our code of the language it should be in.
        keep: Regular expressions of what must stand in both, beside what is looked for anyway.
        likeness: The pair's `likeness.scores`, where they were worked out.
        back: The translation, translated back into English, where it was; empty where that failed.
        least: chrF that `back` must reach.
        limits: In place of the language's own.
    """
    limits = limits or limits_of(code)
    if not text.strip():
        return [Reason("empty", "there is no text")]
    checks: dict[str, Callable[[], str | None]] = {
        "copy": lambda: copied(english, text),
        "language": lambda: foreign(text, code, limits, without=kept_parts(english, keep)),
        "length": lambda: too_long_or_short(english, text, limits),
        "cut off": lambda: cut_off(english, text, limits),
        "repetition": lambda: repeated(english, text),
        "numbers": lambda: other_numbers(english, text),
        "kept parts": lambda: lost_parts(english, text, keep),
        "likeness": lambda: (
            f"{likeness:.2f}, and {limits.likeness:.2f} is the least"
            if likeness is not None and limits.likeness is not None and likeness < limits.likeness
            else None
        ),
        "round trip": lambda: None if back is None else lost_on_the_way(english, back, least),
    }
    found = ((name, check()) for name, check in checks.items())
    return [Reason(name, detail) for name, detail in found if detail is not None]


# --- the language


def copied(english: str, text: str) -> str | None:
    """The English again; what is only kept parts (a URL, code) may be."""
    if normalise(english) != normalise(text) or not any(c.isalpha() for c in _rest(english, ())):
        return None
    return "it is the English text"


def foreign(text: str, code: str, limits: Limits, without: Collection[str] = ()) -> str | None:
    """Another script, or a language that the identifier thinks likelier by more than is usual.

    Args:
        without: Parts that are in no language.
    """
    for part in without:
        text = text.replace(part, " ")
    if not any(c.isalpha() for c in text):
        return None
    if by_word(text, code) < 0.5:
        return f"not written in {languages()[code].script}"
    margin, other = foreignness(text, code)
    return f"rather {other}" if margin < limits.foreign else None


def foreignness(text: str, code: str) -> tuple[float, str]:
    """How much likelier the language is than the likeliest other, and which that is.

    In nats over the root of the text's bytes, as the spread of log-likelihoods grows with it.
    """
    scores = rank(text, code)
    if not scores:
        return math.inf, ""
    own = scores.pop(code)
    other = max(scores, key=lambda one: scores[one], default="")
    return ((own - scores[other]) / math.sqrt(len(text.encode())) if other else math.inf), other


# --- the length


def surplus(english: str, text: str, ratio: float) -> float:
    """How much longer the text is than the English leads to expect, in standard deviations, about.

    The difference of both lengths over the root of the English one, as the variance grows with length (Gale
    and Church 1993, Computational Linguistics 19(1), section 3.1).
    """
    length = max(len(english.strip()), 1)
    return (len(text.strip()) / ratio - length) / math.sqrt(length)


def too_long_or_short(english: str, text: str, limits: Limits) -> str | None:
    """Far from what the English text's length leads to expect."""
    found = surplus(english, text, limits.ratio)
    if limits.shortest <= found <= limits.longest:
        return None
    return f"{len(text.strip())} characters for {len(english.strip())} in English"


_ENDS: Final = ".?!…。？！؟۔।॥።៕။·;։"
_CLOSING: Final = "\"'”’»«›)]}*_`」』）】\u200f\u200e "
_PAIRS: Final = ("()", "[]", "{}", "“”", "«»", "「」", "（）")


def ends(text: str) -> bool:
    """Whether it ends in a full stop, question or exclamation mark, of any script."""
    return text.rstrip().rstrip(_CLOSING).endswith(tuple(_ENDS))


def cut_off(english: str, text: str, limits: Limits) -> str | None:
    """It lacks the mark at its end, or a bracket that it opens."""
    if limits.ends and english.rstrip().endswith((".", "?", "!")) and not ends(text):
        return "no mark at its end"
    text = re.sub("„([^„“”]*)[“”]", r"\1", text)  # where “ closes, as in German and Bulgarian
    for opening, closing in _PAIRS:
        if text.count(opening) > text.count(closing) and english.count(opening) <= english.count(closing):
            return f"{opening} is not closed"
    return None


_AGAIN: Final = re.compile(r"(.{1,40}?)\1{3,}", re.DOTALL)


def repeated(english: str, text: str) -> str | None:
    """A part comes four times in a row, 20 characters in all, or four words three times; not in English."""
    for match in _AGAIN.finditer(text):
        if len(match[0]) >= 20 and any(c.isalpha() for c in match[1]) and not _AGAIN.search(english):
            return f"{match[1].strip()!r} again and again"
    most = _often(text)
    return None if most is None or _often(english) is not None else f"{most!r} again and again"


def _often(text: str) -> str | None:
    words = text.split()
    fours = Counter(" ".join(words[n : n + 4]) for n in range(len(words) - 3))
    return next((four for four, count in fours.most_common(1) if count >= 3), None)


# --- what comes back


def chrf(english: str, back: str) -> float:
    """How much of the characters comes back, 0 to 100 (Popović 2015, W15-3049), by sacrebleu."""
    return CHRF().sentence_score(back, [english]).score


def lost_on_the_way(english: str, back: str, least: float) -> str | None:
    """Translated back, it is too far from the English."""
    if not back.strip():
        return "nothing comes back"
    found = chrf(english, back)
    return None if found >= least else f"{back!r} comes back, chrF {found:.0f}, and {least:.0f} is the least"


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
"""Words that another language may well write in figures; that there is one is enough, whatever its number."""
_SPELLED: Final = 100
"""Whole numbers up to here may be written out in the translation."""


def other_numbers(english: str, text: str) -> str | None:
    """A number that the English has not, in figures or words; or one of its own gone that is not small."""
    if _digits(english) == _digits(text):
        return None  # only what parts them differs: 7:30 and 07.30
    theirs, ours = _numbers(english), _numbers(text)
    raised = Counter(str(unicodedata.digit(c)) for c in text if _is_raised(c))  # m² is no number
    added, gone = ours - theirs - raised, theirs - ours
    if not added and not gone:
        return None
    worded = any(word in _WORDS for word in re.findall(r"[a-z]+", english.casefold()))
    if added and (gone or not worded):
        return f"{', '.join(added)} in place of {', '.join(gone) or 'no number'}"
    lost = [number for number in gone if not added and (len(number) > 3 or float(number) > _SPELLED)]
    return f"{', '.join(lost)} is gone" if lost else None


def _numbers(text: str) -> Counter[str]:
    """In plain digits, without what parts thousands: 1,000 and 1.000 are 1000, 1,5 and 1.50 are 1.5."""
    # Not by int, which refuses the thousands of digits that a translator without an end may write.
    found = Counter[str]()
    for match in _NUMBER.finditer(_plain(text)):
        *whole, last = re.split(r"\D", match[0])
        if whole and len(last) != 3:
            found[f"{''.join(whole).lstrip('0') or '0'}.{last}".rstrip("0").rstrip(".")] += 1
        else:
            found["".join((*whole, last)).lstrip("0") or "0"] += 1
    return found


def _digits(text: str) -> Counter[str]:
    """Runs of digits, whatever stands between them."""
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
    """What must stand in a translation as it is, with how often it stands in the text."""
    found = Counter(match[0] for match in _KEPT.finditer(text))
    for pattern in keep:
        found.update(match[0] for match in re.finditer(pattern, text))
    return found


def lost_parts(english: str, text: str, keep: Sequence[str]) -> str | None:
    """Placeholders, URLs, addresses, code, tags, headings and list items that are not as in English."""
    theirs, ours = kept_parts(english, keep), kept_parts(text, keep)
    if lost := theirs - ours:
        return f"{next(iter(lost))!r} is gone"
    if added := ours - theirs:
        return f"{next(iter(added))!r} is not in the English"
    for name, pattern in _LINES.items():
        if (there := len(pattern.findall(english))) != (here := len(pattern.findall(text))):
            return f"{here} {name}, {there} in English"
    return None


def _rest(text: str, keep: Sequence[str]) -> str:
    for part in kept_parts(text, keep):
        text = text.replace(part, " ")
    return text


def counts(found: Mapping[str, Sequence[Reason]]) -> Counter[str]:
    """How many pairs are left out for each check; a pair counts for the first alone."""
    return Counter(some[0].check for some in found.values() if some)
