"""From the settings' teacher to what stage 2 reads of it: the one place that tells the kinds apart.

`self` needs nothing of this. English rows keep to the frozen model, whoever teaches the other languages.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from isogloss.config import Distill, ModelTeacher, SelfTeacher, ServerTeacher
from isogloss.errors import ConfigError
from isogloss.languages import SOURCE
from isogloss.losses.topk import TopK, pack, unpack
from isogloss.model.cost import StageCost, spending
from isogloss.model.load import load_model, load_tokenizer
from isogloss.progress import Bar
from isogloss.teacher import local
from isogloss.teacher.answers import TOGETHER, Answers, identity
from isogloss.teacher.cache import Cache, row_key, tokenizer_hash
from isogloss.teacher.reading import CachedTensors
from isogloss.teacher.rows import Row
from isogloss.teacher.scored import ScoreRequest, TokenScores
from isogloss.teacher.signals import Signal

Teacher = SelfTeacher | ModelTeacher | ServerTeacher


def signals_from(
    rows: Sequence[Row], signals: Sequence[Signal], scored: Sequence[TokenScores], vocab: int
) -> list[Signal]:
    """The rows' signals, those of every row that is not English with another teacher's scores in them.

    Args:
        signals: The frozen model's, as its likeliest tokens.
        scored: Of the rows that are not English, in their order.
        vocab: Tokens that the student's head knows.

    Raises:
        ConfigError: The teacher names tokens that the student has not, or no probabilities.
    """
    left, found = iter(scored), []
    for row, signal in zip(rows, signals, strict=True):
        if row.language != SOURCE and not row.bare:
            one = next(left)
            said = TopK(one.ids.int(), one.logprobs)
            try:
                said.check(vocab)
            except ValueError as error:
                raise ConfigError(
                    f"distill.teacher: of {row.id}, {error}; take a teacher that scores the student's tokens"
                ) from None
            signal = Signal(said, signal.twin, None if bool(one.covered.all()) else one.covered)
        found.append(signal)
    return found


def tokenizer_of(teacher: Teacher) -> PreTrainedTokenizerBase | None:
    """What renders the privileged prompts for who scores, where it is not the student's tokenizer."""
    if isinstance(teacher, ModelTeacher) and teacher.level == "token":
        return load_tokenizer(teacher.path)
    return None


def scores_of(
    rows: Sequence[Row],
    settings: Distill,
    tokenizer: PreTrainedTokenizerBase,
    dtype: torch.dtype,
    store: Path,
    cost: StageCost,
    bar: Bar,
    cache_of: Callable[[nn.Module, PreTrainedTokenizerBase], Cache] | None = None,
) -> list[TokenScores] | None:
    """What another teacher says of every row that is not English, in their order; None: nobody is asked.

    Args:
        tokenizer: The student's.
        dtype: Of a local teacher's weights.
        store: File in which a server's scores are kept.
        cost: Gets tokens, calls, hits and FLOPs.
        cache_of: Where a local teacher's scores are looked for, and kept.
    """
    if not settings.scored_elsewhere:
        return None
    teacher = settings.teacher
    asked = [row for row in rows if row.language != SOURCE and not row.bare]
    if isinstance(teacher, ServerTeacher):
        check_server()
        from isogloss.teacher import server
        from isogloss.teacher.store import Store

        kept = Store(store)
        had = len(kept)
        with bar("Teacher answers") as progress:
            both = [ScoreRequest(row.teacher_prompt, row.student.response) for row in asked]
            try:
                return server.score(both, teacher, kept, progress)
            finally:
                cost.teacher_calls += len(kept) - had
                cost.cached_hits += max(0, len(asked) - (len(kept) - had))
    assert isinstance(teacher, ModelTeacher)
    model, its = load_model(teacher.path, dtype), load_tokenizer(teacher.path)
    with bar("Teacher reads") as progress:
        cache = None if cache_of is None else cache_of(model, its)
        return _scored_by(model, asked, local.TokenMap(tokenizer, its), teacher.top_k, cache, cost, progress)


