"""Tab-separated files with a header: fields are split at tabs, and quotation marks are text."""

from collections.abc import Sequence
from pathlib import Path

from isogloss.data.formats.lines import nearest, read_lines
from isogloss.errors import DataError


def read_table(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """Return the named columns of every row.

    Raises:
        DataError: A column is missing, or a row has more or fewer fields than the header.
    """
    lines = read_lines(path)
    header = lines[0].split("\t") if lines else []
    for column in columns:
        if column not in header:
            raise DataError(f"the header has no column {column}; {nearest(column, header)}", path, 1)
    rows = []
    for number, line in enumerate(lines[1:], start=2):
        fields = line.split("\t")
        if len(fields) != len(header):
            raise DataError(f"{len(fields)} fields, but the header names {len(header)}", path, number)
        rows.append({column: fields[header.index(column)] for column in columns})
    return rows
