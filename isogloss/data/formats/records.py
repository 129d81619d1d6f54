"""Records: the rows of any supported file or folder, each with its position.

Opens .jsonl, .json, .csv and .tsv, compressed or not, .parquet, .arrow, a folder of such files with its
splits and shards, a folder written by `Dataset.save_to_disk`, and, as hub:OWNER/NAME, a data set on the Hub,
which the `datasets` library downloads and caches. A .tsv is split at tabs, and quotation marks are text. Text
stays as written: readers that infer types turn the id 1 into 1.0 and the answers "None" and "NA" into null.
Files are not cached, and formats with rows in lines or batches are read one line or batch at a time.
"""

import csv
import re
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Final, NamedTuple

from isogloss.config.data import on_hub
from isogloss.data.formats.lines import kind_of, name_within, nearest, parse_json, read_objects, stream_lines
from isogloss.data.text import canonical_values
from isogloss.errors import DataError

Tell = Callable[[str], object]
"""Callback that receives one line for the user about what was read."""


Numbered = Iterator[tuple[int, Mapping[str, Any]]]


class Record(NamedTuple):
    """A row and its position.

    Attributes:
        path: The file.
        line: Its line in the file, or its row number if the file has no lines, from 1.
        number: The line, counted on across the files of a folder.
        cells: Values by column or key.
    """

    path: Path
    line: int
    number: int
    cells: Mapping[str, Any]

    def error(self, message: str) -> DataError:
        return DataError(message, self.path, self.line)


_ABOUT: Final = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
"""Files with which the `datasets` library describes a folder."""
_ON_HUB: Final = re.compile(r"hub:([\w-][\w.-]*/[\w-][\w.-]*)(?:/([^@]+))?(?:@(.+))?", re.ASCII)


def nobody(said: object) -> None:
    """Ignore what is told; the default of such callbacks."""


def read_records(
    path: Path, split: str | None = None, *, tell: Tell = nobody, kind: str | None = None
) -> Iterator[Record]:
    """Yield the rows of a file, or of one split of a folder, its shards in the order of their names.

    Args:
        path: A file or folder, or hub:OWNER/NAME, followed by /CONFIG if the data set has several, and
            @REVISION to pin one.
        split: Split of a folder or data set to read; defaults to train if there are several.
        tell: Callback that receives a line about the split that was chosen if there are several.
        kind: Kind of a file whose name does not tell, such as jsonl.

    Raises:
        DataError: The file is missing, damaged or of an unknown kind, the folder has no such split, or the
            data set could not be loaded from the Hub.
    """
    if on_hub(path):
        yield from _hub(path, split, tell)
        return
    if path.is_dir():
        before = 0
        for rows in _folder(path, split, tell):
            last = 0
            for record in rows:
                last = record.line
                yield record._replace(number=before + last)
            before += last
        return
    if split is not None:
        raise DataError(f"a file has no splits, so no split {split!r}; remove data.split", path)
    yield from read_file(path, kind)


def read_file(path: Path, kind: str | None = None) -> Iterator[Record]:
    """Like `read_records`, for one file."""
    told = _kind(path)
    found = told if told in _OPENERS or kind is None else kind
    if found not in _OPENERS:
        raise DataError(f"{path.name!r} is not a supported file type; {nearest(found, _OPENERS)}", path)
    return _records(path, _OPENERS[found](path))


def _kind(path: Path) -> str:
    """Detect the kind of a file by its first bytes, otherwise by its suffix."""
    begins = b""
    if path.is_file():
        with path.open("rb") as file:
            begins = file.read(6)
    if begins.startswith(b"PAR1"):
        return "parquet"
    if begins == b"ARROW1":
        return "arrow"
    return name_within(path, begins).rpartition(".")[2].lower()


