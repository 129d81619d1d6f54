"""Sources: what the data settings give to each stage, from one source or several."""

import json
from collections import Counter
from pathlib import Path

import pytest

from isogloss.config import load_config
from isogloss.data.sources import (
    english_examples,
    lacking,
    left_out,
    left_out_lines,
    parallel_examples,
    refuse_unusable,
    response_of,
)
from isogloss.errors import ConfigError, DataError
from isogloss.pipeline import checks, folder, stages, training_rows


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def item(
    id: str, task: str, english: str | None = "a", swahili: str | None = "b", language: str = "sw"
) -> dict:
    def said(text: str, response: str | None) -> dict:
        return {"instruction": text} | ({} if response is None else {"response": response})

    return {
        "id": id, "task": task, "en": said(f"q {task} {id}", english), language: said(f"s {id}", swahili),
    }  # fmt: skip


def run_of(tmp_path: Path, rows: list[dict], *more: str) -> folder.Run:
    path = write(tmp_path / "data.jsonl", rows)
    data = f"data={{type: parallel, path: {path}}}"
    config = load_config(None, [data, "languages.targets=[sw]", f"run={tmp_path / 'run'}", *more])
    return folder.Run(config, folder.ProgressReporter())


TOPICS = ["alarm", "audio", "iot", "calendar", "play", "news", "weather", "email", "lists", "qa"]


def test_a_sorted_file_is_drawn_across_all_its_tasks(tmp_path):
    """48 items of ten topics are four or five of each, and 50 English ones are five of each."""
    run = run_of(tmp_path, [item(f"{t}{n}", t) for t in TOPICS for n in range(30)], "data.english_items=50")
    used = training_rows.chosen_for(run, run.examples, ["sw"])["sw"]
    counts = [sum(e.task == topic for e in used) for topic in TOPICS]
    assert sorted(counts) == [4, 4, *[5] * 8]
    assert [sum(e.task == topic for e in run.english) for topic in TOPICS] == [5] * 10


def test_only_usable_rows_are_counted(tmp_path):
    """Every second response is missing: 48 of the 100 others are used, and the gaps are reported."""
    run = run_of(tmp_path, [item(str(n), "qa", swahili=None if n % 2 else "r") for n in range(200)])
    assert len([row for row in training_rows.foreseen_rows(run, run.tokenizer) if row.language == "sw"]) == 48
    found = left_out(run.examples, ["sw"], lambda e, code: lacking(e, code, "reference"))
    assert left_out_lines(found) == ["Left out because there is no response: 100 in sw"]


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (
            [item("1", "qa", swahili=None), item("2", "qa", swahili=" "), item("3", "qa", swahili=None)],
            "no item in sw can be used: there is no response (2), the response is empty (1); fix them, "
            "set distill.responses=teacher or take sw out of languages.targets",
        ),
        (
            [item("1", "qa", english=" "), item("2", "qa", english="a", language="es")],
            "no item in sw can be used: the English response is empty (1); fix them, "
            "set distill.responses=teacher or take sw out of languages.targets",
        ),
        (
            [item("1", "qa", language="es")],
            "the data has no sw; add items or take it out of languages.targets",
        ),
    ],
)
def test_a_language_without_usable_items_is_refused_before_stage_1(rows, says, tmp_path):
    """The message gives the reason."""
    with pytest.raises(DataError) as caught:
        checks.check(run_of(tmp_path, rows))
    assert str(caught.value) == says


def test_a_row_over_the_token_limit_is_left_out_of_stage_1(tmp_path):
    """The packaged model has 512 positions; a higher limit is refused."""
    rows = [item("long", "qa", english="word " * 2000), *(item(str(n), "qa") for n in range(3))]
    run = run_of(tmp_path, rows, "tune.selection.enabled=false")
    chosen = stages.select_english(run)
    assert [e.id for e in chosen.kept] == ["0", "1", "2"]
    (dropped,) = chosen.dropped
    assert (dropped.example_id, dropped.reason) == ("long", "too_long")
    assert dropped.detail.endswith(" tokens; tune.max_tokens is 512")
    short = run_of(tmp_path, rows, "tune.max_tokens=3", "tune.selection.enabled=false")
    with pytest.raises(DataError, match=r"^none of the 4 English examples is left to tune on: too_long 4$"):
        stages.select_english(short)
    with pytest.raises(ConfigError, match=r"^tune.max_tokens is 9999; the model has 512 positions$"):
        stages.select_english(run_of(tmp_path, rows, "tune.max_tokens=9999"))


def test_several_sources_share_a_language_by_weight(tmp_path):
    """Two of three Swahili items come from the demo; Japanese is in one source only."""
    mine = write(tmp_path / "mine.jsonl", [item(str(n), "mine") for n in range(60)])
    other = write(tmp_path / "other.jsonl", [item(str(n), "other", language="ja") for n in range(60)])
    sources = (
        f"data=[{{type: demo, weight: 2.0, english_items: 5}}, {{type: parallel, path: {mine}}}, "
        f"{{type: parallel, path: {other}, english_items: 4}}]"
    )
    config = load_config(
        None,
        [sources, "languages.targets=[sw, ja]", "languages.items={low: 30, high: 9}", f"run={tmp_path}/run"],
    )
    run = folder.Run(config, folder.ProgressReporter())
    rows = training_rows.foreseen_rows(run, run.tokenizer)
    sources_of = {code: [r.id.split("-")[0] for r in rows if r.language == code] for code in ("sw", "ja")}
    assert (sources_of["sw"].count("train"), sources_of["sw"].count("mine")) == (20, 10)
    assert sources_of["ja"] == ["other"] * 9
    english = [e.id.split("-")[0] for e in english_examples(config, None)]
    assert (english.count("train"), english.count("mine"), english.count("other")) == (5, 60, 4)
    assert {e.source for e in parallel_examples(config, None, ["sw", "ja"])} == {0, 1, 2}


