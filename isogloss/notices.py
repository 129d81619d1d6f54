"""Licence and notices of a base model: read from its folder and copied to everything derived from it."""

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

CARD, NOTICE = "README.md", "NOTICE.md"
NOTICES = ("licen", "copying", "notice", "use_policy", "terms")
"""Name fragments of licence and notice files."""
_CARRIED = re.compile(r"(licen[sc]e|copying|notice|use_policy|\w*terms)([._-].*)?", re.IGNORECASE)
"""Names of files that publishers require to be distributed with their weights."""


@dataclass(frozen=True)
class Licence:
    """Terms of a base model.

    Attributes:
        code: The Hub's licence identifier, as in `license:` of a model card; empty if none is stated.
        name: Name of the licence.
        notice: Text that everyone who receives the weights, or weights derived from them, must get.
    """

    code: str
    name: str
    notice: str


def write_card(folder: Path, name: str, licence: Licence, source: str) -> None:
    """Write the model card and notice of a base.

    Args:
        folder: Where to write them.
        name: The base's name, the card's heading.
        licence: The base's terms.
        source: The file that the weights come from.
    """
    notice_text = f"Licence: {licence.name}.\n\n{licence.notice}\n\nSource: {source}.\n"
    (folder / NOTICE).write_text(notice_text, encoding="utf-8")
    front = f"---\nlicense: {licence.code}\n---\n" if licence.code else ""
    (folder / CARD).write_text(f"{front}# {name}\n\n{notice_text}", encoding="utf-8")


def licence_of(base: Path) -> str:
    """Return the licence stated in the base's model card; "" if there is none."""
    card = base / CARD
    if not card.is_file():
        return ""
    found = [line for line in _text(card).split("\n")[:30] if line.startswith("license:")]
    return found[0].removeprefix("license:").strip() if found else ""


def _text(file: Path) -> str:
    return file.read_text("utf-8", errors="replace")  # by other people, in any encoding


def carry(base: Path, folder: Path) -> list[str]:
    """Copy a base's licence and notice files to a folder of derived weights and return their names."""
    if not base.is_dir():
        return []
    found = sorted(f for f in base.iterdir() if f.is_file() and _CARRIED.fullmatch(f.name))
    for file in found:
        shutil.copyfile(file, folder / file.name)
    return [file.name for file in found]


def write_derived_card(folder: Path, model: str, base: Path, what: str, *front: str) -> None:
    """Write the model card of weights derived from a base, with the base's notices beside it.

    Args:
        folder: Folder of the derived weights.
        model: The base, as the settings name it.
        base: Folder with the base's card and notices.
        what: Heading and text that describe the weights.
        front: Lines of the front matter between the licence and the end; by default, the kind of task.
    """
    licence, carried = licence_of(base), carry(base, folder)
    beside = f" What travels with it: {', '.join(carried)}." if carried else ""
    notice = _text(base / NOTICE).strip() if NOTICE in carried else ""
    lines = [
        "---",
        *([f"license: {licence}"] if licence else []),
        *(front or ["pipeline_tag: text-generation"]),
        "---",
        what,
        "",
        "## Base model",
        "",
        f"{model}; licence: {licence or f'not stated in its card, or not to be read: see {model}'}.{beside}",
        "",
        *([notice, ""] if notice else []),
    ]
    (folder / CARD).write_text("\n".join(lines), encoding="utf-8")
