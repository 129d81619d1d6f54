"""Division: splits a data set without a training file into a part for training and a part to report.

The split is a hash of what a row is about (a premise, a passage), not of the row, so all rows about it are in
the same part. It is the same on every machine and for every run, whatever its seed, languages or sources.
"""

import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from isogloss.data.draw import uniform

LEARNED: Final = 0.6
"""Share of the groups that may be used for training."""
REPORTED: Final = "40 %"


@dataclass(frozen=True)
class Division:
    """A dev set divided into two parts.

    Attributes:
        name: The data set.
        by: What is never in both parts, in words (premise, article).
        groups: By row ID, the group of what the row is about.
    """

    name: str
    by: str
    groups: Mapping[str, str]

    def learned(self, id: str) -> bool:
        """Return whether a row may be trained on; False for a row without an English one."""
        return id in self.groups and is_learned(self.name, self.groups[id])

    @property
    def split(self) -> str:
        """Name of the split when only the reported part is evaluated."""
        return f"dev ({REPORTED} by {self.by})"

    @property
    def note(self) -> str:
        """What readers of the scores need to know."""
        return (
            f"{self.name} has no training file: {REPORTED} of its dev set, divided by {self.by}, are "
            "reported, and the rest may be used for training."
        )

    def plain(self) -> dict[str, list[str]]:
        """Return the row IDs of both parts."""
        return {
            "learned": [id for id in self.groups if self.learned(id)],
            "reported": [id for id in self.groups if not self.learned(id)],
        }


def is_learned(name: str, group: str) -> bool:
    """Return whether a group of a data set belongs to the part for training."""
    return uniform(f"{name}/{group}") < LEARNED


def components(
    texts: Mapping[str, Iterable[str]], keys: Mapping[str, Iterable[str]] | None = None, words: int = 6
) -> dict[str, str]:
    """Map each row ID to its group of linked rows, named after the smallest link in it.

    Texts are linked if they have the same words in any order or share a passage, because data sets contain
    near duplicates.

    Args:
        texts: By row ID, the English texts that the row is about.
        keys: By row ID, other links between rows, such as an article's title.
        words: Length of a shared passage in words.
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
    """Yield every run of `words` consecutive words."""
    found = words_of(text)
    return (" ".join(found[start : start + words]) for start in range(len(found) - words + 1))


def words_of(text: str) -> list[str]:
    """Split a text into case-folded words of letters, marks and digits."""
    return unicodedata.normalize("NFKC", text).casefold().translate(_SPACES).split()


class _Spaces(dict[int, int]):
    """Table for `str.translate`: characters that are no letter, mark or digit become a space."""

    def __missing__(self, point: int) -> int:
        self[point] = point if unicodedata.category(chr(point))[0] in "LMN" else ord(" ")
        return self[point]


_SPACES: Final = _Spaces()
