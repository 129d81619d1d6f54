"""Templates: the wording of each task, used to extract the inputs from an instruction again."""

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
"""Tasks that use the wording of a demo task."""
_BLANK = re.compile(r"\s+")


def parts_of(task: str, code: str, instruction: str) -> tuple[str, ...]:
    """Return the inputs in an instruction: its premise and hypothesis, or its passage and question.

    Empty if the task has no known template or the instruction does not match it.
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
    """Compile a template to a pattern; case is ignored, as a sentence's first letter is capitalised."""
    pieces = []
    for words, slot, _, _ in Formatter().parse(_BLANK.sub(" ", template)):
        pieces.append(re.escape(words) + ("" if slot is None else "(.*)"))
    return re.compile("".join(pieces), re.IGNORECASE | re.DOTALL)