def _folder(path: Path, split: str | None, tell: Tell) -> Iterator[Iterable[Record]]:
    import datasets
    from datasets.data_files import SPLIT_KEYWORDS
    from datasets.exceptions import DatasetsError

    if (path / "dataset_dict.json").is_file():
        saved = {p.name: p for p in sorted(path.iterdir()) if p.is_dir()}
        yield _saved(saved[_one(list(saved), split, path, tell)])
    elif (path / "state.json").is_file():
        if split is not None:
            raise DataError(f"it has no splits, so no split {split!r}; remove data.split", path)
        yield _saved(path)
    else:
        try:  # the library's rules for names of splits and shards, and those in a README
            with tempfile.TemporaryDirectory() as cache:
                found = datasets.load_dataset_builder(str(path), cache_dir=cache).config.data_files or {}
        except (DatasetsError, OSError, RuntimeError, ValueError) as error:  # RuntimeError: a loading script
            kinds = ", .".join(_OPENERS)
            message = f"the folder contains no table ({str(error).splitlines()[0][:90].rstrip('. ')})"
            raise DataError(f"{message}; it must contain files in .{kinds}", path) from None
        files = {str(name): sorted(map(Path, paths)) for name, paths in found.items()}
        known = {word: str(name) for name, words in SPLIT_KEYWORDS.items() for word in words}
        asked = split if split is None or split in files else known.get(split, split)
        chosen = files[_one(list(files), asked, path, tell)]
        _tell_unread(path, {file for some in files.values() for file in some}, tell)
        for file in chosen:
            yield read_file(file)


def _tell_unread(path: Path, read: Collection[Path], tell: Tell) -> None:
    """Report the tables in a folder that belong to no split: the library takes files of one type only."""
    kinds = {_kind(file) for file in read}
    unread = [
        str(file)
        for file in sorted(one.relative_to(path) for one in path.rglob("*.*"))
        if not any(part.startswith((".", "_")) for part in file.parts)
        and file.name not in _ABOUT
        and name_within(file, b"").rpartition(".")[2].lower() in _OPENERS.keys() - kinds
    ]
    if unread:
        names = ", ".join(unread[:3]) + (f" and {len(unread) - 3} more" if len(unread) > 3 else "")
        tell(f"{path}: only .{', .'.join(sorted(kinds))} is read, not {names}; keep files of one type")


def _one(splits: Sequence[str], split: str | None, path: Path, tell: Tell, what: str = "the folder") -> str:
    if split is not None:
        if split not in splits:
            raise DataError(f"there is no split {split!r}; {nearest(split, splits)}", path)
        return split
    if len(splits) == 1:
        return splits[0]
    if "train" not in splits:
        raise DataError(f"{what} has {', '.join(splits)} but no train; set data.split to one of them", path)
    tell(f"{path}: reading train of the splits {', '.join(splits)}; set data.split to read another")
    return "train"


def _saved(path: Path) -> Iterator[Record]:
    import datasets

    def batches() -> Any:
        saved: Any = datasets.load_from_disk(str(path))  # a folder of splits is handled in `_folder`
        return saved.with_format("arrow").iter(1000)

    return _records(path, _arrow_rows(batches, path))


def _records(path: Path, rows: Numbered) -> Iterator[Record]:
    return (Record(path, line, line, cells) for line, cells in rows)


def _hub(path: Path, split: str | None, tell: Tell) -> Iterator[Record]:
    import datasets
    from datasets.exceptions import DatasetsError

    if (parts := _ON_HUB.fullmatch(str(path))) is None:
        raise DataError(
            "not a data set on the Hub; write hub:OWNER/NAME, followed by /CONFIG if there are several and "
            "@REVISION to pin one",
            path,
        )
    name, config, revision = parts.groups()
    try:
        found = datasets.load_dataset(name, config, revision=revision)
    except (DatasetsError, OSError, ValueError, RuntimeError) as error:
        said = " ".join(str(error).split())[:200].rstrip(". ")
        if "gated" in said:
            way = "request access on its page, then log in with `hf auth login` or set HF_TOKEN"
        elif isinstance(error, ConnectionError):
            way = "connect once, or give a folder with a copy of its files"
        elif isinstance(error, FileNotFoundError):
            way = "correct the name; if it is private, log in with `hf auth login`"
        else:
            way = "give its configuration as hub:OWNER/NAME/CONFIG, or a folder with a copy of its files"
        raise DataError(f"{said}; {way}", path) from None
    rows = found[_one([str(part) for part in found], split, path, tell, "the data set")]
    # The Hub stores a label as a number, which means nothing to a reader.
    names = {column: feature.names for column, feature in rows.features.items() if hasattr(feature, "names")}
    for line, cells in _arrow_rows(lambda: rows.with_format("arrow").iter(1000), path):
        worded = {
            column: own[value]
            for column, own in names.items()
            if isinstance(value := cells[column], int) and 0 <= value < len(own)
        }
        yield Record(path, line, line, {**cells, **worded})


