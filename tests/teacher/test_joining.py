"""The teacher of the settings, and what stage 2 gets from it."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from isogloss import processes
from isogloss.config import load_config
from isogloss.data.chat import Encoded
from isogloss.errors import ConfigError
from isogloss.losses.topk import TopK
from isogloss.model.cost import StageCost
from isogloss.pipeline.folder import ProgressReporter
from isogloss.teacher import joining
from isogloss.teacher.answers import Answers
from isogloss.teacher.cache import Cache, row_key, teacher_of
from isogloss.teacher.rows import Row
from isogloss.teacher.scored import TokenScores, whole
from isogloss.teacher.signals import Signal

ROWS = [
    Row(f"{n}/{code}", code, n, Encoded((5, 6), (40 + n, 1)), (7, 8, 9), (5,))
    for n, code in enumerate(["sw", "en", "ru", "es"])
]
THEIRS = [replace(row, teacher_prompt=(107, 108)) for row in ROWS]
BAR = ProgressReporter().bar


def distill(*overrides):
    return load_config(None, [f"distill.{one}" for one in overrides]).distill


def signals():
    """Return signals with the frozen model's two likeliest tokens for each response token."""
    said = TopK(torch.tensor([[3, 4], [5, 6]], dtype=torch.int32), torch.full((2, 2), -1.0))
    return [Signal(said, torch.full((4,), float(n))) for n in range(4)]


def test_another_teachers_scores_replace_all_but_english():
    """In the order of the rows; twins stay, and positions that are not covered are marked."""
    first, second = (torch.tensor([[7, 8], [9, 2]]), torch.tensor([[7, 8]]))
    covered = torch.tensor([False, True])
    scored = [
        whole(first, torch.tensor([[-0.5, -2.0], [-0.1, -5.0]])),
        TokenScores(second, torch.tensor([[-0.7, -0.8]]), covered),
        whole(first, torch.tensor([[-0.5, -2.0], [-0.1, -5.0]])),
    ]
    found = joining.signals_from(ROWS, signals(), scored, 10)
    assert [one.teacher.ids.tolist() for one in found] == [
        [[7, 8], [9, 2]], [[3, 4], [5, 6]], [[7, 8]], [[7, 8], [9, 2]]
    ]  # fmt: skip
    assert [one.covered if one.covered is None else one.covered.tolist() for one in found] == [
        None, None, [False, True], None
    ]  # fmt: skip
    assert [one.twin[0].item() for one in found] == [0.0, 1.0, 2.0, 3.0]


def test_a_token_outside_the_students_vocabulary_is_refused():
    """The one-line error comes before a loss would look the token up."""
    scored = [whole(torch.tensor([[7, 8], [9, 2]]), torch.full((2, 2), -1.0))] * 3
    with pytest.raises(ConfigError, match="0/sw: a top-k id is out of range; the vocabulary has 9 tokens"):
        joining.signals_from(ROWS, signals(), scored, 9)


def test_scores_of_a_local_teacher_are_cached(base, tokenizer, tmp_path, monkeypatch):
    """The second call gives the same scores without the teacher; another k is cached separately."""
    settings = distill("kl_weight=1.0", f"teacher={{type: model, path: '{base}', top_k: 4}}")

    def ask(settings):
        cost = StageCost("distill")
        found = joining.scores_of(
            ROWS, settings, tokenizer, torch.float32, Path("none"), cost, BAR,
            lambda model, its: Cache(tmp_path, teacher_of(model, its, "weights")),
        )  # fmt: skip
        return found, (cost.teacher_calls, cost.cached_hits)

    first, spent = ask(settings)
    assert spent == (3, 0)
    again, spent = ask(settings)
    assert spent == (0, 3)
    for one, other in zip(first, again, strict=True):
        assert torch.equal(one.ids, other.ids) and torch.equal(one.logprobs, other.logprobs)
    assert ask(distill("kl_weight=1.0", f"teacher={{type: model, path: '{base}', top_k: 5}}"))[1] == (3, 0)


def test_the_first_of_several_processes_scores_every_row(base, tokenizer, tmp_path, monkeypatch):
    """The others wait for it and find all rows in the cache."""
    settings = distill("kl_weight=1.0", f"teacher={{type: model, path: '{base}', top_k: 4}}")

    def ask():
        cost = StageCost("distill")
        found = joining.scores_of(
            ROWS, settings, tokenizer, torch.float32, Path("none"), cost, BAR,
            lambda model, its: Cache(tmp_path, teacher_of(model, its, "weights")),
        )  # fmt: skip
        return [one.ids.shape for one in found], (cost.teacher_calls, cost.cached_hits)

    monkeypatch.setattr(processes, "count", lambda: 2)
    monkeypatch.setattr(processes, "index", lambda: 0)
    assert ask() == ([(2, 4)] * 3, (3, 0))
    monkeypatch.setattr(processes, "index", lambda: 1)
    assert ask() == ([(2, 4)] * 3, (0, 3))


def test_a_model_that_teaches_itself_needs_no_other_teacher(tokenizer):
    """There are neither scores nor another tokenizer."""
    settings, cost = distill("kl_weight=1.0"), StageCost("distill")
    assert joining.tokenizer_of(settings.teacher) is None
    found = joining.scores_of(ROWS, settings, tokenizer, torch.float32, Path("none"), cost, BAR)
    assert found is None and cost.teacher_calls == 0


