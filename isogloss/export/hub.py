"""Exports on the hub: each folder a private repository, the tuned model beside the adapters that need it.

What names a place on this machine names its repository there: an adapter its base, a card what it loads.
"""

import json
import re
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from isogloss.errors import ConfigError, RunError
from isogloss.languages import languages

NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
NAMING = {".json", ".md", ".yaml"}
"""Kinds of files that may name a place."""


def check(repo: str) -> None:
    """Before an export takes its time.

    Raises:
        ConfigError: The name is no OWNER/NAME, or the hub takes none like it.
        RunError: The hub cannot be reached, or knows nobody here.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    if not NAME.fullmatch(repo):
        raise ConfigError(f"--push-to-hub: {repo!r} is no OWNER/NAME")
    try:
        validate_repo_id(f"{repo}-{max(languages(), key=len)}")
    except HFValidationError as error:
        raise ConfigError(f"--push-to-hub: {str(error).rstrip('.')}") from None
    _told(lambda api: api.whoami())


def push(repo: str, tuned: Path | None, folders: Mapping[str, Path]) -> list[str]:
    """Write folders to the hub and give their repositories' names.

    Args:
        repo: OWNER/NAME, which is the tuned model's.
        tuned: The tuned model's folder; None where nothing needs it.
        folders: By language, each of which goes to OWNER/NAME-CODE; one without a name to OWNER/NAME itself.

    Raises:
        RunError: The hub refuses.
    """
    names = {folder: f"{repo}-{code}" if code else repo for code, folder in folders.items()}
    names |= {tuned: repo} if tuned else {}
    places = {str(folder.resolve()): name for folder, name in names.items()}
    for folder, name in names.items():
        files = sorted(file for file in folder.rglob("*") if file.is_file())
        contents = {file.relative_to(folder).as_posix(): _portable(file, places) for file in files}
        _told(lambda api, name=name, contents=contents: _commit(api, name, contents))
    return list(names.values())


def _commit(api: Any, name: str, contents: Mapping[str, bytes | str]) -> None:
    from huggingface_hub import CommitOperationAdd

    api.create_repo(name, private=True, exist_ok=True)
    if not api.repo_info(name).private:
        raise RunError(f"--push-to-hub: {name} is there already, and public; name another")
    operations = [CommitOperationAdd(path, content) for path, content in contents.items()]
    api.create_commit(name, operations, commit_message=f"isogloss {version('isogloss')}")


def _portable(file: Path, places: Mapping[str, str]) -> bytes | str:
    """A file's path, or its bytes where it names a place."""
    if file.suffix not in NAMING:
        return str(file)
    text = was = file.read_text("utf-8")
    for place, name in places.items():
        for spelled in (place, json.dumps(place)[1:-1]):
            text = text.replace(spelled, name)
    return str(file) if text == was else text.encode()


def _told(act: Any) -> None:
    """Do something on the hub; whatever it refuses is told in one line."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

    http: Any = HfHubHTTPError.__bases__  # the HTTP library's own error, whichever a release uses
    try:
        act(HfApi())
    except (*http, HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled, OSError) as error:
        told = " ".join(str(error).split("\n")[0].split())
        raise RunError(
            f"--push-to-hub: {told or type(error).__name__}; log in with `hf auth login`, or leave it out"
        ) from None