def _csv(path: Path) -> Numbered:
    csv.field_size_limit(1 << 30)  # a document may be longer than 128 KiB
    lines = stream_lines(path)
    above = 0
    while (first := next(lines, None)) is not None and not first.strip():
        above += 1
    first = first or ""
    delimiter = ";" if ";" in first and "," not in first else ","  # as Excel writes where 1.5 is 1,5
    texts = (line + "\n" for line in chain([""] * above, [first], lines))
    reader = csv.reader(texts, delimiter=delimiter, strict=True)
    start = 1
    header: list[str] | None = None
    try:
        for fields in reader:
            if fields and header is None:
                header = _header(fields, path, start)
            elif fields and header is not None:
                yield start, _named(header, fields, path, start)
            start = reader.line_num + 1
    except csv.Error as error:
        if "new-line" in str(error):
            message = (
                "a line ends in CR alone; save the file with LF or CRLF, or quote fields that contain a CR"
            )
        else:
            message = f"not CSV ({error}); quote each field that contains a quotation mark"
        raise DataError(message, path, start) from None


def _tsv(path: Path) -> Numbered:
    lines = stream_lines(path)
    header = _header(next(lines, "").split("\t"), path, 1)
    for number, line in enumerate(lines, start=2):
        if line:
            yield number, _named(header, line.split("\t"), path, number)


def _header(names: list[str], path: Path, line: int) -> list[str]:
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise DataError(f"the header names the column {twice!r} twice; name each once", path, line)
    return names


def _named(header: list[str], fields: list[str], path: Path, line: int) -> Mapping[str, Any]:
    if len(fields) != len(header):
        message = f"{len(fields)} fields, but the header has {len(header)}; each row must have as many"
        raise DataError(message, path, line)
    # An empty cell is the only way to mark a missing value in a text table.
    return {name: cell or None for name, cell in zip(header, fields, strict=True)}


def _json(path: Path) -> Numbered:
    first = next((line for line in stream_lines(path) if line.strip()), "")
    if not first.lstrip().startswith("["):
        if first.strip() == "{":
            message = "the file is one object over several lines"
            raise DataError(f"{message}; it must be a list of objects, or have one object per line", path)
        yield from read_objects(path)
        return
    rows = parse_json("\n".join(stream_lines(path)), "the file must be one list of objects", path)
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise DataError(f"item {number} of the list is {kind_of(row)}; it must be an object", path)
        yield number, canonical_values(row)


def _parquet(path: Path) -> Numbered:
    import pyarrow.parquet

    return _arrow_rows(lambda: pyarrow.parquet.ParquetFile(path).iter_batches(1000), path)


def _arrow(path: Path) -> Numbered:
    import pyarrow

    def batches() -> Iterator[Any]:
        with pyarrow.OSFile(str(path)) as file:
            if file.read(6) == b"ARROW1":  # the file format; the `datasets` library writes the stream format
                whole = pyarrow.ipc.open_file(file)
                yield from map(whole.get_batch, range(whole.num_record_batches))
            else:
                file.seek(0)
                yield from pyarrow.ipc.open_stream(file)

    return _arrow_rows(batches, path)


def _arrow_rows(batches: Callable[[], Iterable[Any]], path: Path) -> Numbered:
    """Yield the rows of Arrow tables or batches, holding one batch at a time."""
    import pyarrow

    number = 0
    try:
        for batch in batches():
            for number, row in enumerate(batch.to_pylist(), start=number + 1):  # noqa: B020
                yield number, canonical_values(row)
    except FileNotFoundError:
        raise DataError("there is no such file; give the path of an existing file", path) from None
    except UnicodeDecodeError:
        raise DataError("a text is not UTF-8; write the table again", path) from None
    except (pyarrow.ArrowException, OSError, OverflowError, ValueError) as error:  # a date after 9999
        message = str(error).splitlines()[0].rstrip(". ")
        raise DataError(f"the table cannot be read ({message}); write it again", path) from None


_OPENERS: Final[dict[str, Callable[[Path], Numbered]]] = {
    "parquet": _parquet,
    "csv": _csv,
    "tsv": _tsv,
    "json": _json,
    "jsonl": read_objects,
    "arrow": _arrow,
}
