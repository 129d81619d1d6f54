"""Translation of a sentence, in the wording of the demo's tasks if the language has one, else in English."""

from isogloss.data.demo.grammar import LANGUAGES, phrases
from isogloss.data.examples import Turn
from isogloss.languages import SOURCE, resolve

TASKS = ("from_english", "to_english")


def turn(task: str, code: str, english: str, other: str) -> Turn:
    """Return an instruction to translate from English into a language, or from it, with the translation."""
    text, reference = (english, other) if task == "from_english" else (other, english)
    if code in LANGUAGES:
        return Turn(phrases(code).instruction(task, 0, text=text), reference)
    target = resolve(code if task == "from_english" else SOURCE).name
    return Turn(f"Translate into {target}: {text}", reference)
