"""Checks before anything is written, and detection of test items in the training data."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from isogloss import bases, processes
from isogloss.adapters.fit import refuse_misfit
from isogloss.config import FileData, ModelTeacher, ServerTeacher, load_config
from isogloss.data.chat import encode_prompt, encode_response
from isogloss.data.counting import unchanging
from isogloss.data.examples import ParallelExample
from isogloss.data.parallel_text import Pair
from isogloss.errors import DataError
from isogloss.evaluate.items import SuiteData
from isogloss.evaluate.leaks import Leak, Text, find_leaks, leaking, texts_of, trained_texts
from isogloss.evaluate.suites import load_suite
from isogloss.files import content_hash, write_json
from isogloss.languages import SOURCE
from isogloss.model.attention import check_compiler
from isogloss.model.load import check_base, check_length, check_machine, load_tokenizer, positions, skeleton
from isogloss.pipeline.folder import Run
from isogloss.pipeline.suite_scores import in_suite
from isogloss.pipeline.training_rows import english_kept, foreseen_rows
from isogloss.progress import Progress
from isogloss.teacher.joining import check_server
from isogloss.teacher.rows import Row


def leaks(run: Run) -> list[Leak]:
    """Find test items of the configured suites in the training data of either stage, in any language."""
    return _compared(run, find_leaks)


def leave_out_leaks(run: Run) -> None:
    """Record the training examples that occur in the suites, which excludes them from every stage.

    The check runs once per run, so that both stages and resumed runs exclude the same examples, and again if
    the configured suites have changed, until the run is trained. Stage 1 may then have been tuned on some of
    them, which cannot be undone: these are also recorded, for `tell_of_leaks`.
    """
    with processes.main_first():
        suites, data, before = _suites_of(run), _data_of(run), run.leak_check
        same = before.get("data", data) == data
        if (same and before.get("suites") == suites) or run.trained.exists():
            return
        if not same:  # the IDs may be those of other examples now
            run.leaks.unlink(missing_ok=True)
            before = {}
        found = _compared(run, leaking)
        read = {e.id for e in (*english_kept(run), *run.tuned_on_leaks)} if run.tuned.exists() else set()
        tuned_on = [id for id in found if id in read]
        if processes.is_main():
            run.leaks.parent.mkdir(parents=True, exist_ok=True)
            new = {"left_out": found, "tuned_on": tuned_on}
            both = {name: [*dict.fromkeys([*before.get(name, []), *ids])] for name, ids in new.items()}
            write_json(run.leaks, {"suites": suites, "data": data, **both})
    if found:
        ids = "its id" if len(found) == 1 else "their ids"
        run.reporter.say(f"{_left_out(len(found))}: {run.leaks.name} lists {ids}")
    if tuned_on:
        run.reporter.say(
            f"Warning: stage 1 was already tuned on {len(tuned_on)} of {len(found)} training examples that "
            "occur in the evaluation suites; scores may be too high: tune again in another run folder"
        )


def tell_of_leaks(run: Run) -> None:
    """Warn if a trained run is evaluated on items that occur in its training data."""
    before = run.leak_check
    if not run.trained.exists() or not before:
        return
    if before.get("suites") == _suites_of(run) and not before.get("tuned_on"):
        return
    try:
        found = {(leak.suite, leak.id) for leak in leaks(run)}
    except DataError:  # trained elsewhere: its data are not available
        return
    if found:
        what = "1 test item occurs" if len(found) == 1 else f"{len(found)} test items occur"
        run.reporter.say(
            f"Warning: {what} in the run's training data, as it was trained with other suites or items "
            "configured; scores may be too high. `isogloss check-leaks` lists them"
        )


def _suites_of(run: Run) -> dict[str, Any]:
    """Return the settings that determine which texts are evaluated."""
    settings = run.config.evaluate
    names = {"suites", "also", "split", "items", "sentences", "xglue", "parallel"}
    found = settings.model_dump(mode="json", include=names)
    return found | {"file": _content(settings.parallel.path) if "parallel" in settings.suites else ""}


def _data_of(run: Run) -> str:
    """Return a hash of the user's own training files; public data sets do not change."""
    return " ".join(_content(source.path) for source in run.config.sources if isinstance(source, FileData))


def _content(path: Path | None) -> str:
    if path is None or not path.exists():  # on the Hub
        return ""
    return content_hash([path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()])


def without_leaks(
    run: Run, examples: Sequence[ParallelExample], codes: Sequence[str]
) -> list[ParallelExample]:
    """Remove examples for new languages that occur in the suites, now or at an earlier check."""
    own = (run.folder / "config.yaml").exists()
    if own and load_config(run.folder).data == run.config.data:  # other data may repeat its ids
        examples = run.clean(examples)
    suites = _suite_texts(run, tuple(dict.fromkeys((*run.measured, *codes))))
    pairs = _pairs(run, codes)
    found = set(leaking(suites, [*trained_texts(examples), *_texts_of(pairs)]))
    if found:
        run.reporter.say(_left_out(len(found)))
    # Pairs are read from the data again later, without those listed in this file.
    if processes.is_main() and (gone := found & {pair.id for pair in pairs}):
        there = run.leak_check
        write_json(run.leaks, there | {"left_out": sorted({*there.get("left_out", []), *gone})})
    processes.wait()
    return [example for example in examples if example.id not in found]


def _left_out(count: int) -> str:
    what = "example is left out, as it occurs" if count == 1 else "examples are left out, as they occur"
    return f"{count} training {what} in the evaluation suites"


