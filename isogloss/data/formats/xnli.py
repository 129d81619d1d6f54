"""XNLI: a premise, a hypothesis and the relation between them, in fifteen languages.

Read from XNLI 1.0 (one file with a header and named columns) or else from XGLUE (one file per language with
three columns: premise, hypothesis, label). Fields are split at tabs; quotation marks are text.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from isogloss.data.formats.lines import languages_of, nearest, plain_or_gz, read_lines
from isogloss.errors import DataError
from isogloss.languages.registry import Language

LABELS: Final = ("entailment", "neutral", "contradiction")
_COLUMNS: Final = ("language", "gold_label", "sentence1", "sentence2")


@dataclass(frozen=True)
class XnliRow:
    """One pair of sentences; `premise` and `hypothesis` by our language code."""

    id: str
    label: str
    premise: dict[str, str]
    hypothesis: dict[str, str]


class _Pair(NamedTuple):
    line: int
    id: str | None
    label: str
    premise: str
    hypothesis: str


def read(root: Path, split: str, languages: Iterable[str]) -> list[XnliRow]:
    """Return the rows of a split (dev or test), in the order of the first language.

    Languages are joined by pairID if the file has one that is unique in each language, else by position.

    Raises:
        DataError: Neither layout is found, a language is missing, or the languages do not match.
    """
    asked = languages_of(languages, root)
    official = plain_or_gz(root / "XNLI-1.0" / f"xnli.{split}.tsv")
    official = official or plain_or_gz(root / "XNLI" / f"xnli.{split}.tsv")
    if official:
        return read_files(split, {lang.code: official for lang in asked})
    files = {lang.code: plain_or_gz(root / "XNLI" / f"{_code(lang)}.{split}") for lang in asked}
    found = {code: path for code, path in files.items() if path}
    lacking = next((lang for lang in asked if lang.code not in found), None)
    if lacking is None:
        return read_files(split, found)
    looked = f"looked for XNLI-1.0/xnli.{split}.tsv and XNLI/{_code(lacking)}.{split}"
    raise DataError(f"no XNLI {split} in {lacking.code}; {looked}, plain or .gz", root)


def read_files(split: str, files: dict[str, Path]) -> list[XnliRow]:
    """Like `read`, from one file for all languages or one file per language.

    Args:
        files: Files by our language code; a file named xnli.<split>.tsv has several languages.

    Raises:
        DataError: As for `read`.
    """
    together = next((path for path in files.values() if path.name.startswith(f"xnli.{split}.tsv")), None)
    if together is None:
        return _join({code: _read_xglue(path) for code, path in files.items()}, files)
    return _join(_read_official(together, languages_of(files, together)), files)


def languages_in(path: Path) -> set[str]:
    """Return the language codes in a file of several languages; empty if it has no language column."""
    lines = [line.split("\t") for line in read_lines(path)]
    if not lines or "language" not in lines[0]:
        return set()
    place = lines[0].index("language")
    return {fields[place] for fields in lines[1:] if len(fields) > place}


def _read_official(path: Path, languages: list[Language]) -> dict[str, list[_Pair]]:
    lines = [line.split("\t") for line in read_lines(path)]
    if not lines:
        raise DataError(f"the file is empty; its header must name {', '.join(_COLUMNS)}", path)
    header = lines[0]
    for column in _COLUMNS:
        if column not in header:
            raise DataError(f"no column {column!r} in the header; {nearest(column, header)}", path, 1)
    code, label, premise, hypothesis = (header.index(column) for column in _COLUMNS)
    pair = header.index("pairID") if "pairID" in header else None
    pairs: dict[str, list[_Pair]] = {_code(language): [] for language in languages}
    others: dict[str, None] = {}
    for number, fields in enumerate(lines[1:], start=2):
        if len(fields) != len(header):
            message = f"{len(fields)} fields, but the header has {len(header)}; separate them with tabs"
            raise DataError(message, path, number)
        if fields[code] not in pairs:
            others[fields[code]] = None
            continue
        id = None if pair is None else fields[pair]
        said = _pair(number, id, fields[label], fields[premise], fields[hypothesis], path)
        pairs[fields[code]].append(said)
    for language in languages:
        if not pairs[_code(language)]:
            there = [name for name, rows in pairs.items() if rows] + list(others)
            raise DataError(f"no rows in {language.code}; available: {', '.join(there)}", path)
    return {language.code: pairs[_code(language)] for language in languages}


def _read_xglue(path: Path) -> list[_Pair]:
    pairs = []
    for number, line in enumerate(read_lines(path), start=1):
        fields = line.split("\t")
        if len(fields) != 3:
            message = f"{len(fields)} fields; there must be three: premise, hypothesis, label"
            raise DataError(message, path, number)
        premise, hypothesis, label = fields
        pairs.append(_pair(number, None, label, premise, hypothesis, path))
    return pairs


def _pair(line: int, id: str | None, label: str, premise: str, hypothesis: str, path: Path) -> _Pair:
    meant = "contradiction" if label == "contradictory" else label  # as in the training file
    if meant not in LABELS:
        raise DataError(f"{label!r} is not a label; {nearest(label, LABELS)}", path, line)
    if not premise.strip() or not hypothesis.strip():
        raise DataError("a sentence is empty; both premise and hypothesis are required", path, line)
    return _Pair(line, id, meant, premise, hypothesis)


def _join(pairs_by_language: dict[str, list[_Pair]], paths: dict[str, Path]) -> list[XnliRow]:
    by_id = all(
        None not in (ids := {pair.id for pair in pairs}) and len(ids) == len(pairs)
        for pairs in pairs_by_language.values()
    )
    keyed = {
        code: {(pair.id if by_id and pair.id else str(n)): pair for n, pair in enumerate(pairs, start=1)}
        for code, pairs in pairs_by_language.items()
    }
    first = next(iter(keyed))
    for code, pairs in keyed.items():
        _refuse_mismatch(code, pairs, first, keyed[first], paths[code])
    return [
        XnliRow(
            id,
            pair.label,
            {code: pairs[id].premise for code, pairs in keyed.items()},
            {code: pairs[id].hypothesis for code, pairs in keyed.items()},
        )
        for id, pair in keyed[first].items()
    ]


def _refuse_mismatch(
    code: str, pairs: dict[str, _Pair], first: str, firsts: dict[str, _Pair], path: Path
) -> None:
    for id in [*firsts, *pairs]:
        if id not in pairs or id not in firsts:
            has, lacks = (first, code) if id in firsts else (code, first)
            raise DataError(f"pair {id} is in {has} but not in {lacks}; both must have it", path)
        if pairs[id].label != firsts[id].label:
            message = f"pair {id} is {pairs[id].label!r} in {code} but {firsts[id].label!r} in {first}"
            raise DataError(message + "; translations share their label", path, pairs[id].line)


def _code(language: Language) -> str:
    return language.xglue or language.code
