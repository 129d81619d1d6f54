"""Load examples from the settings' `data`: English ones for stage 1, parallel ones for stage 2."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from isogloss.config import (
    AnySource,
    ChatFile,
    Config,
    DemoData,
    FileData,
    MassiveData,
    MlqaData,
    ParallelFile,
    PawsxData,
    Sib200Data,
    TableFile,
    TopicData,
    XnliData,
)
from isogloss.data.demo.grammar import LANGUAGES
from isogloss.data.demo.items import demo_items
from isogloss.data.division import Division
from isogloss.data.draw import Drawn, first_of_each_task, in_draw_order
from isogloss.data.examples import ParallelExample
from isogloss.data.formats import chat_jsonl, parallel_jsonl, table, xnli
from isogloss.data.formats.records import Tell, nobody
from isogloss.data.formats.turns import Only, ParsedTurn
from isogloss.data.parallel_text import topic_examples
from isogloss.data.reading import read_answer
from isogloss.data.tasks import massive as massive_tasks
from isogloss.data.tasks import mlqa as mlqa_tasks
from isogloss.data.tasks import pawsx as pawsx_tasks
from isogloss.data.tasks import sib200 as sib200_tasks
from isogloss.data.tasks import xnli as xnli_tasks
from isogloss.errors import DataError
from isogloss.languages import SOURCE


def english_examples(config: Config, root: Path | None, tell: Tell = nobody) -> list[ParallelExample]:
    """Return the examples for stage 1, each with an English turn that has a response.

    From a source with a limit, the first in draw order; otherwise all, in file order.

    Args:
        config: The settings.
        root: The folder of the real data sets.
        tell: Callback that receives a line for each skipped part of a file, with the reason.

    Raises:
        DataError: There is no such example, or two sources share an ID.
    """
    found = []
    for number, source in enumerate(config.sources):
        if isinstance(source, TopicData):  # has no responses, not even in English
            continue
        if isinstance(source, DemoData):
            items = demo_items("train", source.english_items, [SOURCE], draw="english")
            some = [item.example for item in items]
        else:
            most = source.english_items
            only = iter if most is None else partial(_drawn, most, config.seed, _prefix(config, source))
            some = [e for e in _read(config, source, root, [], tell, only) if SOURCE in e.turns]
            some = [e for e in some if e.turns[SOURCE].response is not None]
            if source.english_items is not None:
                some = in_draw_order(some, config.seed)[: source.english_items]
        found += [replace(e, source=number) for e in some]
    if not found:
        raise DataError("data: no example has an English instruction with a response; stage 1 needs them")
    return _of_different_ids(found)


def parallel_examples(
    config: Config, root: Path | None, languages: Sequence[str], tell: Tell = nobody
) -> list[ParallelExample]:
    """Return the examples for stage 2 in draw order, each in English and at least one of the languages.

    Args:
        tell: Callback that receives a line for each skipped part of a file, with the reason.

    Raises:
        DataError: Two sources share an ID.
    """
    found = []
    for number, source in enumerate(config.sources):
        if isinstance(source, DemoData):
            there = [code for code in languages if code in LANGUAGES]
            most = max((config.languages.amount(code) for code in there), default=0)
            # The demo is already in draw order: tasks and phrasings take turns.
            items = demo_items("train", most, [SOURCE, *there], draw="parallel")
            some = [item.example for item in items]
        else:
            some = _read(config, source, root, languages, tell)
            some = [e for e in some if SOURCE in e.turns and any(code in e.turns for code in languages)]
            some = in_draw_order(some, config.seed)
        found += [replace(e, source=number) for e in some]
    return _of_different_ids(found)


def divisions(config: Config, root: Path | None) -> list[Division]:
    """Return how the dev sets that the settings train on are divided."""
    found = []
    for source in config.sources:
        match source:
            case XnliData():
                rows = xnli.read(_root(root, source.type), "dev", [SOURCE])
                found.append(xnli_tasks.division({row.id: row.premise[SOURCE] for row in rows}))
            case PawsxData():
                english = pawsx_tasks.read(_root(root, source.type), "dev", SOURCE)
                found.append(pawsx_tasks.division(pawsx_tasks.pairs(english)))
            case MlqaData():
                found.append(mlqa_tasks.division(mlqa_tasks.read(_root(root, source.type), "dev", SOURCE)))
    return found


def lacking(example: ParallelExample, code: str, responses: str) -> str | None:
    """Return why an example cannot be used in one of its languages, as known before any answer; else None.

    Args:
        example: It has a turn in the language and in English.
        code: The language.
        responses: As in `response_of`.
    """
    turn, twin = example.turns[code], example.turns[SOURCE]
    if not turn.instruction.strip() or not twin.instruction.strip():
        return "the instruction is empty"
    if responses == "teacher" and not example.own_response:
        return None
    if twin.response is not None and not twin.response.strip():
        return "the English response is empty"
    if code == SOURCE:
        return None
    if turn.response is None:
        return "there is no response"
    return None if turn.response.strip() else "the response is empty"


def response_of(
    example: ParallelExample, code: str, answer: str, responses: str
) -> tuple[str | None, str | None]:
    """Return an example's target response in a language and None, or None and why there is none.

    Args:
        example: It has a turn in the language and in English.
        code: The language.
        answer: The English answer that the teacher reads.
        responses: `reference` takes the data's response; `teacher` the English answer, for a closed task
            replaced by the option's wording in the language.
    """
    if why := lacking(example, code, responses):
        return None, why
    if not answer.strip():
        return None, "there is no English answer"
    if code == SOURCE:
        return answer, None
    if responses == "reference" or example.own_response:
        return example.turns[code].response, None
    if example.options is None:
        return answer, None
    wording = example.options.get(code, {}).get(read_answer(example, SOURCE, answer) or "")
    return wording, None if wording else "the English answer names no option"


def left_out(
    examples: Sequence[ParallelExample],
    codes: Sequence[str],
    lack: Callable[[ParallelExample, str], str | None],
) -> dict[str, Counter[str]]:
    """Count by language and reason the examples that cannot be used; omit languages where all can."""
    found = {
        code: Counter(why for e in examples if code in e.turns and (why := lack(e, code))) for code in codes
    }
    return {code: reasons for code, reasons in found.items() if reasons}


def nothing_in(code: str, found: Mapping[str, Counter[str]], responses: str) -> str:
    """Explain in one line why a language has no usable example.

    Args:
        found: The result of `left_out`.
        responses: As in `response_of`.
    """
    if not (reasons := found.get(code)):
        return f"no item has {code}; add items in {code} or take it out of languages.targets"
    whys = ", ".join(f"{why} ({count})" for why, count in reasons.most_common())
    # MLQA's items need responses in the language in any case.
    way = "set responses: all for mlqa" if responses == "teacher" else "set distill.responses=teacher"
    return f"no item in {code} can be used: {whys}; fix them, {way} or take {code} out of languages.targets"


def left_out_lines(found: Mapping[str, Counter[str]]) -> list[str]:
    """Format the result of `left_out` as one line per reason."""
    reasons = dict.fromkeys(reason for counts in found.values() for reason in counts)
    return [
        f"Left out because {reason}: "
        + ", ".join(f"{counts[reason]} in {code}" for code, counts in found.items() if counts[reason])
        for reason in reasons
    ]


def _read(
    config: Config,
    source: AnySource,
    root: Path | None,
    languages: Sequence[str],
    tell: Tell,
    only: Only = iter,
) -> list[ParallelExample]:
    """Return all examples of a source, in English and in those of the languages that it has.

    Args:
        only: Filter for the rows of a file.
    """
    if isinstance(source, FileData):
        found = _file(source, tell, only)
        prefix = _prefix(config, source)
        return [replace(e, id=f"{prefix}{e.id}") for e in found] if prefix else found
    folder = _root(root, source.type)
    match source:
        case MassiveData():
            has = massive_tasks.available(folder, "train")
            there = [code for code in languages if code in has]
            # Slots are English only, so they are used only in stage 1, which reads no other language.
            tasks = [task for task in source.tasks if task != "slot" or not languages]
            return massive_tasks.examples(folder, there, tasks, all_labels=source.responses == "all")
        case MlqaData():
            all_labels = source.responses == "all"
            return mlqa_tasks.examples(folder, languages, all_labels=all_labels, most=source.max_chars)
        case Sib200Data() | XnliData() | PawsxData():
            tasks_of = {"sib200": sib200_tasks, "xnli": xnli_tasks, "pawsx": pawsx_tasks}[source.type]
            return tasks_of.examples(folder, languages, all_labels=source.responses == "all")
        case TopicData():
            return [
                example
                for name in source.sentences
                for example in topic_examples(name, folder, languages, source.max_chars)
            ]
    raise TypeError(source)


def _prefix(config: Config, source: AnySource) -> str:
    """Return the prefix of a file's IDs; with several sources they need one, as each file counts from 1."""
    if not isinstance(source, FileData) or len(config.sources) == 1:
        return ""
    alike = [one for one in config.sources if isinstance(one, FileData) and one.path.stem == source.path.stem]
    return f"{source.path.stem}-" + (f"{alike.index(source) + 1}-" if len(alike) > 1 else "")


