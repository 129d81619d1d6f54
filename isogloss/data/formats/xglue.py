"""XGLUE: eleven tasks, each in the languages in which the benchmark scores it (Liang et al. 2020).

Read from the unpacked archive (`xglue_full_dataset/NER/de.dev`) or, if that lacks a task, from other releases
in the data root: XNLI-1.0, pawsx, MLQA_V1, xglue_de, udpos for POS, wikiann for NER.
Fields are split at tabs and never stripped, so an empty first or last field is kept.
Flow: task → files of its languages, all from one place → rows, each line checked.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Final

from isogloss.data.formats import squad, xnli
from isogloss.data.formats.lines import nearest, plain_or_gz, read_lines
from isogloss.data.formats.tab import read_table
from isogloss.errors import DataError

LANGUAGES: Final = {
    "NER": ("de", "en", "es", "nl"),
    "POS": (
        "ar",
        "bg",
        "de",
        "el",
        "en",
        "es",
        "fr",
        "hi",
        "it",
        "nl",
        "pl",
        "pt",
        "ru",
        "th",
        "tr",
        "ur",
        "vi",
        "zh",
    ),
    "NC": ("de", "en", "es", "fr", "ru"),
    "MLQA": ("ar", "de", "en", "es", "hi", "vi", "zh"),
    "XNLI": ("ar", "bg", "de", "el", "en", "es", "fr", "hi", "ru", "sw", "th", "tr", "ur", "vi", "zh"),
    "PAWSX": ("de", "en", "es", "fr"),
    "QADSM": ("de", "en", "fr"),
    "WPR": ("de", "en", "es", "fr", "it", "pt", "zh"),
    "QAM": ("de", "en", "fr"),
    "QG": ("de", "en", "es", "fr", "it", "pt"),
    "NTG": ("de", "en", "es", "fr", "ru"),
}
"""The languages over which a task's score is averaged."""
TAGS: Final = {
    "NER": ("O", *(f"{prefix}-{kind}" for kind in ("PER", "LOC", "ORG", "MISC") for prefix in "BI")),
    "POS": (
        "ADJ",
        "ADP",
        "ADV",
        "AUX",
        "CCONJ",
        "DET",
        "INTJ",
        "NOUN",
        "NUM",
        "PART",
        "PRON",
        "PROPN",
        "PUNCT",
        "SCONJ",
        "SYM",
        "VERB",
        "X",
        "_",
    ),
}
LABELS: Final = {
    "NC": (
        "foodanddrink",
        "sports",
        "travel",
        "finance",
        "lifestyle",
        "news",
        "entertainment",
        "health",
        "video",
        "autos",
    ),
    "XNLI": xnli.LABELS,
    "PAWSX": ("0", "1"),
    "QADSM": ("Good", "Bad"),
    "WPR": ("0", "1", "2", "3", "4"),
    "QAM": ("0", "1"),
}
"""Labels as spelled in the official prediction files."""
_OTHER_SPELLINGS: Final = {
    "PAWSX": {"different": "0", "same": "1"},
    "WPR": {"Bad": "0", "Fair": "1", "Good": "2", "Excellent": "3", "Perfect": "4"},
    "QAM": {"False": "0", "True": "1"},
}  # in copies made with `datasets`
_FIELDS: Final = {
    "NC": ("title", "body"),
    "QADSM": ("query", "title", "description"),
    "WPR": ("query", "title", "snippet"),
    "QAM": ("question", "passage"),
}
PARALLEL: Final = ("MLQA", "XNLI", "PAWSX")
"""Tasks whose IDs identify the same item in every language."""


@dataclass(frozen=True)
class XglueRow:
    """One row of one language.

    Attributes:
        parts: The inputs by name.
        gold: The single label, the tag of each token, the accepted answers, or the single reference text.
        tokens: The tokens of a tagging task.
    """

    id: str
    parts: dict[str, str]
    gold: tuple[str, ...]
    tokens: tuple[str, ...] = ()


