"""FLORES and NTREX: the same sentences in every language, one per line.

FLORES-101, FLORES-200 and FLORES+ name their folders and files differently; NTREX is one test set of news.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from isogloss.data.formats.lines import is_text, languages_of, plain_or_gz, read_lines
from isogloss.data.formats.records import read_file
from isogloss.errors import DataError
from isogloss.languages.registry import Language


def read(root: Path, split: str, languages: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Return the sentences of a split by our language code; sentence i has the same meaning in each.

    Only one release is read: FLORES-101, FLORES-200 or FLORES+, the first with a file for every language.
    They are not mixed, because they differ in corrections.

    Args:
        root: The folder with flores101_dataset, flores200_dataset, floresp… or flores_plus; the last may
            contain text, JSON lines or Parquet.
        split: Name of the split in the release: dev or devtest.
        languages: Language codes of any data set.

    Raises:
        DataError: A file is missing, has an empty line, or differs in length from the others.
    """
    files = _files(root, split, languages_of(languages, root))
    return _aligned({code: (path, _sentences(path)) for code, path in files.items()})


def release(root: Path, split: str, languages: Iterable[str]) -> str:
    """Return the release that `read` takes: 101, 200, or the name of FLORES+'s folder."""
    path = next(iter(_files(root, split, languages_of(languages, root)).values()))
    folder = path.relative_to(root).parts[0]
    return folder.removeprefix("flores").removesuffix("_dataset") if folder.endswith("_dataset") else folder


def read_ntrex(root: Path, languages: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Return NTREX-128's 1,997 news sentences by our language code; English is the source.

    Raises:
        DataError: As for `read`, or NTREX does not have a language.
    """
    found = {}
    for language in languages_of(languages, root):
        if language.ntrex is None:
            raise DataError(f"NTREX has no {language.name} ({language.code}); leave it out", root)
        name = "src.eng" if language.code == "en" else f"ref.{language.ntrex}"
        wanted = root / "NTREX-128" / f"newstest2019-{name}.txt"
        path = plain_or_gz(wanted)
        if path is None:
            message = f"no such file, so NTREX has no {language.code} here; put it there or leave it out"
            raise DataError(message, wanted)
        found[language.code] = (path, tuple(read_lines(path)))
    return _aligned(found)


def _aligned(found: Mapping[str, tuple[Path, tuple[str, ...]]]) -> dict[str, tuple[str, ...]]:
    for path, sentences in found.values():
        for number, sentence in enumerate(sentences, start=1):
            if not sentence.strip():
                message = "the line is empty; line n must be the same sentence in every language"
                raise DataError(message, path, number)
        if not sentences:
            raise DataError("the file is empty; it must contain one sentence per line", path)
        first, lines = next(iter(found.values()))
        if len(sentences) != len(lines):
            message = f"{len(sentences)} lines, but {len(lines)} in {first.name}"
            raise DataError(message + "; the files of a split must be aligned", path)
    return {code: sentences for code, (_, sentences) in found.items()}


def _sentences(path: Path) -> tuple[str, ...]:
    """Read rows with id and text, as FLORES+ has on the Hub, or else one sentence per line."""
    if not {".jsonl", ".parquet"} & set(path.suffixes):
        return tuple(read_lines(path))
    rows: dict[int, str] = {}
    for _, line, _, row in read_file(path):
        id, text = row.get("id"), row.get("text")
        if not isinstance(id, int) or isinstance(id, bool) or not is_text(text):
            given = json.dumps({"id": id, "text": text}, ensure_ascii=False)[:60]
            raise DataError(f"{given}: the row needs an integer id and a text", path, line)
        if id in rows:
            raise DataError(f"id {id} occurs twice; keep one row", path, line)
        rows[id] = text
    if list(rows) != sorted(rows):
        raise DataError("the ids do not ascend; keep the release's order, which aligns the languages", path)
    return tuple(rows.values())


def _files(root: Path, split: str, languages: list[Language]) -> dict[str, Path]:
    names: list[tuple[str, Callable[[Language], str]]] = [
        ("flores101_dataset", lambda one: f"{one.flores101}.{split}"),
        ("flores200_dataset", lambda one: f"{one.flores200}.{split}"),
    ]
    for folder in sorted({path.name for name in ("floresp*", "flores*plus*") for path in root.glob(name)}):
        names += [
            (folder, lambda one: f"{split}.{one.flores_plus}"),
            (folder, lambda one: f"{one.flores_plus}.parquet"),
            (folder, lambda one: f"{one.flores_plus}.jsonl"),
        ]
    layouts = [
        {language.code: root / folder / split / name(language) for language in languages}
        for folder, name in names
    ]
    missing: list[tuple[str, Path, int]] = []
    for layout in layouts:
        found = {code: plain_or_gz(path) for code, path in layout.items()}
        files = {code: path for code, path in found.items() if path}
        if len(files) == len(layout):
            return files
        missing.append(next((code, path, len(files)) for code, path in layout.items() if code not in files))
    # Report the missing file of the release that has the most languages.
    code, path, _ = max(missing, key=lambda one: (one[2], one[1].parent.is_dir()))
    raise DataError(f"no such file, so FLORES {split} has no {code} here; put it there or leave it out", path)