def _scored_by(
    model: nn.Module,
    rows: Sequence[Row],
    translation: local.TokenMap,
    k: int,
    cache: Cache | None,
    cost: StageCost,
    progress: Callable[[int, int], None],
    together: int = 256,
) -> list[TokenScores]:
    """A local teacher's scores, from the cache where they are there; packed, so that both are the same.

    Args:
        together: Rows that are scored at a time.
    """
    words = tokenizer_hash(translation.student)
    part = None if cache is None else cache.part(signal="scored", k=k, student=words)
    keys = [row_key(row.teacher_prompt, row.student.response) for row in rows]
    kept = CachedTensors(part, keys, cost, alone=True)  # of several processes one comes here first
    absent, vocab = sorted(kept.absent), len(translation.student_bytes)
    cost.cached_hits += len(rows) - len(absent)
    for begin in range(0, len(absent), together):
        chosen = absent[begin : begin + together]
        some = [rows[n] for n in chosen]
        with spending(kept.spent, model):
            fresh = local.score(model, some, translation, k)
        read = sum(len(row.teacher_prompt) + len(row.student.response) for row in some)
        kept.spent.teacher_calls += len(some)
        kept.spent.teacher_tokens += read
        kept.keep(chosen, [pack(TopK(one.ids, one.logprobs), vocab) for one in fresh])
        progress(len(rows) - len(absent) + begin + len(chosen), len(rows))
    kept.flush()
    tops = (unpack(one, vocab) for one in kept.tensors())
    return [
        TokenScores(top.ids, top.logprobs, translation.covered(row.student.response))
        for row, top in zip(rows, tops, strict=True)
    ]


def with_answers(
    rows: Sequence[Row],
    theirs: Sequence[Row],
    teacher: ModelTeacher,
    tokenizer: PreTrainedTokenizerBase,
    dtype: torch.dtype,
    file: Path,
    cost: StageCost,
    bar: Bar,
) -> list[Row]:
    """The rows with another model's answers as responses, which are kept in a file.

    Args:
        theirs: The same rows, their privileged prompts in the teacher's own ids.
        tokenizer: The student's.
    """
    kept = answers_of(teacher, tokenizer, dtype, file)
    missing = [row for row in theirs if row.language != SOURCE and kept.of(*answer_key(row)) is None]
    if missing:
        model, its = load_model(teacher.path, dtype), load_tokenizer(teacher.path)
        with bar("Teacher answers") as progress:
            for begin in range(0, len(missing), TOGETHER):
                some = missing[begin : begin + TOGETHER]
                longest = teacher.max_new_tokens
                with spending(cost, model):
                    answered = local.written(model, some, its, tokenizer, max_new_tokens=longest)
                # A row that stays has the data's response, which is no answer of the teacher's.
                kept.keep(
                    {
                        answer_key(one): [] if one is before else list(one.student.response)
                        for before, one in zip(some, answered, strict=True)
                    }
                )
                progress(begin + len(some), len(missing))
    return answered_rows(rows, theirs, kept)


def answers_of(
    teacher: ModelTeacher, tokenizer: PreTrainedTokenizerBase, dtype: torch.dtype, file: Path
) -> Answers:
    """The answers in a file that this teacher gave with these settings, in the student's tokens.

    Raises:
        ConfigError: There is no such teacher.
    """
    by = {
        "teacher": identity(teacher.path),
        "dtype": str(dtype),
        "limit": teacher.max_new_tokens,
        "student": tokenizer_hash(tokenizer),
    }
    return Answers(file, by)


def answered_rows(rows: Sequence[Row], theirs: Sequence[Row], kept: Answers) -> list[Row]:
    """The rows with the answers that are kept as responses; those without one stay."""
    given = [kept.of(*answer_key(row)) for row in theirs]
    return [
        replace(row, student=replace(row.student, response=tuple(response))) if response else row
        for row, response in zip(rows, given, strict=True)
    ]


def answer_key(row: Row) -> tuple[str, str]:
    """What another model's answer to a row is kept by."""
    return row.id, row_key(row.teacher_prompt).hex()


def check_server() -> None:
    """Refuse a served teacher where what asks it is not installed.

    Raises:
        ConfigError: It is not.
    """
    try:
        from isogloss.teacher import server  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"distill.teacher: a server needs {error.name}; pip install 'isogloss[teacher]'"
        ) from None
