"""FLORES: the same sentences in every language, one a line, in the folders of FLORES-101 or FLORES-200."""

from collections.abc import Iterable
from pathlib import Path

from isogloss.data.formats.lines import languages_of, plain_or_gz, read_lines
from isogloss.errors import DataError
from isogloss.languages.registry import Language


def read(root: Path, split: str, languages: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """The sentences of a split by our language code; sentence i means the same in each.

    One release is read, never two at once: FLORES-101, or FLORES-200 where 101 lacks a file. They
    differ in corrections.

    Args:
        root: The folder that holds flores101_dataset or flores200_dataset.
        split: Which sentences, as the release names them: dev or devtest.
        languages: Codes of any data set.

    Raises:
        DataError: A file is missing, has an empty line, or is of another length than the others.
    """
    files = _files(root, split, languages_of(languages, root))
    sentences = {code: tuple(read_lines(path)) for code, path in files.items()}
    for code, path in files.items():
        for number, sentence in enumerate(sentences[code], start=1):
            if not sentence.strip():
                message = "the line is empty; line n must hold the same sentence in every language"
                raise DataError(message, path, number)
        first = next(iter(files))
        if len(sentences[code]) != len(sentences[first]):
            message = f"{len(sentences[code])} lines, but {len(sentences[first])} in {files[first].name}"
            raise DataError(message + "; the files of a split must be aligned", path)
    return sentences


def _files(root: Path, split: str, languages: list[Language]) -> dict[str, Path]:
    layouts = [
        {lang.code: root / "flores101_dataset" / split / f"{lang.flores101}.{split}" for lang in languages},
        {lang.code: root / "flores200_dataset" / split / f"{lang.flores200}.{split}" for lang in languages},
    ]
    missing: list[tuple[str, Path]] = []
    for layout in layouts:
        found = {code: plain_or_gz(path) for code, path in layout.items()}
        files = {code: path for code, path in found.items() if path}
        if len(files) == len(layout):
            return files
        missing.append(next((code, path) for code, path in layout.items() if code not in files))
    present = [(code, path) for code, path in missing if path.parent.is_dir()]
    code, path = (present or missing)[0]
    raise DataError(f"no such file, so FLORES {split} has no {code} here; put it there or leave it out", path)