def _drawn(most: int, seed: int, prefix: str, rows: Iterable[ParsedTurn]) -> list[ParsedTurn]:
    """Keep the rows of a file that stage 1 may draw."""
    answered = (row for row in rows if row.language == SOURCE and row.turn.response is not None)
    return first_of_each_task(
        answered, most, seed, lambda row: Drawn(prefix + row.id, row.task, (row.turn.response or "").strip())
    )


def _file(source: FileData, tell: Tell, only: Only) -> list[ParallelExample]:
    match source:
        case ParallelFile(path=path, split=split):
            return parallel_jsonl.read(path, split=split, tell=tell, only=only)
        case ChatFile(path=path, language=language, split=split):
            return chat_jsonl.read(path, language, split=split, tell=tell, only=only)
        case TableFile(path=path, columns=columns, split=split):
            return table.read(path, columns, split=split, tell=tell, only=only)
    raise TypeError(source)


def _of_different_ids(examples: list[ParallelExample]) -> list[ParallelExample]:
    seen: dict[str, int] = {}
    for example in examples:
        if seen.setdefault(example.id, example.source) != example.source:
            raise DataError(f"data: the id {example.id!r} is in two sources; give each file its own ids")
    return examples


def _root(root: Path | None, name: str) -> Path:
    if root is None:
        raise DataError(f"data {name} needs a data root; set data_root, --data-root or ISOGLOSS_DATA")
    return root


def refuse_unusable(
    config: Config,
    examples: Sequence[ParallelExample],
    codes: Sequence[str],
    way: str = "add items or take {them} out of languages.targets",
) -> None:
    """Check that every language has an example that can be learned.

    Args:
        config: Settings of the run.
        examples: All examples.
        codes: The languages.
        way: What the message suggests for a language without examples.

    Raises:
        DataError: A language has no example, or none that can be learned.
    """
    have = {code for example in examples for code in example.turns}
    if missing := [code for code in codes if code not in have]:
        them = "it" if len(missing) == 1 else "them"
        raise DataError(f"the data has no {', '.join(missing)}; {way.format(them=them)}")
    found = left_out(examples, codes, lambda e, code: lacking(e, code, config.distill.responses))
    for code, reasons in found.items():
        if reasons.total() == sum(code in example.turns for example in examples):
            raise DataError(nothing_in(code, found, config.distill.responses))
