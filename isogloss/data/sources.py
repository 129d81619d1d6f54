"""From the settings' `data` to examples: English ones for stage 1, parallel ones for stage 2."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from isogloss.config import ChatFile, Config, DemoData, MassiveData, ParallelFile, TableFile
from isogloss.data.examples import ParallelExample
from isogloss.data.formats import chat_jsonl, massive, parallel_jsonl, table
from isogloss.data.formats.records import Tell, nobody
from isogloss.data.tasks import massive as massive_tasks
from isogloss.demo.grammar import LANGUAGES, phrases
from isogloss.demo.items import demo_items
from isogloss.errors import DataError
from isogloss.languages import SOURCE
from isogloss.teacher.prompts import NodeTexts, load_texts


def english_examples(config: Config, root: Path | None, tell: Tell = nobody) -> list[ParallelExample]:
    """Examples for stage 1, each with an English turn that has a response.

    Args:
        config: The settings.
        root: The folder of the real data sets.
        tell: Hears what of a file is left out, and why.

    Raises:
        DataError: There is none.
    """
    match config.data:
        case DemoData() as demo:
            found = [
                item.example for item in demo_items("train", demo.english_items, [SOURCE], draw="english")
            ]
        case MassiveData() as data:
            found = massive_tasks.examples(_root(root, "massive"), [], data.tasks)
            if data.english_items is not None:
                found = found[: data.english_items]
        case _:
            found = _file(config, tell)
    found = [e for e in found if SOURCE in e.turns and e.turns[SOURCE].response is not None]
    if not found:
        raise DataError("data: no example has an English instruction with a response; stage 1 needs them")
    return found


def parallel_examples(
    config: Config, root: Path | None, languages: Sequence[str], tell: Tell = nobody
) -> list[ParallelExample]:
    """Examples for stage 2, each in English and in at least one of the languages."""
    match config.data:
        case DemoData():
            there = [code for code in languages if code in LANGUAGES]
            most = max((config.languages.amount(code) for code in there), default=0)
            items = demo_items("train", most, [SOURCE, *there], draw="parallel")
            found = [item.example for item in items]
        case MassiveData() as data:
            folder = _root(root, "massive")
            there = [code for code in languages if code in massive.available(folder)]
            tasks = [task for task in data.tasks if task != "slot"]
            found = massive_tasks.examples(folder, there, tasks)
        case _:
            found = _file(config, tell)
    return [e for e in found if SOURCE in e.turns and any(code in e.turns for code in languages)]


def node_texts(config: Config) -> NodeTexts:
    """What the tree's nodes say; the demo's tasks also list their answer words in each language."""
    texts = load_texts(config.distill.texts)
    if not isinstance(config.data, DemoData) or texts.answers:
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


def _file(config: Config, tell: Tell) -> list[ParallelExample]:
    match config.data:
        case ParallelFile(path=path):
            return parallel_jsonl.read(path, tell=tell)
        case ChatFile(path=path, language=language, split=split):
            return chat_jsonl.read(path, language, split=split, tell=tell)
        case TableFile(path=path, columns=columns, split=split):
            return table.read(path, columns, split=split, tell=tell)
    raise TypeError(config.data)


def _root(root: Path | None, name: str) -> Path:
    if root is None:
        raise DataError(f"data {name} needs a data root; set data_root, --data-root or ISOGLOSS_DATA")
    return root
