"""XNLI: whether a hypothesis follows from a premise, in fifteen languages (Conneau et al. 2018).

Instructions use the wording of the demo's inference task, with label words in the language. There is no
training file in these languages, so the dev set is divided by premise.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from isogloss.data.demo.grammar import phrases
from isogloss.data.division import Division, components
from isogloss.data.examples import ParallelExample, Turn
from isogloss.data.formats import xglue, xnli
from isogloss.data.tasks.wordings import english_wordings
from isogloss.languages import SOURCE

TASK = "xnli"
LANGUAGES = xglue.LANGUAGES["XNLI"]


def ask(code: str, premise: str, hypothesis: str, *, phrasing: int = 0) -> str:
    """Return the instruction for a pair of sentences, in one of the phrasings."""
    return phrases(code).instruction("inference", phrasing, premise=premise, hypothesis=hypothesis)


@cache
def options(code: str) -> dict[str, str]:
    """Return the wording of each label."""
    return phrases(code).labels("inference")


def division(premises: Mapping[str, str]) -> Division:
    """Divide the dev set by the English premise of each row."""
    return Division("XNLI", "premise", components({id: (text,) for id, text in premises.items()}))


def examples(root: Path, languages: Sequence[str], *, all_labels: bool) -> list[ParallelExample]:
    """Return the part of dev for training, in the languages that XNLI has.

    Args:
        root: The data root.
        languages: Languages besides English.
        all_labels: Also use the labels in languages other than English.
    """
    codes = [SOURCE, *(code for code in languages if code in LANGUAGES)]
    rows = xnli.read(root, "dev", codes)
    divided = division({row.id: row.premise[SOURCE] for row in rows})
    return [
        ParallelExample(
            f"{TASK}-{row.id}",
            TASK,
            {
                code: Turn(
                    ask(code, row.premise[code], row.hypothesis[code]),
                    options(code)[row.label] if all_labels or code == SOURCE else None,
                )
                for code in codes
            },
            {code: options(code) for code in codes},
            wordings=english_wordings(TASK, premise=row.premise[SOURCE], hypothesis=row.hypothesis[SOURCE]),
        )
        for row in rows
        if divided.learned(row.id)
    ]
