"""A hook of mkdocs: pages link to files beside docs/, as GitHub shows them; the site gets these files too."""

import os
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PAGES = ("CONTRIBUTING.md", "CHANGELOG.md")
"""Pages of the site that lie beside docs/."""
LINK = re.compile(r"(?<=\]\()(?!https?:|mailto:|#)([^)#\s]+)")


def on_files(files: Files, config: Any, **_: Any) -> Files:
    """Adds those pages, and every file of the repository that a page links to."""
    for page in PAGES:
        files.append(File.generated(config, page, abs_src_path=str(ROOT / page)))
    for page in [one for one in files if one.src_uri.endswith(".md")]:
        for target in LINK.findall(page.content_string):
            uri, file = _inside(page, target)
            if files.get_file_from_path(uri) is None and file.is_file():
                files.append(File.generated(config, uri, abs_src_path=str(file)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Has the links lead to where these files are in the site."""
    here = os.path.dirname(page.file.src_uri)  # noqa: PTH120  # a URI
    return LINK.sub(lambda found: os.path.relpath(_inside(page.file, found[1])[0], here or "."), markdown)


def _inside(page: File, target: str) -> tuple[str, Path]:
    """Where a link leads: in the site, where docs/ is the top, and on the disk."""
    folder = ROOT if page.src_uri in PAGES else (ROOT / "docs" / page.src_uri).parent
    file = Path(os.path.normpath(folder / target))
    uri = file.relative_to(ROOT).as_posix()
    return uri.removeprefix("docs/"), file
