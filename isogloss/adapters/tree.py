"""The tree of languages: root → family → language, and which rows of the adapter belong to each node.

Knows names, levels and ranks; no tensors. `shared` and `flat` are trees too: all rank in the root,
or all in the leaves.
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
    """A node, the languages below it, and how many adapter rows it has, beginning at `start`."""

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
        through: Languages that are read through a node of another name, as far as that node.
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
        """Root to leaf; a language without a leaf goes as far as its family, or stays at the root."""
        language = self.through.get(language, language)
        node = self.by_name[ROOT] if language == SOURCE else self.by_name.get(language)
        if node is None:
            node = self.by_name.get(family_name(language)) or self.by_name[ROOT]
        path = [node]
        while path[0].parent is not None:
            path.insert(0, self.by_name[path[0].parent])
        return tuple(path)

    def rows(self, language: str) -> list[int]:
        """Rows of all nodes on a path, root first."""
        return [row for node in self.path(language) for row in node.rows]

    def path_rank(self) -> int:
        """The rank of the longest path: what one language's exported adapter needs at most."""
        return max(sum(node.rank for node in self.path(code)) for code in self.languages)


def shaped(shape: str, ranks: Mapping[str, int]) -> dict[str, int]:
    """Ranks per level: `flat` puts the whole path's into the leaves, `shared` into the root."""
    whole = sum(ranks[level] for level in LEVELS)
    if shape == "flat":
        return {"root": 0, "family": 0, "language": whole}
    if shape == "shared":
        return {"root": whole, "family": 0, "language": 0}
    return dict(ranks)


def family_name(language: str) -> str:
    """A family node's name: the language's most specific Glottolog branch, or its own family."""
    entry = registry().get(language)
    return "/".join(entry.family) if entry else ""


def build_tree(
    targets: Sequence[str],
    *,
    families: Mapping[str, str] | Literal["families", "flat", "shared"] = "families",
    ranks: Mapping[str, int],
) -> Tree:
    """A tree over the target languages.

    Args:
        targets: Our language codes, each once.
        families: `families` groups by Glottolog branch, `flat` gives every rank to the leaves,
            `shared` gives every rank to the root; a mapping names each language's family itself.
        ranks: Adapter rows per node of each level: root, family, language.
    """
    if len(set(targets)) < len(targets):
        raise ConfigError("a language is named twice among the targets; name each once")
    if isinstance(families, str):
        ranks = shaped(families, ranks)
    group = (
        {code: families[code] for code in targets}
        if isinstance(families, Mapping)
        else {code: family_name(code) for code in targets}
    )
    for family in group.values():
        if family in (ROOT, *targets):
            raise ConfigError(
                f"a family is called {family}, like a language or the root; give it a name of its own"
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
