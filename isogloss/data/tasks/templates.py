"""Templates: how each task is worded, so that what an instruction is about can be taken out of it again."""

import re
from collections.abc import Iterator
from functools import cache
from string import Formatter

from isogloss.data.demo.grammar import LANGUAGES, phrases
from isogloss.data.tasks import massive, mlqa, sib200

PHRASED = {
    "xnli": "inference",
    "XNLI": "inference",
    "pawsx": "paraphrase",
    "PAWSX": "paraphrase",
    "sib200": "topic",
    "topic_tatoeba": "topic",
    "topic_tico19": "topic",
    "topic_course_text": "topic",
    "from_english": "from_english",
    "to_english": "to_english",
}
"""Tasks that are asked in the words of one of the demo's."""
_BLANK = re.compile(r"\s+")


def parts_of(task: str, code: str, instruction: str) -> tuple[str, ...]:
    """What an instruction is about: its premise and hypothesis, its passage and question.

    Empty where the task's template is not known, or the instruction is worded in another way.
    """
    for pattern in _patterns(task, code):
        if found := pattern.fullmatch(_BLANK.sub(" ", instruction).strip()):
            return found.groups()
    return ()


@cache
def _patterns(task: str, code: str) -> tuple[re.Pattern[str], ...]:
    return tuple(_pattern(template) for template in _templates(task, code))


def _templates(task: str, code: str) -> Iterator[str]:
    if task in PHRASED and code in LANGUAGES:
        template = phrases(code).entries["instructions"][PHRASED[task]][0]
        yield f"{template} {sib200.choices(code)}" if PHRASED[task] == "topic" else template
    elif task in ("mlqa", "MLQA", "xquad") and code in mlqa.templates():
        yield mlqa.templates()[code]
    elif code in massive.templates() and task in massive.templates()[code]:
        yield massive.templates()[code][task]


def _pattern(template: str) -> re.Pattern[str]:
    """Its words as they stand, but for case: a sentence's first letter is written large."""
    pieces = []
    for words, slot, _, _ in Formatter().parse(_BLANK.sub(" ", template)):
        pieces.append(re.escape(words) + ("" if slot is None else "(.*)"))
    return re.compile("".join(pieces), re.IGNORECASE | re.DOTALL)
