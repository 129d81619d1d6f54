"""Nodes: build the tree from the list in `tree.json`, whatever its order."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from isogloss.report import figures
from isogloss.report.scores import Label


@dataclass
class Node:
    """One node with its children; `label` is set for language nodes."""

    name: str
    level: str
    rank: int | None
    languages: tuple[Label, ...]
    text: str
    items: str
    label: Label | None
    children: list["Node"] = field(default_factory=list)


def grow(rows: Iterable[Mapping[str, Any]]) -> list[Node]:
    """Return the roots; a node with an unknown parent, or in a cycle, becomes a root."""
    listed = {str(row.get("name", "")): row for row in rows}
    nodes = {name: _node(name, row) for name, row in listed.items()}
    parents = {name: str(row.get("parent")) for name, row in listed.items()}
    roots: list[Node] = []
    for name, node in nodes.items():
        above = _ancestors(name, parents)
        if parents[name] in nodes and name not in above:
            nodes[parents[name]].children.append(node)
        else:
            roots.append(node)
    return roots


def total_rank(rows: Iterable[Mapping[str, Any]]) -> int:
    """Return the summed rank of all nodes: the rows of the shared LoRA."""
    return sum(int(row.get("rank") or 0) for row in rows)


def _node(name: str, row: Mapping[str, Any]) -> Node:
    level = str(row.get("level", ""))
    label = Label.of(name.rsplit("/", 1)[-1]) if level == "language" else None
    items = row.get("items")
    return Node(
        name=name,
        level=level,
        rank=None if row.get("rank") is None else int(row["rank"]),
        languages=tuple(Label.of(str(code)) for code in row.get("languages") or ()),
        text=str(row.get("text") or ""),
        items="" if items is None else figures.count(items),
        label=label,
    )


def _ancestors(name: str, parents: Mapping[str, str]) -> set[str]:
    seen: set[str] = set()
    at = parents.get(name)
    while at is not None and at not in seen:
        seen.add(at)
        at = parents.get(at)
    return seen