@dataclass(frozen=True)
class Places:
    """Places to look for XGLUE: its unpacked folder, and the data root with other releases of its parts."""

    folder: Path
    root: Path | None

    def looked(self, task: str, split: str, code: str) -> list[Path]:
        """Return the possible files of a task in a language, in the order in which they are tried."""
        found = [self.folder / name for name in _official(task, split, code)]
        return found + ([self.root / name for name in _stand_ins(task, split, code)] if self.root else [])


def available(task: str, split: str, codes: Sequence[str], places: Places) -> dict[str, Path]:
    """Return the task's file by language, all from the first place that has any of the languages.

    Places are never mixed, because they may have different rows.
    """
    patterns = {code: places.looked(task, split, code) for code in codes}
    for number in range(max((len(paths) for paths in patterns.values()), default=0)):
        found = {code: plain_or_gz(paths[number]) for code, paths in patterns.items()}
        there = {code: path for code, path in found.items() if path}
        for path in {path for path in there.values() if path.name.startswith("xnli.")}:
            held = xnli.languages_in(path)
            there = {code: path for code, path in there.items() if code in held}
        if there:
            return there
    return {}


def read(task: str, split: str, files: dict[str, Path]) -> dict[str, list[XglueRow]]:
    """Return the rows of every language, in file order.

    Args:
        files: The result of `available`.

    Raises:
        DataError: A file is empty or damaged, an ID occurs twice, or two files that belong together differ
            in length.
    """
    if task == "XNLI":
        return _read_xnli(split, files)
    found = {}
    for code, path in files.items():
        found[code] = list(_reader(task)(task, path))
        if not found[code]:
            raise DataError(f"the file is empty; it must contain {task} in {code}", path)
        queries = [row.parts.get("query") for row in found[code]]
        if task == "WPR" and not any(a == b for a, b in pairwise(queries)):
            raise DataError("no query has two consecutive rows; there is nothing to rank", path)
    return found


def _official(task: str, split: str, code: str) -> list[str]:
    name = task.lower()
    match task:
        case "XNLI":
            return [f"XNLI/{code}.{split}", f"XNLI/xnli.{split}.tsv"]
        case "NER" | "POS":
            return [f"{task}/{code}.{split}"]
        case "MLQA":  # documentation and script disagree on the folder's case
            file = f"{split}/{split}-context-{code}-question-{code}.json"
            return [f"MLQA/{folder}/{file}" for folder in ("MLQA_V1", "MLQA_v1")]
        case "PAWSX":
            return [f"PAWSX/{code}/{split}_2k.tsv"]
        case "QG" | "NTG":
            return [f"{task}/xglue.{name}.{code}.tgt.{split}"]
    return [f"{task}/xglue.{name}.{code}.{split}"]


def _stand_ins(task: str, split: str, code: str) -> list[str]:
    match task:
        case "XNLI":
            return [f"XNLI-1.0/xnli.{split}.tsv", f"XNLI/{code}.{split}"]
        case "NER":
            return [f"wikiann/{split}-{code}.tsv"]
        case "POS":
            return [f"udpos/{split}-{code}.tsv"]
        case "MLQA":
            return [f"MLQA_V1/{split}/{split}-context-{code}-question-{code}.json"]
        case "PAWSX":
            return [f"{folder}/{code}/{split}_2k.tsv" for folder in ("pawsx", "x-final")]
        case "NC" | "QADSM" | "QAM":
            return [f"xglue_{code}/{task}/{code}.{split}"]
    return []


def _reader(task: str) -> Callable[[str, Path], Iterator[XglueRow]]:
    if task in TAGS:
        return _read_tags
    if task in _FIELDS:
        return _read_fields
    return {"MLQA": _read_mlqa, "PAWSX": _read_pawsx, "QG": _read_texts, "NTG": _read_texts}[task]


