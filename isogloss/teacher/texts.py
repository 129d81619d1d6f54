"""Node texts for the teacher's prompts, as configured."""

from dataclasses import replace

from isogloss.config import Config, DemoData
from isogloss.data.demo.grammar import LANGUAGES, phrases
from isogloss.languages import SOURCE
from isogloss.teacher.prompts import NodeTexts, load_texts


def node_texts(config: Config) -> NodeTexts:
    """Load the node texts; for demo data, add each task's answer words in every language."""
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
