"""Build the rows of stage 2: get English answers, choose examples, encode rows."""

import math
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from types import MappingProxyType

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from isogloss import processes
from isogloss.adapters.tree import Tree
from isogloss.config import ModelTeacher
from isogloss.data.chat import encode_prompt, surely_within
from isogloss.data.counting import unchanging
from isogloss.data.draw import choose, labels_of
from isogloss.data.examples import ParallelExample
from isogloss.data.formats.lines import nearest
from isogloss.data.parallel_text import Pair, input_pairs, translation_examples
from isogloss.data.sources import lacking, left_out, left_out_lines, nothing_in, response_of
from isogloss.errors import DataError, RunError
from isogloss.files import read_lines
from isogloss.languages import SOURCE, languages
from isogloss.model.cost import StageCost
from isogloss.model.decoder import parts_of
from isogloss.model.load import load_tokenizer
from isogloss.pipeline.english import (
    asked_of,
    asks,
    english_answer,
    english_answers,
    kept_answers,
    useless_because,
)
from isogloss.pipeline.folder import Run
from isogloss.teacher import joining
from isogloss.teacher.rows import Row, TeacherView, build_rows, sentence_rows
from isogloss.teacher.texts import node_texts


def row_of(run: Run, code: str, id: str) -> tuple[Row, PreTrainedTokenizerBase | None]:
    """Build the row of one example in one taught language.

    Returns:
        The row, and the teacher's tokenizer if it is not the student's.

    Raises:
        RunError: There is no such example or language, or the example has no answer yet.
    """
    if code not in run.taught:
        raise RunError(f"{code} is not taught in {run.folder}; it has {', '.join(run.taught)}")
    examples = {e.id: e for e in run.examples if code in e.turns}
    if not examples:
        raise RunError(f"the run's data have no example in {code}; use the data that it was taught with")
    if id not in examples:
        raise RunError(f"--id {id}: no example in {code} has this id; {nearest(id, examples)}")
    example, kept = examples[id], kept_answers(run)
    answer = english_answer(run, example, kept)
    if answer is None or (asks(run, example) and kept.of(*asked_of(example)) is None):
        raise RunError(f"{id} has no English answer yet; run `isogloss cache` or `isogloss distill` first")
    given: tuple = run.tokenizer, {code: [example]}, {id: answer}, run.tree
    teacher = run.config.distill.teacher
    (row,) = rows_with_responses(run, *given, replay=False, shown=True)
    if not (isinstance(teacher, ModelTeacher) and teacher.level == "sequence"):
        return row, joining.tokenizer_of(teacher)
    its = load_tokenizer(teacher.path)
    theirs = rows_with_responses(run, *given, replay=False, teacher=its)
    answers = joining.answers_of(teacher, run.tokenizer, run.dtype, run.folder / "teacher_answers.jsonl")
    if answers.of(*joining.answer_key(theirs[0])) is None:
        raise RunError(f"{id} has no answer by {teacher.path} yet; run `isogloss distill` first")
    (answered,) = joining.answered_rows([row], theirs, answers)
    return replace(answered, teacher_prompt=theirs[0].teacher_prompt), its


def chosen_for(
    run: Run,
    examples: Sequence[ParallelExample],
    codes: Sequence[str],
    english: Mapping[str, str] | None = None,
) -> dict[str, list[ParallelExample]]:
    """Return the examples that each language learns from.

    Args:
        examples: Examples in draw order.
        english: English answer by example ID; if None, as far as known before there are answers.
    """
    settings = run.config.languages
    lack = partial(_lack, english=english, responses=run.config.distill.responses)
    amounts = {code: settings.amount(code) for code in codes}
    weights = [source.weight for source in run.config.sources]
    chosen = choose(examples, amounts, weights, lack, same=settings.same_items)
    return {code: [examples[place] for place in places] for code, places in chosen.items()}


def _lack(
    example: ParallelExample, code: str, english: Mapping[str, str] | None, responses: str
) -> str | None:
    if english is None:
        return lacking(example, code, responses)
    return response_of(example, code, english.get(example.id, ""), responses)[1]


