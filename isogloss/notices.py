"""A base's licence and notices: read from its folder, and carried along with whatever is derived from it."""

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

CARD, NOTICE = "README.md", "NOTICE.md"
NOTICES = ("licen", "copying", "notice", "use_policy", "terms")
"""What is in the names of such files."""
_CARRIED = re.compile(r"(licen[sc]e|copying|notice|use_policy|\w*terms)([._-].*)?", re.IGNORECASE)
"""Names of the files in which publishers put what has to travel with their weights."""


@dataclass(frozen=True)
class Licence:
    """A base's terms.

    Attributes:
        code: The hub's word for the licence, as a card's `license:` has it; empty where none is stated.
        name: Its name.
        notice: What whoever gets the weights, or weights derived from them, has to be told.
    """

    code: str
    name: str
    notice: str


def write_card(folder: Path, name: str, licence: Licence, source: str) -> None:
    """Write a base's card and notice.

    Args:
        source: Which file the weights are from.
    """
    told = f"Licence: {licence.name}.\n\n{licence.notice}\n\nSource: {source}.\n"
    (folder / NOTICE).write_text(told, encoding="utf-8")
    front = f"---\nlicense: {licence.code}\n---\n" if licence.code else ""
    (folder / CARD).write_text(f"{front}# {name}\n\n{told}", encoding="utf-8")


def licence_of(base: Path) -> str:
    """What a base's own card says; nothing where it has none."""
    card = base / CARD
    if not card.is_file():
        return ""
    found = [line for line in card.read_text("utf-8").split("\n")[:30] if line.startswith("license:")]
    return found[0].removeprefix("license:").strip() if found else ""


def carry(base: Path, folder: Path) -> list[str]:
    """Copy a base's licence and notice files to a folder of derived weights; their names."""
    found = (
        sorted(f for f in base.iterdir() if f.is_file() and _CARRIED.fullmatch(f.name))
        if base.is_dir()
        else []
    )
    for file in found:
        shutil.copyfile(file, folder / file.name)
    return [file.name for file in found]


def base_section(model: str, base: Path, carried: list[str]) -> list[str]:
    """Lines of a card about what its weights are derived from.

    Args:
        model: The base, as the settings name it.
        carried: What `carry` gave.
    """
    notice = (base / NOTICE).read_text("utf-8").strip() if NOTICE in carried else ""
    beside = f" What travels with it: {', '.join(carried)}." if carried else ""
    lines = [
        "## Base model",
        "",
        f"{model}; licence: {licence_of(base) or f'not stated in its card, or not to be read: see {model}'}."
        f"{beside}",
        "",
    ]
    return [*lines, *([notice, ""] if notice else [])]


def write_derived_card(folder: Path, model: str, base: Path, what: str) -> None:
    """Write the card of weights derived from a base, and the base's notices beside it.

    Args:
        what: What the weights are, in a line.
    """
    licence, carried = licence_of(base), carry(base, folder)
    front = ["---", *([f"license: {licence}"] if licence else []), "pipeline_tag: text-generation", "---"]
    lines = [*front, what, "", *base_section(model, base, carried)]
    (folder / CARD).write_text("\n".join(lines), encoding="utf-8")