def test_files_with_the_same_name_give_different_ids(tmp_path):
    """Two folders have a train.jsonl each, with rows numbered from 1."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write(tmp_path / name / "train.jsonl", [{"prompt": f"{name}?", "completion": "yes"}])
    files = ", ".join(f"{{type: chat, path: {tmp_path}/{name}/train.jsonl}}" for name in ("a", "b"))
    found = english_examples(load_config(None, [f"data=[{files}]", f"run={tmp_path}/run"]), None)
    assert [e.id for e in found] == ["train-1-1", "train-2-1"]


def test_a_selection_by_difficulty_that_keeps_nothing_is_refused(tmp_path, monkeypatch):
    """It raises one line before a trainer without steps is built."""
    run = run_of(tmp_path, [item("1", "qa")], "tune.selection.keep=0.5")
    monkeypatch.setattr(stages, "difficulty", lambda base, tokenizer, kept, progress: [1.2] * len(kept))
    with pytest.raises(
        DataError, match=r"^none of the 1 English examples is left to tune on: instruction_does"
    ):
        stages.select_english(run)


def test_prompts_that_no_teacher_reads_are_not_built(tmp_path):
    """With the divergence, they are over the limit of tokens."""
    short = "distill.max_prompt_length=12", "distill.replay_fraction=0"
    run = run_of(tmp_path, [item("1", "qa")], *short)
    (row,) = training_rows.foreseen_rows(run, run.tokenizer)
    assert row.teacher_prompt == row.student.prompt
    heard = run_of(tmp_path, [item("1", "qa")], *short, "distill.kl_weight=1")
    with pytest.raises(
        ConfigError, match=r"^the teacher's prompt for 1/sw has \d+ tokens and the limit is 12; "
    ):
        training_rows.foreseen_rows(heard, heard.tokenizer)


def test_a_language_without_items_is_refused(tmp_path):
    """All of its items were left out as leaks: it would otherwise be missing from every mean."""
    rows = [item("1", "qa"), item("2", "qa", language="fr")]
    run = run_of(tmp_path, rows, "languages.targets=[sw, fr]")
    assert run.taught == ("sw", "fr")
    run.__dict__["_all_examples"] = [e for e in run.examples if "sw" in e.turns]
    with pytest.raises(DataError) as caught:
        training_rows.foreseen_rows(run, run.tokenizer)
    assert str(caught.value) == "no item has fr; add items in fr or take it out of languages.targets"


def test_a_language_without_responses_is_refused(tmp_path):
    """Instructions alone give no references to train on; the message says so."""
    run = run_of(tmp_path, [item("1", "qa", swahili=None)], "distill.responses=reference")
    with pytest.raises(DataError) as caught:
        training_rows.foreseen_rows(run, run.tokenizer)
    assert str(caught.value) == (
        "no item in sw can be used: there is no response (1); "
        "fix them, set distill.responses=teacher or take sw out of languages.targets"
    )


@pytest.mark.parametrize(("shape", "english"), [("families", 1), ("flat", 0), ("shared", 1)])
def test_english_is_replayed_only_where_the_root_learns(tmp_path, shape, english):
    """English uses the root alone; a flat tree has no adapter rows there."""
    run = run_of(tmp_path, [item("1", "qa")], f"languages.tree={shape}")
    rows = training_rows.foreseen_rows(run, run.tokenizer)
    assert Counter(row.language for row in rows) == Counter({"sw": 1, "en": english})


@pytest.mark.parametrize(("responses", "lacks"), [("english", "there is no response"), ("all", None)])
def test_questions_about_passages_need_answers_of_each_language_in_stage_2(responses, lacks, tmp_path):
    """`distill.responses=teacher` gives them no English answer: the model would answer in English."""
    folder = tmp_path / "MLQA_V1" / "dev"
    folder.mkdir(parents=True)
    for code, words in {"en": "the sea near town {}", "es": "el mar junto a la ciudad {}"}.items():
        articles = [
            {"title": f"Article {n}", "paragraphs": [{"context": words.format(n), "qas": [
                {"id": f"{n}", "question": f"{code} {n}?", "answers": [{"text": words.split()[1]}]},
            ]}]}
            for n in range(20)
        ]  # fmt: skip
        file = folder / f"dev-context-{code}-question-{code}.json"
        file.write_text(json.dumps({"data": articles}))
    data = f"data={{type: mlqa, responses: {responses}}}"
    config = load_config(None, [data, "languages.targets=[es]", "distill.responses=teacher"])
    examples = parallel_examples(config, tmp_path, ["es"])
    assert 0 < len(examples) < 20
    assert {lacking(one, "es", "teacher") for one in examples} == {lacks}
    found = {response_of(one, "es", "sea", "teacher") for one in examples}
    assert found == {(None, lacks) if lacks else ("mar", None)}
    assert len(english_examples(config, tmp_path)) == len(examples)
    if lacks:
        says = rf"in es can be used: {lacks} \({len(examples)}\); fix them, set responses: all for mlqa or"
        with pytest.raises(DataError, match=says):
            refuse_unusable(config, examples, ["es"])
