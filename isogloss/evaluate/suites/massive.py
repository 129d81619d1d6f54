"""The MASSIVE suite: intents and scenarios of utterances, parallel by id (FitzGerald et al. 2022)."""

from collections.abc import Sequence
from pathlib import Path

from isogloss.data.examples import Turn
from isogloss.data.formats import massive
from isogloss.data.tasks.massive import CLOSED, ask, reworded, wording
from isogloss.errors import DataError
from isogloss.evaluate.items import Item, SuiteData
from isogloss.languages import SOURCE


def load(root: Path | None, split: str, languages: Sequence[str], items: int, sentences: int) -> SuiteData:
    """Dev or test utterances of the languages that MASSIVE has; the others are named in no mean."""
    if root is None:
        raise DataError("the massive suite needs a data root; set data_root or ISOGLOSS_DATA")
    there = [code for code in languages if code in massive.available(root)]
    rows = massive.read(root, split, [SOURCE, *there])
    labels = {task: sorted({getattr(row, task) for row in rows}) for task in CLOSED}
    made = []
    for number, row in enumerate(rows[:: max(1, len(rows) // items)][:items]):
        task = CLOSED[number % 2]
        codes = [SOURCE, *there]
        made.append(
            Item(
                id=f"{row.id}-{task}",
                task=task,
                turns={
                    code: Turn(ask(task, code, row.utt[code]), wording(getattr(row, task))) for code in codes
                },
                options={code: {label: wording(label) for label in labels[task]} for code in codes},
                gold=getattr(row, task),
                answer_language=dict.fromkeys(codes, SOURCE),
                paraphrases=(reworded(task, row.utt[SOURCE]),),
            )
        )
    return SuiteData("massive", "1.0", split, tuple(made), {})
