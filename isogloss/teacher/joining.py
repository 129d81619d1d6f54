"""From the settings' teacher to what stage 2 reads of it: the one place that tells the kinds apart.

`self` needs nothing of this. English rows keep to the frozen model, whoever teaches the other languages.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from isogloss.config import Distill, ModelTeacher, SelfTeacher, ServerTeacher
from isogloss.cost import Stage, forward_flops
from isogloss.data.chat import Encoded
from isogloss.distill.rows import Row
from isogloss.distill.signal import Signal
from isogloss.errors import ConfigError
from isogloss.files import read_lines, write_lines
from isogloss.languages import SOURCE
from isogloss.model import load_model, load_tokenizer
from isogloss.teacher import other
from isogloss.teacher.scored import Asked, Scored

Bar = Callable[[str], AbstractContextManager[Callable[[int, int], None]]]
Teacher = SelfTeacher | ModelTeacher | ServerTeacher


# ---------------------------------------------------------------------------------------------------------
# To be joined: the two functions below are all that stands between `Scored` and the losses. Once a `Signal`
# may hold the k likeliest tokens, `signals_from` returns signals in which every row that is not English has
# its `Scored` (of the covered places) and English rows the k likeliest of the frozen model's own, and
# `check_joined` goes.


def signals_from(rows: Sequence[Row], signals: Sequence[Signal], scored: Sequence[Scored]) -> list[Signal]:
    """The rows' signals with another teacher's scores in them.

    Raises:
        ConfigError: Always, for now.
    """
    raise ConfigError(MISSING)


def check_joined(settings: Distill) -> None:
    """Refuse, before anything is written, what `signals_from` cannot do yet."""
    if settings.scored_elsewhere:
        raise ConfigError(MISSING)


MISSING = (
    "distill.teacher: losses on the likeliest tokens, which a scoring model or server needs, are not part of "
    "this version; take {type: self}, or {type: model, level: sequence}"
)
# ---------------------------------------------------------------------------------------------------------


def tokenizer_of(teacher: Teacher) -> PreTrainedTokenizerBase | None:
    """What renders the privileged prompts for who scores, where it is not the student's tokenizer."""
    scores = isinstance(teacher, ModelTeacher) and teacher.level == "token"
    return load_tokenizer(teacher.path) if scores else None


def scores_of(
    rows: Sequence[Row],
    settings: Distill,
    tokenizer: PreTrainedTokenizerBase,
    dtype: torch.dtype,
    store: Path,
    cost: Stage,
    bar: Bar,
) -> list[Scored] | None:
    """What another teacher says of every row that is not English, in their order; None: nobody is asked.

    Args:
        tokenizer: The student's.
        dtype: Of a local teacher's weights.
        store: File in which a server's scores are kept.
        cost: Gets tokens, calls and FLOPs.
    """
    teacher = settings.teacher
    asked = [row for row in rows if row.language != SOURCE]
    if not settings.scored_elsewhere:
        return None
    cost.teacher_calls += len(asked)
    if isinstance(teacher, ServerTeacher):
        try:
            from isogloss.teacher import server
            from isogloss.teacher.store import Store
        except ImportError as error:
            raise ConfigError(
                f"distill.teacher: a server needs {error.name}; pip install 'isogloss[teacher]'"
            ) from None
        with bar("Teacher answers") as progress:
            both = [Asked(row.teacher_prompt, row.student.response) for row in asked]
            return server.score(both, teacher, Store(store), progress)
    assert isinstance(teacher, ModelTeacher)
    model, its = load_model(teacher.path, dtype), load_tokenizer(teacher.path)
    with bar("Teacher reads") as progress:
        found = other.score(model, asked, other.Translation(tokenizer, its), teacher.top_k, progress=progress)
    read = sum(len(row.teacher_prompt) + len(row.student.response) for row in asked)
    cost.tokens_forwarded += read
    cost.flops += forward_flops(model, read, sum(len(row.student.response) for row in asked))
    return found


def with_answers(
    rows: Sequence[Row],
    theirs: Sequence[Row],
    teacher: ModelTeacher,
    tokenizer: PreTrainedTokenizerBase,
    dtype: torch.dtype,
    file: Path,
    cost: Stage,
    bar: Bar,
    together: int = 256,
) -> list[Row]:
    """The rows with another model's answers as responses, which are kept in a file.

    Args:
        theirs: The same rows, their privileged prompts in the teacher's own ids.
        tokenizer: The student's.
        together: Answers that are written at a time: what a killed run loses at most.
    """
    given = {entry["id"]: entry["response"] for entry in read_lines(file)} if file.exists() else {}
    missing = [row for row in theirs if row.language != SOURCE and row.id not in given]
    if missing:
        model, its = load_model(teacher.path, dtype), load_tokenizer(teacher.path)
        with bar("Teacher answers") as progress:
            for begin in range(0, len(missing), together):
                some = missing[begin : begin + together]
                for one in other.written(model, some, its, tokenizer, max_new_tokens=teacher.max_new_tokens):
                    given[one.id] = list(one.student.response)
                    cost.tokens_generated += len(one.student.response)
                    cost.tokens_forwarded += len(one.teacher_prompt) + len(one.student.response)
                write_lines(file, [{"id": id, "response": response} for id, response in given.items()])
                progress(begin + len(some), len(missing))
    return [
        replace(row, student=Encoded(row.student.prompt, tuple(given[row.id]))) if row.id in given else row
        for row in rows
    ]
