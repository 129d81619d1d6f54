"""Push exports to the Hub: each folder becomes a private repository, including the tuned model if needed.

Local paths in the files (an adapter's base model, the code in a card) are replaced by repository names.
"""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from isogloss.errors import ConfigError, RunError
from isogloss.languages import languages

NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
NAMING = {".json", ".md", ".yaml"}
"""Suffixes of files that may contain local paths."""


def check(repo: str) -> None:
    """Check the repository name and the login before an export starts.

    Raises:
        ConfigError: The name is not OWNER/NAME, or not a valid repository name.
        RunError: The Hub cannot be reached, or the user is not logged in.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    if not NAME.fullmatch(repo):
        raise ConfigError(f"--push-to-hub: {repo!r} is not of the form OWNER/NAME")
    try:
        validate_repo_id(f"{repo}-{max(languages(), key=len)}")
    except HFValidationError as error:
        raise ConfigError(f"--push-to-hub: {str(error).rstrip('.')}") from None
    with _hub() as api:
        api.whoami()


def push(repo: str, tuned: Path | None, folders: Mapping[str, Path]) -> list[str]:
    """Upload folders to the Hub and return the names of their repositories.

    Args:
        repo: OWNER/NAME, the tuned model's repository.
        tuned: The tuned model's folder; None if no export needs it.
        folders: Folders by language, each uploaded to OWNER/NAME-CODE; an empty code stands for OWNER/NAME.

    Raises:
        RunError: The Hub rejects the upload, or a repository exists and is public.
    """
    from huggingface_hub import CommitOperationAdd

    names = {folder: f"{repo}-{code}" if code else repo for code, folder in folders.items()}
    names |= {tuned: repo} if tuned else {}
    places = {str(folder.resolve()): name for folder, name in names.items()}
    for folder, name in names.items():
        files = sorted(file for file in folder.rglob("*") if file.is_file())
        contents = {file.relative_to(folder).as_posix(): _portable(file, places) for file in files}
        with _hub() as api:
            api.create_repo(name, private=True, exist_ok=True)
            if not api.repo_info(name).private:
                raise RunError(f"--push-to-hub: {name} already exists and is public; choose another name")
            operations = [CommitOperationAdd(path, content) for path, content in contents.items()]
            api.create_commit(name, operations, commit_message=f"isogloss {version('isogloss')}")
    return list(names.values())


def _portable(file: Path, places: Mapping[str, str]) -> bytes | str:
    """Return a file's path, or its rewritten bytes if it contains local paths."""
    if file.suffix not in NAMING:
        return str(file)
    content = was = file.read_bytes()  # a base's notices may be in any encoding
    for place, name in places.items():
        for spelled in (place, json.dumps(place)[1:-1]):
            content = content.replace(spelled.encode(), name.encode())
    return str(file) if content == was else content


@contextmanager
def _hub() -> Iterator[Any]:
    """Yield a Hub client, and turn any of its failures into a one-line RunError."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

    http: Any = HfHubHTTPError.__bases__  # the HTTP library's base error, which differs between releases
    try:
        yield HfApi()
    except (*http, HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled, OSError) as error:
        message = " ".join(str(error).split("\n")[0].split())
        raise RunError(
            f"--push-to-hub: {message or type(error).__name__}; log in with `hf auth login`, or leave it out"
        ) from None
