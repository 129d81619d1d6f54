"""Parallel text: sentence pairs without a task, drawn, deduplicated and kept apart from evaluation data."""

from pathlib import Path

import pytest

from isogloss.config import ParallelText, load_config
from isogloss.data.examples import ParallelExample, Turn
from isogloss.data.parallel_text import (
    Pair,
    input_pairs,
    pairs_for,
    topic_examples,
    translation_examples,
)
from isogloss.data.tasks import massive, xnli
from isogloss.errors import ConfigError, DataError
from isogloss.pipeline.folder import ProgressReporter, Run
from isogloss.pipeline.training_rows import foreseen_rows


def write(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")


@pytest.fixture
def root(tmp_path) -> Path:
    """Swahili has eleven pairs of which five are usable; Spanish has twenty, and a file with IDs."""
    write(
        tmp_path / "tatoeba/en-sw.tsv", "en\tsw", "It rains.\tMvua.", "it RAINS\tInanyesha.", "Go.\tNenda.",
        "Stop.\tNenda", "OK\tOK", "Held out.\tX.", "Y.\tImezuiwa.", "Dog.\tMbwa.", "Cat.\tPaka.",
        f"{'long ' * 100}\tndefu", "Sun.\tJua.",
    )  # fmt: skip
    write(tmp_path / "tatoeba/en-es.tsv", "en\tes", *(f"e {n}\ts {n}" for n in range(20)))
    write(tmp_path / "tico-19/all.en-es-LA.tsv", "id\ten\tes-LA", "A:1\tcough\ttos")
    write(tmp_path / "flores101_dataset/dev/eng.dev", "Held out!")
    write(tmp_path / "flores101_dataset/dev/swh.dev", "imezuiwa")
    return tmp_path


def test_pairs_are_deduplicated_and_exclude_evaluation_sentences(root):
    """Case and punctuation are ignored; pairs with equal sides and long sentences are dropped too."""
    found = pairs_for([ParallelText(type="tatoeba")], root, ["sw", "hi"], 0)
    assert {(p.english, p.text) for p in found["sw"]} == {
        ("It rains.", "Mvua."), ("Go.", "Nenda."), ("Dog.", "Mbwa."), ("Cat.", "Paka."), ("Sun.", "Jua."),
    }  # fmt: skip
    assert set(found) == {"sw"}


def test_low_resource_languages_read_more_pairs_before_any_twice(root):
    """Three pairs at factor 1.5 are four (4.5, rounded to even) different ones of Swahili's five."""
    source = ParallelText(type="tatoeba", items=3, low_resource_factor=1.5)
    found = pairs_for([source], root, ["sw", "es"], 0)
    assert len(found["sw"]) == len(set(found["sw"])) == 4 and len(found["es"]) == 3


def test_low_resource_languages_are_read_more_often(root):
    """Five pairs at factor 2.4 are read twelve times, in full passes; Spanish stays at its cap."""
    source = ParallelText(type="tatoeba", items=7, low_resource_factor=2.4)
    found = pairs_for([source], root, ["sw", "es"], 0)
    assert len(found["sw"]) == 12 and len(set(found["sw"][:5])) == 5
    assert found["sw"][5:10] == found["sw"][:5] and found["sw"][10:] == found["sw"][:2]
    assert len(set(found["es"])) == 7 and found["es"] != pairs_for([source], root, ["es"], 1)["es"]
    assert {p.id for p in found["es"]} != {f"tatoeba-es-{n}" for n in range(1, 8)}  # not the first ones


def test_a_data_sets_own_language_codes_are_known(root):
    """TICO-19's code for Spanish is es-LA."""
    (pair,) = pairs_for([ParallelText(type="tico19")], root, ["es"], 0)["es"]
    assert (pair.id, pair.english, pair.code, pair.text) == ("tico19-es-1", "cough", "es", "tos")


def test_a_missing_data_root_or_language_is_refused(root):
    with pytest.raises(DataError, match="parallel_text needs a data root; set data_root"):
        pairs_for([ParallelText(type="tatoeba")], None, ["es"], 0)
    with pytest.raises(DataError, match="parallel_text: tico19 has none of sw; take it out"):
        pairs_for([ParallelText(type="tico19")], root, ["sw"], 0)


def test_a_pair_gives_translation_tasks_in_both_directions(root):
    """The instruction is in the target language; the response of the English turn is the English sentence."""
    pairs = pairs_for([ParallelText(type="tico19")], root, ["es"], 0)
    there, back = translation_examples(pairs)
    assert (there.task, back.task) == ("from_english", "to_english")
    assert there.turns["es"].instruction.endswith("cough") and there.turns["es"].response == "tos"
    assert back.turns["es"].instruction.endswith("tos") and back.turns["es"].response == "cough"
    assert there.turns["en"].response == back.turns["en"].response == "cough"


def test_sentences_give_topic_tasks_in_every_language_that_has_them(root):
    """With SIB-200's wording and options, one example per English sentence and no responses."""
    write(root / "tatoeba/en-fr.tsv", "en\tfr", "e 3\tf 3", "Held out.\tY.")
    found = {e.turns["en"].instruction: e for e in topic_examples("tatoeba", root, ["es", "fr"], 100)}
    assert len(found) == 20
    topics = "science and technology / travel / politics / sports / health / entertainment / geography"
    both = found[f"What is this text about? e 3\n{topics}"]
    assert both.task == "topic_tatoeba" and both.id == "topic-tatoeba-es-4"
    assert both.turns["es"].instruction.startswith(
        "¿De qué trata este texto? s 3\nciencia y tecnología / viajes"
    )
    assert both.turns["fr"].instruction.startswith("De quoi parle ce texte ? f 3\nscience et technologie")
    assert {turn.response for turn in both.turns.values()} == {None}
    assert both.options["fr"]["sports"] == "sport" and len(both.options["en"]) == 7


def test_topic_tasks_are_learned_only_from_the_models_responses(root, tmp_path):
    """Stage 1 uses none of them, and stage 2 draws them by weight."""
    settings = [
        "data=[{type: demo, english_items: 3}, {type: topic, sentences: [tatoeba], weight: 3}]",
        "languages.targets=[es]", "languages.items.high=8", f"run={tmp_path}/run",
        "distill.replay_fraction=0",
    ]  # fmt: skip
    config = load_config(None, [*settings, "distill.responses=teacher"], data_root=root)
    run = Run(config, ProgressReporter())
    assert len(run.english) == 3
    rows = foreseen_rows(run, run.tokenizer)
    assert sum(row.id.startswith("topic-tatoeba-es") for row in rows) == 6 and len(rows) == 8

    inputs = [*settings, "distill.responses=teacher", "distill.similarity_inputs=true"]
    run = Run(load_config(None, inputs, data_root=root), ProgressReporter())
    bare = foreseen_rows(run, run.tokenizer)[8:]
    texts = {pair.text for pair in pairs_for([ParallelText(type="tatoeba")], root, ["es"], 0)["es"]}
    assert len({row.student.prompt for row in bare if row.bare}) == len(bare) == 6
    assert {run.tokenizer.decode(row.student.prompt) for row in bare} <= texts


def test_translations_are_added_to_the_amounts(root, tmp_path):
    """One demo item, and seven pairs in both directions."""
    config = load_config(
        None,
        ["languages.targets=[es]", "languages.items.high=1", "data.english_items=3", f"run={tmp_path}/run",
         "parallel_text=[{type: tatoeba, items: 7, use: [translation]}]", "distill.replay_fraction=0"],
        data_root=root,
    )  # fmt: skip
    run = Run(config, ProgressReporter())
    rows = foreseen_rows(run, run.tokenizer)
    assert len(rows) == 15 and sum(row.id.startswith("tatoeba") for row in rows) == 14


def test_sentences_for_alignment_are_rows_without_a_response(root, tmp_path):
    """Seven pairs as they are, each with its own meaning."""
    config = load_config(
        None,
        ["languages.targets=[es]", "languages.items.high=1", "data.english_items=3", f"run={tmp_path}/run",
         "parallel_text=[{type: tatoeba, items: 7, use: [alignment]}]", "distill.replay_fraction=0"],
        data_root=root,
    )  # fmt: skip
    run = Run(config, ProgressReporter())
    asked, *bare = foreseen_rows(run, run.tokenizer)
    pairs = run.pairs(["es"], "alignment")["es"]
    assert run.pairs(["es"], "translation") == {}
    assert not asked.bare
    assert [run.tokenizer.decode(row.student.prompt) for row in bare] == [pair.text for pair in pairs]
    assert [run.tokenizer.decode(row.twin_prompt) for row in bare] == [pair.english for pair in pairs]
    assert {(row.student.response, row.language, row.bare) for row in bare} == {((), "es", True)}
    assert len({asked.meaning, *(row.meaning for row in bare)}) == 8


def test_alignment_without_the_hidden_state_term_is_refused():
    """No other term uses such sentences."""
    with pytest.raises(ConfigError) as caught:
        load_config(None, ["parallel_text=[{type: tatoeba}]", "distill.similarity_weight=0"])
    says = "parallel_text must have use: [translation] if distill.similarity_weight is 0"
    assert says in str(caught.value)


def test_the_inputs_of_instructions_are_sentence_pairs():
    """Without the task's wording, and each pair once, even if both its intent and its scenario are asked."""
    texts = {"en": "play jazz", "sw": "cheza jazz"}

    def example(id: str, ask) -> ParallelExample:
        return ParallelExample(id, id.split("-")[1], {code: Turn(ask(code)) for code in texts})

    both = [
        example(f"1-{task}", lambda code, task=task: massive.ask(task, code, texts[code]))
        for task in ("intent", "scenario")
    ]
    pair = example(
        "2-xnli", lambda code: xnli.ask(code, *(("A b.", "C d.") if code == "en" else ("E f.", "G h.")))
    )
    free = example("3-open", lambda code: f"Say {texts[code]}")
    passage = ParallelExample("4-xnli", "xnli", pair.turns, own_response=True)
    assert input_pairs({"sw": [*both, pair, free, passage]}) == {
        "sw": [
            Pair("1-intent-input-1", "play jazz", "sw", "cheza jazz"),
            Pair("2-xnli-input-1", "A b.", "sw", "E f."),
            Pair("2-xnli-input-2", "C d.", "sw", "G h."),
        ]
    }
    assert input_pairs({"sw": [free]}) == {}
