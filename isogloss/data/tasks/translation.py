"""Translation of a sentence, asked in the wording of the demo's tasks where there is one, else in English."""

from isogloss.data.demo.grammar import LANGUAGES, phrases
from isogloss.data.examples import Turn
from isogloss.languages import SOURCE, resolve

TASKS = ("from_english", "to_english")


def turn(task: str, code: str, english: str, other: str) -> Turn:
    """The instruction in a language to translate from English into it, or from it, and the translation."""
    text, reference = (english, other) if task == "from_english" else (other, english)
    if code in LANGUAGES:
        return Turn(phrases(code).instruction(task, 0, text=text), reference)
    target = resolve(code if task == "from_english" else SOURCE).name
    return Turn(f"Translate into {target}: {text}", reference)
