"""MASSIVE: intents and scenarios of virtual-assistant utterances, parallel by id (FitzGerald et al. 2022).

Training examples and evaluation items use the same wording.
"""

from collections.abc import Iterable, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from isogloss.data.examples import ParallelExample, Turn
from isogloss.data.formats import massive
from isogloss.data.tasks.wordings import english_wordings
from isogloss.languages import SOURCE

CLOSED = ("intent", "scenario")


@cache
def templates() -> dict[str, dict[str, str]]:
    """Instruction templates by language and task."""
    return yaml.safe_load((resources.files("isogloss.data.tasks") / "massive.yaml").read_text("utf-8"))


def wording(label: str) -> str:
    """Return a label as it is written in an answer: `alarm_set` becomes alarm set."""
    return label.replace("_", " ")


def available(root: Path, partition: str) -> set[str]:
    """Return the languages with a file for the partition and instruction templates here."""
    return massive.available(root, partition) & templates().keys()


def options(rows: Iterable[Any], task: str) -> dict[str, str]:
    """Return the wording of every label in the rows, the same in each language."""
    return {label: wording(label) for label in sorted({getattr(row, task) for row in rows})}


def examples(
    root: Path, languages: Sequence[str], tasks: Sequence[str], *, all_labels: bool = False
) -> list[ParallelExample]:
    """Return the train utterances with English labels; slots are English only.

    Args:
        root: The data root.
        languages: Languages besides English.
        tasks: The tasks for each utterance.
        all_labels: Also give the labels to languages other than English.
    """
    made = []
    rows = massive.read(root, "train", [SOURCE, *languages])
    by_task = {task: options(rows, task) for task in tasks if task in CLOSED}
    for row in rows:
        for task in tasks:
            if task == "slot":
                for slot, value in row.slots.get(SOURCE, ())[:1]:
                    text = templates()[SOURCE]["slot"].format(slot=wording(slot), utt=row.utt[SOURCE])
                    turns = {SOURCE: Turn(text, value)}
                    made.append(ParallelExample(f"{row.id}-slot", task, turns))
            else:
                label = wording(getattr(row, task))
                turns = {
                    code: Turn(ask(task, code, utt), label if all_labels or code == SOURCE else None)
                    for code, utt in row.utt.items()
                }
                texts = dict.fromkeys(turns, by_task[task])
                again = () if languages else english_wordings(task, utt=row.utt[SOURCE])  # for stage 1
                made.append(ParallelExample(f"{row.id}-{task}", task, turns, texts, wordings=again))
    return made


def ask(task: str, code: str, utt: str) -> str:
    """Return a task's instruction for an utterance."""
    return templates()[code][task].format(utt=utt)


def reworded(task: str, utt: str) -> str:
    """Return a task's English instruction in a different wording."""
    return templates()["en_reworded"][task].format(utt=utt)
