"""Answers: choose the ten answer pairs shown on the page, by a fixed rule that prevents cherry-picking.

Flow: rows before and after → pairs with a verdict → chosen(), spread over languages and tasks.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from isogloss.report.scores import Label

Row = Mapping[str, Any]

# Ten slots. If no pair with a verdict is left, its slot goes to the first verdict in VERDICTS that has one.
PLACES: Final = (
    *("mended", "still wrong", "kept", "mended", "still wrong"),
    *("mended", "lost", "still wrong", "kept", "mended"),
)
VERDICTS: Final = ("mended", "still wrong", "kept", "lost")
RULE: Final = (
    "Chosen by a fixed rule, not by hand: four mended, three still wrong, two kept and one lost, where "
    "available. Each slot goes to the language shown least so far, then to the task shown least; ties are "
    "broken by the SHA-256 of language and item."
)
LONGEST: Final = 800  # characters of one text on the page


@dataclass(frozen=True)
class Pair:
    """One item in one language, answered before and after training."""

    before: Row
    after: Row

    @property
    def verdict(self) -> str:
        was, now = bool(self.before.get("consistent")), bool(self.after.get("consistent"))
        return {(False, True): "mended", (True, True): "kept", (True, False): "lost"}.get(
            (was, now), "still wrong"
        )

    @property
    def language(self) -> str:
        return str(self.after.get("language", ""))

    @property
    def label(self) -> Label:
        return Label.of(self.language)

    @property
    def answered_in(self) -> Label:
        """The language in which the answer should be."""
        return Label.of(str(self.after.get("answer_language") or self.language))

    @property
    def task(self) -> str:
        return str(self.after.get("task", ""))

    @property
    def digest(self) -> str:
        key = f"{self.language}\n{self.after.get('id', '')}"
        return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def pairs(before: Iterable[Row], after: Iterable[Row]) -> list[Pair]:
    """Pair the answers to items answered both before and after training, in the order of `after`."""
    earlier = {(str(row.get("language")), str(row.get("id"))): row for row in before}
    # Rows without an English twin have no verdict.
    judged = (row for row in after if row.get("consistent", False) is not None)
    found = ((earlier.get((str(row.get("language")), str(row.get("id")))), row) for row in judged)
    return [Pair(was, now) for was, now in found if was is not None]


def chosen(candidates: Iterable[Pair]) -> list[Pair]:
    """Choose at most ten pairs by `RULE`, independently of the order of the candidates."""
    left = sorted(candidates, key=lambda pair: pair.digest)
    languages, tasks = Counter[str](), Counter[str]()
    picked: list[Pair] = []
    for place in PLACES:
        for verdict in (place, *VERDICTS):
            able = [pair for pair in left if pair.verdict == verdict]
            if able:
                best = min(able, key=lambda pair: (languages[pair.language], tasks[pair.task], pair.digest))
                left.remove(best)
                picked.append(best)
                languages[best.language] += 1
                tasks[best.task] += 1
                break
    return picked


def tally(candidates: Iterable[Pair]) -> list[tuple[str, int]]:
    """Count all pairs by verdict."""
    counts = Counter(pair.verdict for pair in candidates)
    return [(verdict, counts[verdict]) for verdict in VERDICTS]


def cut(text: Any) -> str:
    """Truncate a text to `LONGEST` characters and append how many were left out."""
    text = "" if text is None else str(text)
    if len(text) <= LONGEST:
        return text
    return f"{text[:LONGEST]}… ({len(text) - LONGEST} more characters)"
