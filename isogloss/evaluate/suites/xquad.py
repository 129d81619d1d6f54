"""XQuAD: extractive question answering about a paragraph, in twelve languages (Artetxe et al. 2020).

Uses the templates and scoring of MLQA, whose normalisation handles the articles of each language and splits
Chinese into characters. SQuAD's own script only supports English.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from isogloss.data.draw import sample
from isogloss.data.examples import Turn
from isogloss.data.formats import squad
from isogloss.data.formats.lines import plain_or_gz
from isogloss.data.formats.squad import Question
from isogloss.data.reading import normalise, readable
from isogloss.data.tasks.mlqa import LONGEST, ask
from isogloss.errors import DataError
from isogloss.evaluate.items import Item, Official, SuiteData, over_languages
from isogloss.evaluate.official import answer_f1, answer_match
from isogloss.languages import SOURCE

LANGUAGES = ("en", "ar", "de", "el", "es", "hi", "ro", "ru", "th", "tr", "vi", "zh")
Tables = Mapping[str, Mapping[str, Question]]
"""By language and ID."""


def load(root: Path, split: str, languages: Sequence[str], items: int, sentences: int) -> SuiteData:
    """Load questions in the languages that XQuAD has, spread over the file; test split only, no sentences."""
    if split != "test":
        raise DataError(
            f"XQuAD has no {split} split; remove xquad from evaluate.suites or set evaluate.split=test"
        )
    codes = [SOURCE, *(code for code in languages if code in LANGUAGES)]
    tables = {code: _read(root, code) for code in codes}
    for code, table in tables.items():
        if table.keys() != tables[SOURCE].keys():
            id = min(table.keys() ^ tables[SOURCE].keys())
            raise DataError(f"question {id} exists in en or in {code}, but not in both", root / "xquad")
    made = questions("xquad", tables, list(tables[SOURCE]), items)
    return SuiteData("xquad", "1.0", split, made, {}, score=partial(score, "xquad", tables))


def questions(task: str, tables: Tables, ids: Sequence[str], items: int) -> tuple[Item, ...]:
    """Sample at most `items` questions as items, each in the languages that have it."""
    return tuple(
        Item(
            id,
            task,
            {
                code: Turn(ask(code, table[id].context, table[id].question), table[id].answers[0])
                for code, table in tables.items()
                if id in table
            },
            longest=LONGEST,
        )
        for id in sample(ids, items)
    )


def score(task: str, tables: Tables, answers: Mapping[str, Mapping[str, str]]) -> Official:
    """Compute F1 and exact match by language."""
    f1, exact, unread = {}, {}, {}
    for code, given in answers.items():
        rows = [(tables[code][id].answers, " ".join(text.split())) for id, text in given.items()]
        if rows:
            f1[code] = sum(answer_f1(gold, text, code) for gold, text in rows) / len(rows)
            exact[code] = sum(answer_match(gold, text, code) for gold, text in rows) / len(rows)
            unread[code] = sum(not readable(normalise(text)) for _, text in rows)
    if not f1:
        return Official({})
    scores = {"f1": over_languages(f1), "exact_match": over_languages(exact)}
    return Official({task: scores}, {"unreadable": {task: unread}})


def _read(root: Path, code: str) -> dict[str, Question]:
    wanted = root / "xquad" / f"xquad.{code}.json"
    path = plain_or_gz(wanted)
    if path is None:
        raise DataError(f"no XQuAD in {code}; put it there or leave the language out", wanted)
    return squad.read(path)