def rows_for(
    run: Run,
    model: PreTrainedModel,
    examples: Sequence[ParallelExample],
    tree: Tree,
    codes: Sequence[str],
    stage: StageCost,
    *,
    replay: bool = True,
) -> list[Row]:
    """Build the rows of stage 2; the reference model generates missing English answers.

    An example whose English answer is truncated, or names no option of a closed task, is skipped, and the
    next one in draw order replaces it.

    Args:
        examples: Examples in draw order.
        stage: Accumulates the cost.
        replay: Whether to add English rows of stage 1, for the root.
    """
    english: dict[str, str] = {}
    useless: dict[str, str] = {}
    asked, responses = 0, run.config.distill.responses
    while True:
        left = [e for e in examples if e.id not in useless]
        chosen = chosen_for(run, left, codes)
        places = {e.id for e in chain.from_iterable(chosen.values())}
        used = [e for e in left if e.id in places]
        new = [e for e in used if e.id not in english]
        if not new:
            break
        with processes.main_first(together=bool(parts_of(model))):
            english |= english_answers(run, model, new, stage)
        asked += len(new)
        for example in new:
            if why := useless_because(run, example, english.get(example.id)):
                useless[example.id] = why
                english.pop(example.id, None)
    for why, count in Counter(useless.values()).items():
        run.reporter.say(f"{count} of {asked} examples are skipped: {why}")
    _refuse_useless(examples, useless, codes, responses)
    if responses == "teacher" and (free := sum(e.options is None and not e.own_response for e in used)):
        run.reporter.say(
            f"{free} of {len(used)} examples have no answer options: every language learns the English "
            "answer unchanged"
        )
    for line in left_out_lines(left_out(examples, codes, lambda e, code: lacking(e, code, responses))):
        run.reporter.say(line)
    pairs, bare = translation_examples(run.pairs(codes, "translation")), _sentences(run, chosen)
    tokenizer = unchanging(run.tokenizer)
    with run.reporter.waiting("Tokenising the rows"):
        rows = rows_with_responses(run, tokenizer, chosen, english, tree, pairs, bare, replay=replay)
    teacher = run.config.distill.teacher
    if isinstance(teacher, ModelTeacher) and teacher.level == "sequence":
        its, file = load_tokenizer(teacher.path), run.folder / "teacher_answers.jsonl"
        # Without the pairs, whose translations are kept, and English, which the frozen model answers.
        theirs = rows_with_responses(run, run.tokenizer, chosen, english, tree, replay=False, teacher=its)
        with processes.main_first():
            rows = joining.with_answers(
                rows, theirs, teacher, run.tokenizer, run.dtype, file, stage, run.reporter.bar
            )
    return rows + _bare_rows(run, tokenizer, bare, rows)


def _refuse_useless(
    examples: Sequence[ParallelExample], useless: Mapping[str, str], codes: Sequence[str], responses: str
) -> None:
    """Check that every language has an example, whose English answer is usable and whose response is there.

    Raises:
        DataError: A language has none.
    """
    for code in codes:
        there = [e for e in examples if code in e.turns]
        if not there:
            raise DataError(nothing_in(code, {}, responses))
        whys = [useless.get(e.id) or lacking(e, code, responses) for e in there]
        if all(whys):
            ((why, count),) = Counter(whys).most_common(1)
            raise DataError(
                f"no item in {code} can be used: {why} ({count} of {len(there)}); tune stage 1 for longer, "
                "or add responses and set distill.responses=reference"
            )


def _sentences(run: Run, chosen: Mapping[str, Sequence[ParallelExample]]) -> dict[str, list[Pair]]:
    """Return the sentence pairs of the hidden-state term: parallel text, and the inputs of instructions."""
    inputs = input_pairs(chosen) if run.config.distill.similarity_inputs else {}
    text = run.pairs(tuple(chosen), "alignment")
    both = {code: [*inputs.get(code, ()), *text.get(code, ())] for code in chosen}
    return {code: pairs for code, pairs in both.items() if pairs}


def _bare_rows(
    run: Run, tokenizer: PreTrainedTokenizerBase, pairs: Mapping[str, Sequence[Pair]], rows: Sequence[Row]
) -> list[Row]:
    first = 1 + max((row.meaning for row in rows), default=-1)
    limit = run.config.distill.max_prompt_length
    return sentence_rows(pairs, tokenizer, limit, first, tell=run.reporter.say_once)


def drawn(run: Run, rows: Sequence[Row], codes: Sequence[str]) -> Iterator[str]:
    """Describe the rows of each resource class: how many per language, which tasks, how many labels."""
    by_id, labels = {e.id: e for e in run.examples}, labels_of(run.examples)

    def labels_by_task(examples: Sequence[ParallelExample]) -> dict[str, set[str]]:
        found: dict[str, set[str]] = {}
        for example in examples:
            found.setdefault(example.task, set()).update({labels.get(example.id, "")} - {""})
        return found

    every, answered = labels_by_task(run.examples), [row for row in rows if not row.bare]
    for resource in ("high", "middle", "low"):
        those = [code for code in codes if languages()[code].resource == resource]
        ids = {
            code: [row.id.rpartition("/")[0] for row in answered if row.language == code] for code in those
        }
        if those:
            met = labels_by_task([by_id[id] for found in ids.values() for id in found if id in by_id])
            counts = sorted({len(found) for found in ids.values()})
            span = " to ".join(map(str, dict.fromkeys((counts[0], counts[-1]))))
            tasks = [
                f"{task} ({len(found)} of {len(every[task])} labels)" if every[task] else task
                for task, found in met.items()
            ]
            yield f"{resource} ({', '.join(those)}): {span} rows per language: {', '.join(tasks)}"
    if sentences := Counter(row.language for row in rows if row.bare):
        counted = ", ".join(f"{code} {count:,}" for code, count in sentences.items())
        yield f"For the hidden-state term only: {sentences.total():,} sentences: {counted}"


