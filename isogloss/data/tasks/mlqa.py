"""MLQA: extractive question answering about a passage of Wikipedia (Lewis et al. 2020).

The passages differ between languages; the question and its answer are the same. There is no training file, so
the dev set is divided by article.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from pathlib import Path

import yaml

from isogloss.data.division import Division, components
from isogloss.data.examples import ParallelExample, Turn
from isogloss.data.formats import squad, xglue
from isogloss.data.formats.lines import plain_or_gz
from isogloss.data.formats.squad import Question
from isogloss.errors import DataError
from isogloss.languages import SOURCE

TASK = "mlqa"
LANGUAGES = xglue.LANGUAGES["MLQA"]
LONGEST = 48
"""Maximum length of an answer in tokens."""


@cache
def templates() -> dict[str, str]:
    """Instruction templates by language, including languages that only XQuAD has."""
    return yaml.safe_load((resources.files("isogloss.data.tasks") / "mlqa.yaml").read_text("utf-8"))


def ask(code: str, context: str, question: str) -> str:
    """Return the instruction for a question about a passage."""
    return templates()[code].format(context=context, question=question)


def read(root: Path, split: str, code: str) -> dict[str, Question]:
    """Return the questions of a split by ID, with question and passage in the same language.

    Raises:
        DataError: The file is missing or damaged.
    """
    wanted = root / "MLQA_V1" / split / f"{split}-context-{code}-question-{code}.json"
    path = plain_or_gz(wanted)
    if path is None:
        raise DataError(f"no MLQA {split} in {code}; put it there or leave the language out", wanted)
    return squad.read(path)


def division(english: Mapping[str, Question]) -> Division:
    """Divide the dev set; questions about the same article or passage are in the same part."""
    articles = {id: (f"article {one.article}",) for id, one in english.items() if one.article}
    # Passages are long, so unrelated ones may share six words in a row.
    groups = components({id: (one.context,) for id, one in english.items()}, articles, words=8)
    return Division("MLQA", "article", groups)


def examples(root: Path, languages: Sequence[str], *, all_labels: bool, most: int) -> list[ParallelExample]:
    """Return the part of dev for training, in the languages that MLQA has; see `xnli.examples`.

    Args:
        root: The data root.
        languages: Languages besides English.
        all_labels: Also use the answers in languages other than English.
        most: Maximum length of a passage in characters.
    """
    codes = [SOURCE, *(code for code in languages if code in LANGUAGES)]
    tables = {code: read(root, "dev", code) for code in codes}
    divided = division(tables[SOURCE])
    found = []
    for id, english in tables[SOURCE].items():
        if not divided.learned(id) or len(english.context) > most:
            continue
        turns = {
            code: Turn(
                ask(code, table[id].context, table[id].question),
                table[id].answers[0] if all_labels or code == SOURCE else None,
            )
            for code, table in tables.items()
            if id in table and len(table[id].context) <= most
        }
        # An English answer in another language's place would turn its answers to English (docs/log.md).
        found.append(ParallelExample(f"{TASK}-{id}", TASK, turns, own_response=True))
    return found