def _suite_texts(run: Run, codes: Sequence[str]) -> list[Text]:
    settings, tests = run.config.evaluate, []
    with run.reporter.waiting("Reading the suites"):
        for name in settings.suites:
            tests += texts_of(load_suite(name, run.data_root, settings, codes))
    return tests


def _pairs(run: Run, codes: Sequence[str]) -> list[Pair]:
    """Return all sentence pairs used in some languages, without duplicates."""
    read = [run.pairs(codes, use) for use in ("translation", "alignment")]
    return list(dict.fromkeys(pair for those in read for some in those.values() for pair in some))


def _texts_of(pairs: Iterable[Pair]) -> Iterator[Text]:
    for pair in pairs:
        yield Text("", pair.id, SOURCE, pair.english)
        yield Text("", pair.id, pair.code, pair.text)


T = TypeVar("T")


def _compared(run: Run, compare: Callable[[Iterable[Text], Iterable[Text]], T]) -> T:
    """Compare the suites' texts with the training data, using `compare`."""
    tests = _suite_texts(run, run.measured)
    english = {example.id: example for example in (*run.english, *run.tuned_on_leaks)}
    examples = [*english.values(), *run.examples]
    pairs = _pairs(run, run.taught)

    def texts(progress: Progress) -> Iterator[Text]:
        for number, example in enumerate(examples, start=1):
            yield from trained_texts([example])
            progress(number, len(examples))
        yield from _texts_of(pairs)

    with run.reporter.bar("Leak check") as progress:
        return compare(tests, texts(progress))


def check_lengths(run: Run, rows: Sequence[Row], base: str) -> None:
    """Check that each row fits the positions of its readers; a server knows its own."""
    model, teacher = skeleton(base), run.config.distill.teacher
    reader, name = (model, base) if run.config.distill.hears_itself else (None, "")
    if isinstance(teacher, ModelTeacher) and teacher.level == "token":
        reader, name = skeleton(teacher.path), teacher.path
    for row in rows:
        answer = len(row.student.response)
        check_length(model, base, len(row.student.prompt) + answer, row.id)
        if reader is not None and row.language != SOURCE:  # in English, both read the same prompt
            check_length(reader, name, len(row.teacher_prompt) + answer, row.id)


def check(run: Run) -> None:
    """Check that a run can work, before anything is written.

    Raises:
        DataError: Data, a language or a suite is missing.
        ConfigError: The model or the teacher is missing or broken, the adapters do not fit the model, or the
            machine does not support a setting.
    """
    learned = run.trained.exists()
    check_machine(four_bit=run.config.four_bit and not learned, shard=run.config.shard and not learned)
    if not learned:
        processes.refuse_idle_gpus()
    bases.local(run.config.model, run.reporter.say)  # first, so that a conversion is announced
    with run.reporter.waiting("Checking the settings, the model and the data"):
        tokenizer = unchanging(run.base_tokenizer)
        check_base(run.config.model, tokenizer, weights=not run.tuned.exists())
        teacher = run.config.distill.teacher
        if isinstance(teacher, ModelTeacher) and not learned:
            check_base(teacher.path, load_tokenizer(teacher.path))
        if isinstance(teacher, ServerTeacher) and not learned:
            check_server()
        refuse_misfit(run.config)
        if run.config.compile and not learned:
            check_compiler()
        if not learned:
            _ = run.english  # raises if data are missing
            check_lengths(run, foreseen_rows(run, tokenizer), run.config.model)
        check_suites(run)


def check_suites(run: Run) -> None:
    """Check that the suites can be evaluated, and warn if correct answers would be truncated.

    Raises:
        DataError: A suite's data are missing, or have none of the languages.
    """
    settings = run.config.evaluate
    for name in settings.suites:
        if not in_suite(load_suite(name, run.data_root, settings, run.measured, 1, 1), run.measured):
            raise DataError(f"{name} has none of {', '.join(run.measured)}; remove it from evaluate.suites")
    if "parallel" in settings.suites:  # its texts are the user's own, of any length
        own = load_suite("parallel", run.data_root, settings, run.measured)
        _tell_cuts(run, own)
        _refuse_long(run, own)


def _refuse_long(run: Run, suite: SuiteData) -> None:
    """Check that every instruction fits the model's positions."""
    most = positions(str(run.tuned) if run.tuned.exists() else run.config.model)
    if most is None:
        return
    turns = ((item.id, code, turn.instruction) for item in suite.items for code, turn in item.turns.items())
    for id, code, text in turns:
        # A token has at most a few characters.
        if len(text) > most // 8 and (length := len(encode_prompt(run.tokenizer, text))) >= most:
            raise DataError(
                f"{suite.name}: {id} in {code} has {length} tokens, and the model {most} positions; leave it "
                "out"
            )


def _tell_cuts(run: Run, suite: SuiteData) -> None:
    """Warn if reference answers are longer than the limit of generated tokens."""
    limit = run.config.evaluate.max_new_tokens
    lengths = [
        len(encode_response(run.tokenizer, turn.response))
        for item in suite.items
        if item.options is None
        for turn in item.turns.values()
        if turn.response
    ]
    if over := [length for length in lengths if length > limit]:
        run.reporter.say(
            f"Warning: {len(over)} of {len(lengths)} reference answers of the suite {suite.name} have more "
            f"than {limit} tokens, up to {max(over)}; longer answers are truncated: raise "
            "evaluate.max_new_tokens"
        )