def _foreseen(example: ParallelExample) -> str:
    """Return a placeholder for the English answer: the data's response, else the first option's wording."""
    if given := (example.turns[SOURCE].response or "").strip():
        return given
    return next(iter((example.options or {}).get(SOURCE, {}).values()), "…")


def foreseen_rows(run: Run, tokenizer: PreTrainedTokenizerBase) -> list[Row]:
    """Build rows like `rows_for` but without a model: the data's responses replace its English answers.

    Raises:
        DataError: A language has no usable example.
    """
    english = {e.id: _foreseen(e) for e in run.examples}
    pairs = translation_examples(run.pairs(run.taught, "translation"))
    chosen = chosen_for(run, run.examples, run.taught, english)
    if empty := [code for code, those in chosen.items() if not those]:
        responses = run.config.distill.responses
        lack = partial(_lack, english=english, responses=responses)
        raise DataError(nothing_in(empty[0], left_out(run.examples, empty[:1], lack), responses))
    bare = _sentences(run, chosen)
    rows = rows_with_responses(run, tokenizer, chosen, english, run.tree, pairs, bare)
    return rows + _bare_rows(run, tokenizer, bare, rows)


def rows_with_responses(
    run: Run,
    tokenizer: PreTrainedTokenizerBase,
    chosen: Mapping[str, Sequence[ParallelExample]],
    english: Mapping[str, str],
    tree: Tree,
    pairs: Sequence[ParallelExample] = (),
    bare: Mapping[str, Sequence[Pair]] = MappingProxyType({}),
    *,
    replay: bool = True,
    teacher: PreTrainedTokenizerBase | None = None,
    shown: bool = False,
) -> list[Row]:
    """Build the rows that have a response.

    Args:
        chosen: Examples by language.
        shown: Build the teacher's prompts even if no teacher reads them.
    """
    settings = run.config.distill
    # English uses the root alone, which learns nothing without adapter rows.
    replay = replay and any(node.rank for node in tree.path(SOURCE))
    kept = english_kept(run) if settings.replay_fraction and replay else []
    limit, template = settings.max_prompt_length, len(encode_prompt(tokenizer, "a"))
    kept = [  # stage 1 may allow longer prompts
        e
        for e in kept
        if surely_within([text := e.turns[SOURCE].instruction], template, limit)
        or len(encode_prompt(tokenizer, text)) <= limit
    ]
    if kept:
        # One row per draw, so that none is repeated if there are enough.
        read = sum(map(len, [*chosen.values(), *bare.values()]))
        read += sum(code in e.turns for e in pairs for code in chosen)
        draws = read * settings.epochs * settings.replay_fraction / (1 - settings.replay_fraction)
        kept = random.Random(run.config.seed).sample(kept, min(len(kept), math.ceil(draws - 1e-9)))
        chosen = {**chosen, SOURCE: kept}
    return build_rows(
        chosen,
        tokenizer,
        tree,
        TeacherView(
            node_texts(run.config),
            twin_alone=settings.teacher_view == "english",
            sets=settings.teacher.type == "self",
            reads=settings.teacher_reads if settings.prompts_are_read or shown else (),
            require_texts=settings.require_texts,
            tokenizer=teacher or joining.tokenizer_of(settings.teacher),
        ),
        english={e.id: e.turns[SOURCE].response or "" for e in [*kept, *pairs]} | dict(english),
        responses=settings.responses,
        limit=limit,
        extra=pairs,
        tell=run.reporter.say_once,
    )


def english_kept(run: Run) -> list[ParallelExample]:
    """Return the examples that stage 1 was tuned on, with their English turn only, in its original wording:
    replay keeps to that wording, whatever `tune.vary_wording` made of it."""
    file = run.folder / "selection.jsonl"
    remedy = "restore it, or tune again in another run folder"
    dropped = {e["id"] for e in read_lines(file, remedy) if not e["kept"]} if file.exists() else set()
    return [
        ParallelExample(e.id, e.task, {SOURCE: e.turns[SOURCE]})
        for e in run.english
        if e.id not in dropped and (e.turns[SOURCE].response or "").strip()
    ]
