"""What the tree's nodes say to the teacher, as the settings have it."""

from dataclasses import replace

from isogloss.config import (
    Config,
    DemoData,
)
from isogloss.data.demo.grammar import LANGUAGES, phrases
from isogloss.languages import SOURCE
from isogloss.teacher.prompts import NodeTexts, load_texts


def node_texts(config: Config) -> NodeTexts:
    """What the tree's nodes say; the demo's tasks also list their answer words in each language."""
    texts = load_texts(config.distill.texts)
    if not any(isinstance(source, DemoData) for source in config.sources) or texts.answers:
        return texts
    english = phrases(SOURCE)
    answers = {
        code: {
            task: {english.label(task, label): word for label, word in phrases(code).labels(task).items()}
            for task in english.entries["labels"]
        }
        for code in LANGUAGES
        if code != SOURCE
    }
    return replace(texts, answers=answers)
