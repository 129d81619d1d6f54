"""The settings' teacher and what stage 2 gets of it."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from isogloss.config import load_config
from isogloss.cost import Stage
from isogloss.data.chat import Encoded
from isogloss.distill.rows import Row
from isogloss.errors import ConfigError
from isogloss.pipeline import Watcher
from isogloss.teacher import joining

ROWS = [
    Row(f"{n}/{code}", code, n, Encoded((5, 6), (40 + n, 1)), (7, 8, 9), (5,))
    for n, code in enumerate(["sw", "en", "ru", "es"])
]
THEIRS = [replace(row, teacher_prompt=(107, 108)) for row in ROWS]
BAR = Watcher().bar


def distill(*overrides):
    return load_config(None, [f"distill.{one}" for one in overrides]).distill


@pytest.mark.parametrize(
    "teacher", ["{type: model, path: x}", "{type: server, url: 'http://127.0.0.1:1/v1', model: m}"]
)
def test_scores_of_tokens_are_refused_before_anything_is_written(teacher):
    """No loss reads them yet; what works instead is named."""
    with pytest.raises(ConfigError, match=r"take \{type: self\}, or \{type: model, level: sequence\}"):
        joining.check_joined(distill("kl=1.0", f"teacher={teacher}"))
    joining.check_joined(distill("teacher={type: model, path: x, level: sequence}"))
    joining.check_joined(distill())


def test_nobody_is_asked_where_the_model_teaches_itself(tokenizer):
    """Neither scores nor another rendering."""
    settings, cost = distill("kl=1.0"), Stage("distill")
    assert joining.tokenizer_of(settings.teacher) is None
    found = joining.scores_of(ROWS, settings, tokenizer, torch.float32, Path("none"), cost, BAR)
    assert found is None and cost.teacher_calls == 0


def test_a_local_teacher_scores_what_is_not_english(base, tokenizer):
    """Three rows of four, likeliest first, and the ledger has their tokens."""
    settings, cost = distill("kl=1.0", f"teacher={{type: model, path: '{base}', top_k: 4}}"), Stage("distill")
    found = joining.scores_of(ROWS, settings, tokenizer, torch.float32, Path("none"), cost, BAR)
    assert [one.ids.shape for one in found] == [(2, 4)] * 3
    assert all((one.logprobs.diff(dim=1) <= 0).all() for one in found)
    assert (cost.teacher_calls, cost.tokens_forwarded) == (3, 3 * (3 + 2))


def test_answers_are_kept_and_never_asked_again(base, tokenizer, tmp_path, monkeypatch):
    """Privileged prompts in the teacher's ids for it, the student's own for whoever comes after."""
    asked = []

    def written(model, rows, its, student, *, max_new_tokens):
        asked.append([(row.id, row.teacher_prompt, max_new_tokens) for row in rows])
        return [replace(row, student=Encoded(row.student.prompt, (90 + row.meaning, 1))) for row in rows]

    monkeypatch.setattr(joining.other, "written", written)
    teacher = distill(f"teacher={{type: model, path: '{base}', level: sequence, max_new_tokens: 9}}").teacher
    file, cost = tmp_path / "answers.jsonl", Stage("distill")

    def ask(rows, theirs):
        return joining.with_answers(
            rows, theirs, teacher, tokenizer, torch.float32, file, cost, BAR, together=1
        )

    first = ask(ROWS[:3], THEIRS[:3])
    assert asked == [[("0/sw", (107, 108), 9)], [("2/ru", (107, 108), 9)]]
    assert [row.student.response for row in first] == [(90, 1), (41, 1), (92, 1)]
    assert [row.teacher_prompt for row in first] == [(7, 8, 9)] * 3
    assert (cost.tokens_generated, cost.tokens_forwarded) == (4, 8)
    second = ask(ROWS, THEIRS)
    assert asked[2:] == [[("3/es", (107, 108), 9)]]
    assert [row.student.response for row in second] == [(90, 1), (41, 1), (92, 1), (93, 1)]
