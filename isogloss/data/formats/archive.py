"""Archives: a tar is checked before anything is written, and unpacked completely or not at all."""

import gzip
import lzma
import shutil
import tarfile
import tempfile
import zlib
from pathlib import Path, PurePosixPath
from typing import Final

from isogloss.errors import DataError

MOST_FILES: Final = 5_000
MOST_BYTES: Final = 16 << 30
"""Limit on the total unpacked size; XGLUE's 0.9 GB archive unpacks to under 4 GB."""


def unpack(archive: Path, name: str) -> Path:
    """Unpack the folder `name` of an archive next to it and return its path; reuse it if it exists.

    Raises:
        DataError: The archive is damaged, contains anything but files and folders under `name`, or is too
            large.
    """
    folder = archive.parent / name
    if folder.is_dir():
        return folder
    try:
        draft = Path(tempfile.mkdtemp(prefix=f".{name}.", dir=archive.parent))
    except OSError:
        message = "the archive's folder is not writable; unpack it elsewhere and give that folder"
        raise DataError(message, archive) from None
    try:
        with tarfile.open(archive) as opened:
            _check(opened, archive, name)
            opened.extractall(draft, filter="data")
        (draft / name).rename(folder)
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile, lzma.LZMAError) as error:
        raise DataError(f"the archive is damaged ({error}); download it again", archive) from None
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder


def _check(opened: tarfile.TarFile, archive: Path, name: str) -> None:
    total, files = 0, 0
    for member in opened:
        parts = PurePosixPath(member.name).parts
        if not parts or parts[0] == "/" or ".." in parts or parts[0] != name:
            raise DataError(
                f"it contains {member.name!r}, which is not inside {name}; do not unpack it", archive
            )
        if not (member.isreg() or member.isdir()):
            raise DataError(f"{member.name!r} is neither a file nor a folder; do not unpack it", archive)
        total, files = total + member.size, files + 1
        if total > MOST_BYTES or files > MOST_FILES:
            message = f"it contains more than {MOST_FILES} files or {MOST_BYTES >> 30} GiB; do not unpack it"
            raise DataError(message, archive)
    if not files:
        raise DataError(f"the archive is empty; it must contain {name}", archive)
