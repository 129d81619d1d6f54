"""MASSIVE: intents and scenarios of virtual-assistant utterances, parallel by id (FitzGerald et al. 2022).

The same templates make the items of the suite and the examples for training.
"""

from collections.abc import Sequence
from functools import cache
from importlib import resources
from pathlib import Path

import yaml

from isogloss.data.examples import ParallelExample, Turn
from isogloss.data.formats import massive
from isogloss.errors import DataError
from isogloss.evaluate.items import Item, SuiteData
from isogloss.languages import SOURCE

CLOSED = ("intent", "scenario")


@cache
def templates() -> dict[str, dict[str, str]]:
    return yaml.safe_load((resources.files("isogloss.evaluate.suites") / "massive.yaml").read_text("utf-8"))


def wording(label: str) -> str:
    """A label as it is answered: `alarm_set` reads alarm set."""
    return label.replace("_", " ")


def examples(root: Path, languages: Sequence[str], tasks: Sequence[str]) -> list[ParallelExample]:
    """Train utterances with English labels; another language's labels are never read.

    Tasks take turns over utterances, so that any first n examples hold them all; slots are English only.
    """
    made = []
    for number, row in enumerate(massive.read(root, "train", [SOURCE, *languages])):
        for offset in range(len(tasks)):
            task = tasks[(number + offset) % len(tasks)]
            if task == "slot":
                for slot, value in row.slots.get(SOURCE, ())[:1]:
                    text = templates()[SOURCE]["slot"].format(slot=wording(slot), utt=row.utt[SOURCE])
                    made.append(ParallelExample(f"{row.id}-slot", task, {SOURCE: Turn(text, value)}))
            else:
                label = wording(getattr(row, task))
                turns = {
                    code: Turn(_ask(task, code, utt), label if code == SOURCE else None)
                    for code, utt in row.utt.items()
                }
                made.append(ParallelExample(f"{row.id}-{task}", task, turns))
    return made


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
                    code: Turn(_ask(task, code, row.utt[code]), wording(getattr(row, task))) for code in codes
                },
                options={code: {label: wording(label) for label in labels[task]} for code in codes},
                gold=getattr(row, task),
                answer_language=dict.fromkeys(codes, SOURCE),
            )
        )
    return SuiteData("massive", "1.0", split, tuple(made), {})


def _ask(task: str, code: str, utt: str) -> str:
    return templates()[code][task].format(utt=utt)
