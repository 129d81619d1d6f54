"""What the documents show: blocks of code, commands, spans in backticks, headings and links.

Found by their form alone, so that a page needs nothing special to be tested.
"""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
HISTORY = ("docs/log.md", "docs/decisions.md")
"""What was once true; their commands may be of earlier code."""
PAGES = [
    file
    for file in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md")))
    if str(file.relative_to(ROOT)) not in HISTORY
]
FENCE = re.compile(
    r'^(?P<indent> *)```(?P<language>\w*)(?: title="(?P<title>[^"]+)")?\n(?P<text>.*?)\n(?P=indent)```$',
    re.MULTILINE | re.DOTALL,
)
INDENTED = re.compile(r"(?:(?<=\n\n) {4}\S.*\n(?: {4}.*\n)*)")
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")


class Block(NamedTuple):
    """A block of code; one that is indented, without a fence, is taken for shell."""

    page: Path
    language: str
    title: str | None
    text: str


class Command(NamedTuple):
    """A command line, without comments and continuation; one that is only mentioned may lack arguments."""

    page: Path
    mentioned: bool
    line: str

    @property
    def words(self) -> list[str]:
        return shlex.split(self.line)


def blocks(page: Path) -> list[Block]:
    text = page.read_text("utf-8")
    fenced = [Block(page, found["language"], found["title"], found["text"]) for found in FENCE.finditer(text)]
    indented = [Block(page, "sh", None, found.group()) for found in INDENTED.finditer(FENCE.sub("", text))]
    return fenced + indented


def commands(page: Path) -> Iterator[Command]:
    """Every command of the shell blocks, and of the spans that begin as one."""
    for block in blocks(page):
        if block.language == "sh":
            for words in lines_of(block.text):
                for part in shlex.join(words).split(" '&&' "):
                    yield Command(page, False, part)
    for span in spans(page):
        if re.match(r"(isogloss [a-z]|python |make [a-z]+$)", span):
            words = [word.strip("[]") for word in shlex.split(span) if word != "…"]
            yield Command(page, True, shlex.join(words))


def lines_of(shell: str) -> Iterator[list[str]]:
    """Words of each command line, which a backslash or an open quote carries on."""
    open_line = ""
    for line in re.sub(r"\\\n", " ", shell).split("\n"):
        open_line += line
        try:
            words = shlex.split(open_line, comments=True)
        except ValueError:  # no closing quotation yet
            open_line += "\n"
            continue
        open_line = ""
        if words:
            yield words


def prose(page: Path) -> str:
    """The page without its blocks."""
    return INDENTED.sub("", FENCE.sub("", page.read_text("utf-8")))


def spans(page: Path) -> list[str]:
    """What stands in backticks, also over the end of a line."""
    return [re.sub(r"\s+", " ", found) for found in re.findall(r"`([^`]+)`", prose(page))]


def links(page: Path) -> list[str]:
    return LINK.findall(prose(page))


def anchors(page: Path) -> set[str]:
    """The headings, as GitHub and the site spell their anchors."""
    titles = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text("utf-8")), re.MULTILINE)
    plain = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title).lower() for title in titles]
    return {re.sub(r"[^\w\- ]", "", title).replace(" ", "-") for title in plain}
