"""Answers that a model writes before training: complete or empty, each stored by its prompt."""

import json
import shutil
import unicodedata

import pytest
import torch

from isogloss.adapters import generate
from isogloss.adapters.generate import stops
from isogloss.config import load_config
from isogloss.errors import ConfigError, DataError, RunError
from isogloss.model.load import load_tokenizer
from isogloss.pipeline import folder, training_rows
from isogloss.teacher import answers
from isogloss.teacher.answers import Answers, ended

SMALL = (
    "languages.targets=[sw]",
    "distill.adapter.ranks={root: 2, family: 1, language: 2}",
    "distill.epochs=1",
    "distill.batch_size=2",
    "distill.learning_rate=1e-4",
    "distill.max_prompt_length=5000",
    "dtype=float32",
    "distill.replay_fraction=0",
    "evaluate.suites=[demo]",
    "distill.responses=teacher",
)
ITEMS = [
    {"id": "1", "en": {"instruction": "Say yes."}, "sw": {"instruction": "Sema ndiyo."}},
    {"id": "2", "en": {"instruction": "Say no."}, "sw": {"instruction": "Sema hapana."}},
    {"id": "3", "en": {"instruction": "Say it.", "response": "it"}, "sw": {"instruction": "Sema hicho."}},
]


class Heard(folder.ProgressReporter):
    def __init__(self):
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


def test_a_truncated_answer_is_empty(tiny, tokenizer, monkeypatch):
    """It would teach a wrong end; the order of the prompts does not matter."""
    (end, *_) = stops(tiny(), tokenizer)
    yes = tokenizer("yes", add_special_tokens=False)["input_ids"]
    made = {5: [*yes, end, 0], 2: [*yes, *yes][:4], 3: [end, 0, 0, 0]}

    def complete(model, tokenizer, prompts, **how):
        return torch.tensor([made[len(prompt)] for prompt in prompts])

    monkeypatch.setattr(generate, "complete", complete)
    found = dict(ended(tiny(), tokenizer, [[9] * 5, [9] * 2, [9] * 3], max_new_tokens=4, batch=2))
    assert found == {0: "yes", 1: "", 2: ""}


def test_a_written_answer_is_normalised_like_all_texts(tiny, tokenizer, monkeypatch):
    """Its training tokens must equal those of the same word in the data."""
    (end, *_) = stops(tiny(), tokenizer)
    apart = tokenizer(unicodedata.normalize("NFD", "Việt"), add_special_tokens=False)["input_ids"]
    monkeypatch.setattr(generate, "complete", lambda *given, **how: torch.tensor([[*apart, end]]))
    assert dict(ended(tiny(), tokenizer, [[9]], max_new_tokens=20)) == {0: "Việt"}


def test_answers_are_stored_by_prompt(tmp_path):
    """An example with the same ID from another file has none yet; an empty answer counts as one."""
    kept = Answers(tmp_path / "answers.jsonl")
    kept.keep({("1", "Say yes."): "yes", ("2", "Say no."): ""})
    again = Answers(tmp_path / "answers.jsonl")
    assert (again.of("1", "Say yes."), again.of("2", "Say no."), again.of("1", "Say no.")) == (
        "yes",
        "",
        None,
    )
    again.keep({("1", "Say no."): "no"})
    lines = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert [(line["id"], line["asked"], line["answer"]) for line in lines] == [
        ("1", "Say yes.", "yes"),
        ("2", "Say no.", ""),
        ("1", "Say no.", "no"),
    ]


def test_answers_are_stored_by_model_and_limit(tmp_path):
    """Another teacher, limit or version is asked again; the same one is not asked twice."""
    file, asked = tmp_path / "answers.jsonl", ("1", "Say yes.")
    file.write_text('{"id": "1", "asked": "Say yes.", "answer": ""}\n')  # written by the first version
    assert Answers(file).of(*asked) is None
    for by, answer in (({"model": "a", "limit": 9}, ""), ({"model": "a", "limit": 99}, "yes"), ({}, "no")):
        kept = Answers(file, by)
        assert kept.of(*asked) is None
        kept.keep({asked: answer})
    assert Answers(file, {"limit": 9, "model": "a"}).of(*asked) == ""
    assert Answers(file, {"model": "a", "limit": 99}).of(*asked) == "yes"
    assert len(file.read_text().splitlines()) == 4


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"id": "1"', ":1 is not a JSON object; "),
        ('{"id": "1"}', " has lines without id, asked or answer; "),
    ],
)
def test_damaged_answer_files_are_refused(line, says, tmp_path):
    """The message says what to do."""
    (tmp_path / "answers.jsonl").write_text(line + "\n")
    with pytest.raises(RunError) as caught:
        Answers(tmp_path / "answers.jsonl")
    assert str(caught.value) == (
        f"{tmp_path}/answers.jsonl{says}remove the file, and its answers are asked for again"
    )


def test_a_teacher_is_identified_by_its_files(base, tmp_path):
    """A copy is the same teacher, another settings file makes another; a missing folder is refused."""
    copy = tmp_path / "copy"
    shutil.copytree(base, copy)
    assert answers.identity(str(copy)) == answers.identity(str(base))
    (copy / "generation_config.json").write_text("{}")
    assert answers.identity(str(copy)) != answers.identity(str(base))
    with pytest.raises(ConfigError):
        answers.identity(str(tmp_path / "gone"))


@pytest.fixture
def run(base, tmp_path):
    """Return a run with stage 1 done; two of its three examples have no English response."""
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(item) + "\n" for item in ITEMS))
    data = f"data={{type: parallel, path: {tmp_path / 'data.jsonl'}}}"
    settings = (*SMALL, data, f"run={tmp_path / 'run'}", f"model={base}", "distill.max_new_tokens=6")
    made = folder.open_run(load_config(None, settings), Heard())
    shutil.copytree(base, made.tuned)
    return made


