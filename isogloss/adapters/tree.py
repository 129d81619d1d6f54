"""The language tree: root → family → language, and the adapter rows that belong to each node.

Holds names, levels and ranks, no tensors. `shared` and `flat` are trees too: all rank is in the root, or all
in the leaves.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from isogloss.errors import ConfigError
from isogloss.languages import SOURCE
from isogloss.languages import languages as registry

Level = Literal["root", "family", "language"]
LEVELS: tuple[Level, ...] = ("root", "family", "language")
ROOT = "root"


@dataclass(frozen=True)
class Node:
    """A node, the languages below it, and its `rank` adapter rows, beginning at `start`."""

    name: str
    level: Level
    parent: str | None
    languages: tuple[str, ...]
    rank: int
    start: int

    @property
    def rows(self) -> range:
        return range(self.start, self.start + self.rank)


@dataclass(frozen=True)
class Tree:
    """All nodes in the order of their rows.

    Attributes:
        through: Languages that use the path to a node of another name.
    """

    nodes: tuple[Node, ...]
    through: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def by_name(self) -> dict[str, Node]:
        return {node.name: node for node in self.nodes}

    @property
    def families(self) -> dict[str, str]:
        """The family node of each language."""
        return {code: self.path(code)[1].name for code in self.languages}

    @property
    def rank(self) -> int:
        return sum(node.rank for node in self.nodes)

    @property
    def languages(self) -> tuple[str, ...]:
        return self.by_name[ROOT].languages

    def path(self, language: str) -> tuple[Node, ...]:
        """Return the nodes from root to leaf; a language without a leaf ends at its family or at the root."""
        language = self.through.get(language, language)
        node = self.by_name[ROOT] if language == SOURCE else self.by_name.get(language)
        if node is None:
            node = self.by_name.get(family_name(language)) or self.by_name[ROOT]
        path = [node]
        while path[0].parent is not None:
            path.insert(0, self.by_name[path[0].parent])
        return tuple(path)

    def rows(self, language: str) -> list[int]:
        """Return the adapter rows of all nodes on the path, root first."""
        return [row for node in self.path(language) for row in node.rows]

    def path_rank(self) -> int:
        """Return the highest rank of any path, which is the maximum rank of an exported adapter."""
        return max(sum(node.rank for node in self.path(code)) for code in self.languages)


def shaped(shape: object, ranks: Mapping[str, int]) -> dict[str, int]:
    """Return the ranks per level of a tree's shape, which differ from `ranks` for two of them.

    `flat` puts the whole path's rank in the leaves, `shared` in the root.
    """
    whole = sum(ranks[level] for level in LEVELS)
    if shape == "flat":
        return {"root": 0, "family": 0, "language": whole}
    if shape == "shared":
        return {"root": whole, "family": 0, "language": 0}
    return dict(ranks)


def family_name(language: str) -> str:
    """Return the family node's name, such as `Uralic/Finnic` (Glottolog); empty for an unknown language."""
    entry = registry().get(language)
    return "/".join(entry.family) if entry else ""


def build_tree(
    targets: Sequence[str],
    *,
    families: Mapping[str, str] | Literal["families", "flat", "shared"] = "families",
    ranks: Mapping[str, int],
) -> Tree:
    """Build a tree over the target languages.

    Args:
        targets: Language codes, each once.
        families: `families` groups by Glottolog branch, `flat` moves all rank to the leaves, `shared` moves
            all rank to the root; a mapping gives each language's family.
        ranks: Adapter rows per node of each level: root, family, language.

    Raises:
        ConfigError: A target is listed twice, or a family has the name of a target or of the root.
    """
    if len(set(targets)) < len(targets):
        raise ConfigError("a target language is listed twice; list each once")
    if isinstance(families, str):
        ranks = shaped(families, ranks)
        families = {code: family_name(code) for code in targets}
    group = {code: families[code] for code in targets}
    for family in group.values():
        if family in (ROOT, *targets):
            raise ConfigError(
                f"the family name {family} is also the name of a language or of the root; rename the family"
            )
    specs: list[tuple[str, Level, str | None, tuple[str, ...]]] = [(ROOT, "root", None, tuple(targets))]
    for family in dict.fromkeys(group.values()):
        specs.append((family, "family", ROOT, tuple(code for code in targets if group[code] == family)))
    specs.extend((code, "language", group[code], (code,)) for code in targets)
    nodes, start = [], 0
    for name, level, parent, below in specs:
        nodes.append(Node(name, level, parent, below, ranks[level], start))
        start += ranks[level]
    return Tree(tuple(nodes))
