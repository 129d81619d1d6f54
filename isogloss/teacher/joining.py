"""Scores and answers of an external teacher for stage 2: another local model, or a server.

The teacher `self` needs none of this. English rows always use the frozen model as their teacher, whichever
teacher the other languages have.
"""

from collections.abc import Callable, Sequence
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
from isogloss.progress import Bar, Progress
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
    """Replace the teacher signal of every non-English row with the external teacher's scores.

    Args:
        signals: Top-k signals of the frozen model for these rows.
        scored: Scores of the non-English rows that have a response, in order.
        vocab: Vocabulary size of the student's head.

    Raises:
        ConfigError: The teacher's token IDs are outside the student's vocabulary, or its log-probabilities
            are not a distribution.
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
                    f"distill.teacher: {row.id}: {error}; use a teacher that scores the student's tokens"
                ) from None
            signal = Signal(said, signal.twin, None if bool(one.covered.all()) else one.covered)
        found.append(signal)
    return found


def tokenizer_of(teacher: Teacher) -> PreTrainedTokenizerBase | None:
    """Return the tokenizer for a scoring teacher's privileged prompts; None for the student's tokenizer."""
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
    """Score every non-English row that has a response with the external teacher, in order.

    Args:
        tokenizer: The student's tokenizer.
        dtype: Dtype of a local teacher's weights.
        store: File that stores a server's scores.
        cache_of: Returns the cache for a local teacher's scores, given its model and tokenizer.

    Returns:
        The scores, or None if no external teacher scores tokens.
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
        with bar("Teacher scores") as progress:
            both = [ScoreRequest(row.teacher_prompt, row.student.response) for row in asked]
            try:
                return server.score(both, teacher, kept, progress)
            finally:
                cost.teacher_calls += len(kept) - had
                cost.cached_hits += max(0, len(asked) - (len(kept) - had))
    assert isinstance(teacher, ModelTeacher)
    model, its = load_model(teacher.path, dtype), load_tokenizer(teacher.path)
    with bar("Teacher scores") as progress:
        cache = cache_of and cache_of(model, its)
        return _scored_by(model, asked, local.TokenMap(tokenizer, its), teacher.top_k, cache, cost, progress)


def _scored_by(
    model: nn.Module,
    rows: Sequence[Row],
    translation: local.TokenMap,
    k: int,
    cache: Cache | None,
    cost: StageCost,
    progress: Progress,
) -> list[TokenScores]:
    """Return a local teacher's scores, from the cache where possible.

    Fresh scores are packed and unpacked too, so that they are identical to cached ones.
    """
    part = cache and cache.part(
        signal="scored", logits="float32", k=k, student=tokenizer_hash(translation.student)
    )
    keys = [row_key(row.teacher_prompt, row.student.response) for row in rows]
    kept = CachedTensors(part, keys, cost, alone=True)  # called inside `processes.main_first`
    absent, vocab = sorted(kept.absent), len(translation.student_bytes)
    cost.cached_hits += len(rows) - len(absent)
    for begin in range(0, len(absent), TOGETHER):
        chosen = absent[begin : begin + TOGETHER]
        some = [rows[n] for n in chosen]
        with spending(kept.spent, model):
            fresh = local.score(model, some, translation, k)
        kept.spent.teacher_calls += len(some)
        kept.spent.teacher_tokens += sum(len(row.teacher_prompt) + len(row.student.response) for row in some)
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
    """Replace the responses with answers that a local teacher generates; answers are stored in a file.

    Args:
        theirs: The rows whose response is replaced, with privileged prompts in the teacher's own token IDs.
        tokenizer: The student's tokenizer.
        dtype: Dtype of the teacher's weights.
    """
    kept = answers_of(teacher, tokenizer, dtype, file)
    missing = [row for row in theirs if row.language != SOURCE and kept.of(*answer_key(row)) is None]
    if missing:
        model, its = load_model(teacher.path, dtype), load_tokenizer(teacher.path)
        with bar("Teacher answers") as progress:
            for begin in range(0, len(missing), TOGETHER):
                some, longest = missing[begin : begin + TOGETHER], teacher.max_new_tokens
                with spending(cost, model):
                    answered = local.written(model, some, its, tokenizer, max_new_tokens=longest)
                pairs = zip(some, answered, strict=True)
                # An unchanged row still has the data's response: store an empty answer for it.
                kept.keep({answer_key(a): [] if b is a else list(b.student.response) for a, b in pairs})
                progress(begin + len(some), len(missing))
    return answered_rows(rows, theirs, kept)


def answers_of(
    teacher: ModelTeacher, tokenizer: PreTrainedTokenizerBase, dtype: torch.dtype, file: Path
) -> Answers:
    """Open the file of answers, restricted to this teacher and settings; answers are the student's token IDs.

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
    """Replace the responses with the stored answers; rows without an answer stay unchanged."""
    given = {row.id: kept.of(*answer_key(row)) for row in theirs}
    return [row.answering(tuple(said)) if (said := given.get(row.id)) else row for row in rows]


def answer_key(row: Row) -> tuple[str, str]:
    """Return the key under which a teacher's answer to a row is stored."""
    return row.id, row_key(row.teacher_prompt).hex()


def check_server() -> None:
    """Check that the dependencies of a served teacher are installed.

    Raises:
        ConfigError: They are not.
    """
    try:
        from isogloss.teacher import server  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"distill.teacher: a server needs {error.name}; pip install 'isogloss[teacher]'"
        ) from None
