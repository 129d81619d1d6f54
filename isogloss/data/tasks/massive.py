"""MASSIVE: intents and scenarios of virtual-assistant utterances, parallel by id (FitzGerald et al. 2022).

The same wording makes examples for training and items for evaluation.
"""

from collections.abc import Sequence
from functools import cache
from importlib import resources
from pathlib import Path

import yaml

from isogloss.data.examples import ParallelExample, Turn
from isogloss.data.formats import massive
from isogloss.languages import SOURCE

CLOSED = ("intent", "scenario")


@cache
def templates() -> dict[str, dict[str, str]]:
    """Instruction templates by language and task."""
    return yaml.safe_load((resources.files("isogloss.data.tasks") / "massive.yaml").read_text("utf-8"))


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
                    code: Turn(ask(task, code, utt), label if code == SOURCE else None)
                    for code, utt in row.utt.items()
                }
                made.append(ParallelExample(f"{row.id}-{task}", task, turns))
    return made


def ask(task: str, code: str, utt: str) -> str:
    """A task's instruction about an utterance."""
    return templates()[code][task].format(utt=utt)


def reworded(task: str, utt: str) -> str:
    """A task's English instruction in other words."""
    return templates()["en_reworded"][task].format(utt=utt)