def test_an_example_with_a_truncated_answer_is_skipped_and_reported(run, monkeypatch):
    """The first example is answered, the second is not, and the third falls back to its own response."""
    asked = []

    def answer(model, tokenizer, prompts, *, max_new_tokens):
        asked.append((len(prompts), max_new_tokens))
        yield from [(0, "yes"), (1, ""), (2, "")]

    monkeypatch.setattr("isogloss.pipeline.english.ended", answer)
    stage = run.ledger.begin("distill")
    rows = training_rows.rows_for(run, run.reference_model(), run.examples, run.tree, run.taught, stage)
    texts = {row.id: run.tokenizer.decode(row.student.response, skip_special_tokens=True) for row in rows}
    assert texts == {"1/sw": "yes", "3/sw": "it"}
    assert run.reporter.lines == [
        "1 of 3 examples are skipped: the model's English answer is empty or over 6 tokens "
        "(distill.max_new_tokens)",
        "2 of 2 examples have no answer options: every language learns the English answer unchanged",
    ]
    training_rows.rows_for(run, run.reference_model(), run.examples, run.tree, run.taught, stage)
    assert asked == [(3, 6)]  # only once
    more = load_config(run.folder, ["distill.max_new_tokens=9"])
    training_rows.rows_for(
        folder.Run(more, run.reporter), run.reference_model(), run.examples, run.tree, run.taught, stage
    )
    assert asked == [(3, 6), (3, 9)]  # again with another limit
    assert run.reporter.lines[-2].endswith("is empty or over 9 tokens (distill.max_new_tokens)")


def test_examples_that_are_all_without_an_answer_are_refused(run, monkeypatch):
    """The reason is the answers: the data has items in the language."""
    run.config.data.path.write_text("".join(json.dumps(item) + "\n" for item in ITEMS[:2]))
    monkeypatch.setattr("isogloss.pipeline.english.ended", lambda *given, **how: [(0, ""), (1, "")])
    stage = run.ledger.begin("distill")
    with pytest.raises(DataError) as caught:
        training_rows.rows_for(run, run.reference_model(), run.examples, run.tree, run.taught, stage)
    assert str(caught.value) == (
        "no item in sw can be used: the model's English answer is empty or over 6 tokens "
        "(distill.max_new_tokens) (2 of 2); tune stage 1 for longer, or add responses and set "
        "distill.responses=reference"
    )


def test_another_model_is_not_asked_for_translations_of_parallel_text(run, base, tmp_path, monkeypatch):
    """Their responses are the data's own, whatever writes the others."""
    (tmp_path / "tatoeba").mkdir()
    (tmp_path / "tatoeba/en-sw.tsv").write_text("en\tsw\nOne.\tMoja.\n")
    more = [
        f"distill.teacher={{type: model, path: {base}, level: sequence}}",
        "distill.teacher_view=prompt",
        "parallel_text=[{type: tatoeba, use: [translation]}]",
        f"data_root={tmp_path}",
    ]
    run = folder.Run(load_config(run.folder, more), run.reporter)
    monkeypatch.setattr(
        "isogloss.pipeline.english.ended", lambda *given, **how: [(n, "yes") for n in range(3)]
    )
    asked = []

    def with_answers(rows, theirs, *given):
        asked.extend(row.id for row in theirs)
        return rows

    monkeypatch.setattr(training_rows.joining, "with_answers", with_answers)
    stage = run.ledger.begin("distill")
    rows = training_rows.rows_for(run, run.reference_model(), run.examples, run.tree, run.taught, stage)
    assert [row.id for row in rows if row.id not in asked] == [
        "tatoeba-sw-1-from_english/sw", "tatoeba-sw-1-to_english/sw"
    ]  # fmt: skip


def test_a_teachers_own_answer_and_prompt_are_shown(run, base, monkeypatch):
    """Another model writes the responses; before it has, there is nothing to show."""
    config = load_config(
        run.folder / "config.yaml",
        [
            f"distill.teacher={{type: model, path: {base}, level: sequence}}",
            "distill.responses=reference",
            "distill.teacher_view=prompt",
        ],
    )
    items = [item | {"en": item["en"] | {"response": "a"}} for item in ITEMS]
    items = [item | {"sw": item["sw"] | {"response": "b"}} for item in items]
    config.data.path.write_text("".join(json.dumps(item) + "\n" for item in items))
    run = folder.Run(config, Heard())
    with pytest.raises(RunError, match=r"^1 has no answer by .* yet; run `isogloss distill` first$"):
        training_rows.row_of(run, "sw", "1")
    monkeypatch.setattr("isogloss.teacher.local.ended", lambda *given, **how: iter([(0, "ndiyo")]))
    stage = run.ledger.begin("distill")
    training_rows.rows_for(run, run.reference_model(), run.examples, run.tree, run.taught, stage)
    row, its = training_rows.row_of(run, "sw", "1")
    assert run.tokenizer.decode(row.student.response, skip_special_tokens=True) == "ndiyo"
    assert its is not None and type(its) is type(load_tokenizer(str(base)))
    longer = load_config(
        run.folder / "config.yaml",
        [
            f"distill.teacher={{type: model, path: {base}, level: sequence, max_new_tokens: 9}}",
            "distill.responses=reference",
            "distill.teacher_view=prompt",
        ],
    )
    with pytest.raises(RunError, match=r"^1 has no answer by .* yet; "):  # with another limit
        training_rows.row_of(folder.Run(longer, Heard()), "sw", "1")
    other, _ = training_rows.row_of(run, "sw", "2")  # its answer was truncated: the data's response stays
    assert run.tokenizer.decode(other.student.response, skip_special_tokens=True) == "b"
