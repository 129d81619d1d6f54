"""The MASSIVE suite: intents and scenarios of utterances, parallel by id (FitzGerald et al. 2022)."""

from collections.abc import Sequence
from pathlib import Path

from isogloss.data.draw import sample
from isogloss.data.examples import Turn
from isogloss.data.formats import massive
from isogloss.data.tasks.massive import CLOSED, ask, available, options, reworded, wording
from isogloss.evaluate.items import Item, SuiteData
from isogloss.languages import SOURCE


def load(root: Path, split: str, languages: Sequence[str], items: int, sentences: int) -> SuiteData:
    """Load dev or test utterances in the languages that MASSIVE has; other languages are ignored."""
    has = available(root, split)
    codes = [SOURCE, *(code for code in languages if code in has)]
    rows = massive.read(root, split, codes)
    labels = {task: options(massive.labelled(root, split), task) for task in CLOSED}
    made = []
    chosen = sample(rows, items, key=lambda row: row.id, strata=lambda row: (row.scenario, row.intent))
    for number, row in enumerate(chosen):
        task = CLOSED[number % 2]
        made.append(
            Item(
                id=f"{row.id}-{task}",
                task=task,
                turns={
                    code: Turn(ask(task, code, row.utt[code]), wording(getattr(row, task))) for code in codes
                },
                options=dict.fromkeys(codes, labels[task]),
                gold=getattr(row, task),
                answer_language=dict.fromkeys(codes, SOURCE),
                paraphrases=(reworded(task, row.utt[SOURCE]),),
            )
        )
    return SuiteData("massive", massive.release(root, split, codes), split, tuple(made), {})
