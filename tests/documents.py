"""Find what the documentation shows: code blocks, commands, spans in backticks, headings and links.

They are found by their form alone, so a page needs no special markup to be tested.
"""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
HISTORY = ("docs/log.md", "docs/decisions.md")
"""Records of the past, whose commands may refer to earlier code."""
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
    """A code block; an indented one without a fence counts as shell."""

    page: Path
    language: str
    title: str | None
    text: str


class Command(NamedTuple):
    """A command line without comments and continuations; a mentioned one may lack arguments."""

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
    """Yield every command in the shell blocks, and every span that begins like one."""
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
    """Yield the words of each command line; a backslash or an open quote continues a line."""
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
    """Return the page without its code blocks."""
    return INDENTED.sub("", FENCE.sub("", page.read_text("utf-8")))


def spans(page: Path) -> list[str]:
    """Return the texts in backticks, including those that wrap onto the next line."""
    return [re.sub(r"\s+", " ", found) for found in re.findall(r"`([^`]+)`", prose(page))]


def links(page: Path) -> list[str]:
    return LINK.findall(prose(page))


def anchors(page: Path) -> set[str]:
    """Return the anchors of the headings as GitHub and the documentation site spell them."""
    titles = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text("utf-8")), re.MULTILINE)
    plain = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title).lower() for title in titles]
    return {re.sub(r"[^\w\- ]", "", title).replace(" ", "-") for title in plain}