def test_a_server_without_its_packages_names_the_extra(tokenizer, monkeypatch):
    """The error comes before any request."""
    import isogloss.teacher

    monkeypatch.setitem(sys.modules, "tenacity", None)  # as if it were not installed
    monkeypatch.delitem(sys.modules, "isogloss.teacher.server", raising=False)
    monkeypatch.delitem(sys.modules, "isogloss.endpoint", raising=False)
    monkeypatch.delattr(isogloss.teacher, "server", raising=False)
    settings = distill("kl_weight=1.0", "teacher={type: server, url: 'http://127.0.0.1:9/v1', model: m}")
    with pytest.raises(ConfigError) as caught:
        joining.scores_of(ROWS, settings, tokenizer, torch.float32, Path("none"), StageCost("distill"), BAR)
    assert str(caught.value) == ("distill.teacher: a server needs tenacity; pip install 'isogloss[teacher]'")


def test_a_local_teacher_scores_all_rows_but_english(base, tokenizer):
    """Three of four rows, likeliest tokens first; the ledger counts their tokens."""
    settings, cost = (
        distill("kl_weight=1.0", f"teacher={{type: model, path: '{base}', top_k: 4}}"),
        StageCost("distill"),
    )
    found = joining.scores_of(ROWS, settings, tokenizer, torch.float32, Path("none"), cost, BAR)
    assert [one.ids.shape for one in found] == [(2, 4)] * 3
    assert all((one.logprobs.diff(dim=1) <= 0).all() for one in found)
    assert (cost.teacher_calls, cost.cached_hits, cost.tokens_forwarded) == (3, 0, 3 * (3 + 2))


def test_answers_are_stored_and_never_requested_again(base, tokenizer, tmp_path, monkeypatch):
    """The teacher gets privileged prompts in its own IDs; the rows keep prompts in the student's."""
    asked = []

    def written(model, rows, its, student, *, max_new_tokens):
        asked.append([(row.id, row.teacher_prompt, max_new_tokens) for row in rows])
        return [replace(row, student=Encoded(row.student.prompt, (90 + row.meaning, 1))) for row in rows]

    monkeypatch.setattr(joining.local, "written", written)
    monkeypatch.setattr(joining, "TOGETHER", 1)
    teacher = distill(f"teacher={{type: model, path: '{base}', level: sequence, max_new_tokens: 9}}").teacher
    file, cost = tmp_path / "answers.jsonl", StageCost("distill")

    def ask(rows, theirs):
        return joining.with_answers(rows, theirs, teacher, tokenizer, torch.float32, file, cost, BAR)

    first = ask(ROWS[:3], THEIRS[:3])
    assert asked == [[("0/sw", (107, 108), 9)], [("2/ru", (107, 108), 9)]]
    assert [row.student.response for row in first] == [(90, 1), (41, 1), (92, 1)]
    assert [row.teacher_prompt for row in first] == [(7, 8, 9)] * 3
    second = ask(ROWS, THEIRS)
    assert asked[2:] == [[("3/es", (107, 108), 9)]]
    assert [row.student.response for row in second] == [(90, 1), (41, 1), (92, 1), (93, 1)]


def test_a_response_of_the_data_is_not_stored_as_an_answer(base, tokenizer, tmp_path, monkeypatch):
    """If an answer is truncated, the row uses the data's response, also after that has changed."""
    monkeypatch.setattr(joining.local, "written", lambda model, rows, its, student, *, max_new_tokens: rows)
    teacher = distill(f"teacher={{type: model, path: '{base}', level: sequence, max_new_tokens: 9}}").teacher
    given = teacher, tokenizer, torch.float32, tmp_path / "answers.jsonl", StageCost("distill"), BAR
    (first,) = joining.with_answers(ROWS[:1], THEIRS[:1], *given)
    changed = replace(ROWS[0], student=replace(ROWS[0].student, response=(77, 1)))
    (second,) = joining.with_answers([changed], THEIRS[:1], *given)
    assert (first, second) == (ROWS[0], changed)


def test_another_models_answer_keeps_the_instruction_mask(tmp_path):
    """The hidden-state term pools those tokens, also in a row without an answer."""
    rows = [replace(row, student=replace(row.student, instruction_mask=(False, True))) for row in ROWS[:2]]
    kept = Answers(tmp_path / "answers.jsonl")
    kept.keep({("0/sw", row_key((107, 108)).hex()): [90, 1]})
    found = joining.answered_rows(rows, THEIRS[:2], kept)
    assert [row.student for row in found] == [
        Encoded((5, 6), (90, 1), (False, True)), Encoded((5, 6), (41, 1), (False, True))
    ]  # fmt: skip


def test_rows_that_another_model_is_not_asked_for_keep_their_response(tmp_path):
    """Translations of parallel text are not among `theirs`."""
    pair = Row("tatoeba-sw-1-to_english/sw", "sw", 9, Encoded((5, 6), (49, 1)), (7, 8, 9), (5,))
    kept = Answers(tmp_path / "answers.jsonl")
    kept.keep({("0/sw", row_key((107, 108)).hex()): [90, 1]})
    found = joining.answered_rows([ROWS[0], pair], THEIRS[:1], kept)
    assert [row.student.response for row in found] == [(90, 1), (49, 1)]