def _read_tags(task: str, path: Path) -> Iterator[XglueRow]:
    """Read lines of token, space or tab, tag; a blank line ends a sentence; document markers are skipped."""
    pairs: list[tuple[str, str]] = []
    sentences = 0
    for number, line in enumerate([*read_lines(path), ""], start=1):
        if line.strip() and not line.startswith("-DOCSTART-"):
            token, _, tag = line.rpartition("\t" if "\t" in line else " ")
            if not token.strip() or "\t" in token:
                raise DataError("the line must be a token, a space or tab, and its tag", path, number)
            if tag not in TAGS[task]:
                raise DataError(f"{tag!r} is not a tag of {task}; {nearest(tag, TAGS[task])}", path, number)
            pairs.append((token, tag))
        elif pairs:
            tokens, tags = zip(*pairs, strict=True)
            yield XglueRow(str(sentences), {"text": " ".join(tokens)}, tags, tokens)
            pairs, sentences = [], sentences + 1


def _read_fields(task: str, path: Path) -> Iterator[XglueRow]:
    names, width = _FIELDS[task], None
    allowed = {len(names) + 1}
    if task == "NC":
        allowed.add(len(names) + 2)  # its documentation lists a query before the title
    for number, line in enumerate(read_lines(path), start=1):
        fields = line.split("\t")
        width = width or len(fields)
        if len(fields) == len(names):
            message = f"{len(fields)} fields, the label is missing; older releases lack it in their test"
            raise DataError(f"{message}, so download the newer one", path, number)
        if len(fields) != width or width not in allowed:
            message = f"{len(fields)} fields; there must be {len(names) + 1}: {', '.join(names)}, label"
            raise DataError(message, path, number)
        gold = _label(task, fields[-1], path, number)
        parts = dict(zip(names, fields[-1 - len(names) : -1], strict=True))
        yield XglueRow(str(number), parts, (gold,))


def _read_mlqa(task: str, path: Path) -> Iterator[XglueRow]:
    for one in squad.read(path).values():
        yield XglueRow(one.id, {"context": one.context, "question": one.question}, one.answers)


def _read_pawsx(task: str, path: Path) -> Iterator[XglueRow]:
    seen: set[str] = set()
    columns = ("id", "sentence1", "sentence2", "label")
    for number, row in enumerate(read_table(path, columns), start=2):
        if row["id"] in seen:
            raise DataError(f"id {row['id']} occurs twice; keep one row of each", path, number)
        seen.add(row["id"])
        gold = _label(task, row["label"], path, number)
        yield XglueRow(row["id"], {"first": row["sentence1"], "second": row["sentence2"]}, (gold,))


def _read_texts(task: str, path: Path) -> Iterator[XglueRow]:
    """Read sources and targets from two files, line by line."""
    wanted = path.with_name(path.name.removesuffix(".gz").replace(".tgt.", ".src."))
    source = plain_or_gz(wanted)
    if source is None:
        raise DataError(f"no such file, but {path.name} exists; both belong together", wanted)
    texts, targets = read_lines(source), read_lines(path)
    if len(texts) != len(targets):
        raise DataError(
            f"{len(targets)} lines, but {len(texts)} in {source.name}; they must match line by line", path
        )
    for number, (text, target) in enumerate(zip(texts, targets, strict=True), start=1):
        yield XglueRow(str(number), {"text": text}, (target,))


def _read_xnli(split: str, files: dict[str, Path]) -> dict[str, list[XglueRow]]:
    rows = xnli.read_files(split, files)
    if not rows:
        code, path = next(iter(files.items()))
        raise DataError(f"the file is empty; it must contain XNLI in {code}", path)
    return {
        code: [
            XglueRow(row.id, {"premise": row.premise[code], "hypothesis": row.hypothesis[code]}, (row.label,))
            for row in rows
        ]
        for code in files
    }


def _label(task: str, written: str, path: Path, line: int) -> str:
    label = _OTHER_SPELLINGS.get(task, {}).get(written, written)
    if label not in LABELS[task]:
        raise DataError(f"{written!r} is not a label of {task}; {nearest(written, LABELS[task])}", path, line)
    return label
