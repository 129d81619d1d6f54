"""Division: which part of a set that has no training file may be learned, and which part is reported.

It is decided by a hash of what is asked about (a premise, a passage), never of a row, so that all rows about
it are on one side; the same on every machine and for every run, whatever its seed, languages or sources.
"""

import hashlib
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

LEARNED: Final = 0.6
"""Share of the groups that may be learned."""
REPORTED: Final = "40 %"


@dataclass(frozen=True)
class Division:
    """A dev set in two parts.

    Attributes:
        name: The set.
        by: What is never on both sides, in words.
        groups: By id of a row, what it is about.
    """

    name: str
    by: str
    groups: Mapping[str, str]

    def learned(self, id: str) -> bool:
        """Whether a row may be learned; what has no English row is neither learned nor left out."""
        return id in self.groups and is_learned(self.name, self.groups[id])

    @property
    def split(self) -> str:
        """The split's name where the reported part alone is read."""
        return f"dev ({REPORTED} by {self.by})"

    @property
    def note(self) -> str:
        """What a reader of the scores must know."""
        return (
            f"{self.name} has no training file: of its dev set {REPORTED}, divided by {self.by}, are "
            "reported, and the others are free to be learned."
        )

    def plain(self) -> dict[str, list[str]]:
        """The ids of both parts."""
        return {
            "learned": [id for id in self.groups if self.learned(id)],
            "reported": [id for id in self.groups if not self.learned(id)],
        }


def is_learned(name: str, group: str) -> bool:
    """Whether a group of a set belongs to the part that may be learned."""
    digest = hashlib.sha256(f"{name}/{group}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:6]) / 2**48 < LEARNED


def components(
    texts: Mapping[str, Iterable[str]], keys: Mapping[str, Iterable[str]] | None = None, words: int = 6
) -> dict[str, str]:
    """By id, the group of all rows that are linked, named by the smallest of what links them.

    Texts are linked that have the same words, in whatever order, or share a passage: sets hold near copies.

    Args:
        texts: By id, the English texts that a row is about.
        keys: By id, what else rows have in common: an article's title.
        words: Length of a passage.
    """
    parents: dict[str, str] = {}

    def root(key: str) -> str:
        parents.setdefault(key, key)
        while parents[key] != key:
            parents[key] = parents[parents[key]]
            key = parents[key]
        return key

    firsts = {}
    for id, some in texts.items():
        bags = [" ".join(sorted(words_of(text))) for text in some]
        linked = [*bags, *(keys or {}).get(id, ()), *(p for text in some for p in passages(text, words))]
        firsts[id] = linked[0]
        for other in linked[1:]:
            one, two = sorted((root(linked[0]), root(other)))
            parents[two] = one
    return {id: root(first) for id, first in firsts.items()}


def passages(text: str, words: int) -> Iterator[str]:
    """Every run of so many words."""
    found = words_of(text)
    return (" ".join(found[start : start + words]) for start in range(len(found) - words + 1))


def words_of(text: str) -> list[str]:
    """Letters, signs and digits alone, case folded, between spaces."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return "".join(c if unicodedata.category(c)[0] in "LMN" else " " for c in folded).split()
