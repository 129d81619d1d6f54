"""Division: which part of a set that has no training file may be learned, and which part is reported.

It is decided by a hash of what is asked about (a premise, a passage), never of a row, so that all rows about
it are on one side; the same on every machine and for every run, whatever its seed, languages or sources.
"""

import hashlib
from collections.abc import Iterable, Mapping
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


def components(keys: Mapping[str, Iterable[str]]) -> dict[str, str]:
    """By id, the group of all that are linked by common keys, named by the smallest of these.

    Args:
        keys: By id, what a row shares with others: its sentences, its passage and article.
    """
    parents: dict[str, str] = {}

    def root(key: str) -> str:
        parents.setdefault(key, key)
        while parents[key] != key:
            parents[key] = parents[parents[key]]
            key = parents[key]
        return key

    for linked in keys.values():
        first, *others = map(root, linked)
        for other in others:
            one, two = sorted((root(first), root(other)))
            parents[two] = one
    return {id: root(next(iter(linked))) for id, linked in keys.items()}
