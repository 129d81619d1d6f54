"""XGLUE: eleven tasks, scored as in the benchmark (Liang et al. 2020).

Items of XNLI, PAWS-X and MLQA are parallel and have an English twin; items of the other tasks have none, so
their consistency is undefined.
Flow: files → rows, sampled per language → items (`xglue_items`) → answers → scores (`xglue_scores`).
"""

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import TypeVar

from isogloss.config import Xglue
from isogloss.data.division import REPORTED, Division
from isogloss.data.draw import sample
from isogloss.data.formats import squad, xglue
from isogloss.data.formats.archive import unpack
from isogloss.data.formats.xglue import Places, XglueRow
from isogloss.data.tasks import mlqa, pawsx, xnli
from isogloss.errors import DataError
from isogloss.evaluate.items import SuiteData
from isogloss.evaluate.suites.xglue_items import make_items
from isogloss.evaluate.suites.xglue_scores import score
from isogloss.languages import SOURCE

FOLDER = "xglue_full_dataset"
Rows = dict[str, dict[str, XglueRow]]
"""By language and ID, in file order."""
T = TypeVar("T")


def load(
    root: Path | None,
    split: str,
    languages: Sequence[str],
    items: int,
    sentences: int,
    options: Xglue = Xglue(),  # frozen
) -> SuiteData:
    """Load at most `items` rows per task and language, of every task with one of the languages; no sentences.

    Raises:
        DataError: A task or language is missing and not skipped by the options, or a file is damaged.
    """
    places = _places(root, options)
    files, notes = _found(split, languages, options, places)
    parts: tuple[str, ...] = ()
    read = {task: xglue.read(task, split, those) for task, those in files.items()}
    for task in read if split == "dev" else ():
        if divided := _division(task, read[task].get(SOURCE, []), files[task]):
            read[task] = {
                code: [row for row in rows if not divided.learned(row.id)]
                for code, rows in read[task].items()
            }
            notes, parts = (*notes, divided.note), (*parts, f"{REPORTED} of {task}")
    made = make_items({task: _select(task, rows, items) for task, rows in read.items()})
    return SuiteData(
        "xglue",
        "1.0",
        f"{split} ({', '.join(parts)})" if parts else split,
        tuple(item for _, item, _ in made),
        {},
        score=partial(score, made),
        notes=notes,
    )


def _division(task: str, english: Sequence[XglueRow], files: Mapping[str, Path]) -> Division | None:
    """Divide the dev set of a task that may be trained on, by its English rows; None for other tasks."""
    if not english:
        return None
    match task:
        case "XNLI":
            return xnli.division({row.id: row.parts["premise"] for row in english})
        case "PAWSX":
            return pawsx.division({row.id: (row.parts["first"], row.parts["second"]) for row in english})
        case "MLQA":
            return mlqa.division(squad.read(files[SOURCE]))
    return None


def _places(root: Path | None, options: Xglue) -> Places:
    path = options.path
    if path is None:
        if root is None:
            raise DataError("the xglue suite needs a data root; set data_root or ISOGLOSS_DATA")
        archive = root / f"{FOLDER}.tar.gz"
        path = archive if archive.is_file() and not (root / FOLDER).is_dir() else root / FOLDER
    return Places(unpack(path, FOLDER) if path.is_file() else path, root)


def _found(
    split: str, languages: Sequence[str], options: Xglue, places: Places
) -> tuple[dict[str, dict[str, Path]], tuple[str, ...]]:
    """Return the files by task and language, and notes for readers of the scores."""
    files, notes, lacking = {}, [], []
    for task in options.tasks:
        wanted = [code for code in xglue.LANGUAGES[task] if code == SOURCE or code in languages]
        if wanted == [SOURCE]:
            continue
        found = xglue.available(task, split, wanted, places)
        if missing := [code for code in wanted if code not in found]:
            looked = ", ".join(map(str, places.looked(task, split, missing[0])))
            lacking.append(f"{task} in {', '.join(missing)} (looked for {looked})")
            notes.append(f"XGLUE's {task} {split} was not found in {', '.join(missing)}.")
        if not found.keys() - {SOURCE}:
            continue
        files[task] = found
        path = next(iter(found.values()))
        if places.root is not None and not path.is_relative_to(places.folder):
            notes.append(f"XGLUE's {task} was read from {path.relative_to(places.root).parts[0]}.")
    if lacking and not options.skip_missing:
        hint = "put it there, name others in evaluate.xglue.tasks, or set evaluate.xglue.skip_missing"
        raise DataError(f"XGLUE {split} lacks {'; '.join(lacking)}; {hint}")
    if not files:
        raise DataError(
            f"XGLUE {split} has none of the selected tasks in {', '.join(languages)}; add a language"
        )
    return files, tuple(notes)


def _select(task: str, rows: dict[str, list[XglueRow]], most: int) -> Rows:
    """Sample at most `most` rows per language; for parallel tasks the same rows in all where possible."""
    if task not in xglue.PARALLEL:
        return {code: {row.id: row for row in _some(task, those, most)} for code, those in rows.items()}
    by_id = {code: {row.id: row for row in those} for code, those in rows.items()}
    holders: dict[str, int] = {}
    for those in by_id.values():
        for id in those:
            holders[id] = holders.get(id, 0) + 1
    order = []  # ids shared by most languages first, spread over the file
    for count in range(len(by_id), 0, -1):
        ids = [id for id, held in holders.items() if held == count]
        spread = dict.fromkeys(_every(ids, most))
        order += [*spread, *(id for id in ids if id not in spread)]
    kept = {code: [id for id in order if id in those][:most] for code, those in by_id.items()}
    english = by_id.get(SOURCE, {})
    twins = [id for ids in kept.values() for id in ids if id in english]
    if english:
        kept[SOURCE] = list(dict.fromkeys([*kept[SOURCE], *twins]))
    return {code: {id: by_id[code][id] for id in ids} for code, ids in kept.items()}


def _some(task: str, rows: list[XglueRow], most: int) -> list[XglueRow]:
    """Sample rows spread over the file; for ranking (WPR), whole queries."""
    if task != "WPR":
        return _every(rows, most)
    queries = [list(group) for _, group in groupby(rows, key=lambda row: row.parts["query"])]
    if len(rows) > most:
        queries = [group for group in queries if len(group) > 1]
        queries = _every(queries, max(1, most * len(queries) // len(rows)))
    return [row for group in queries for row in group]


def _every(rows: list[T], most: int) -> list[T]:
    return [rows[place] for place in sample(range(len(rows)), most)]
