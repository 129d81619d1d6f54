"""Parallel text: pairs without a task, drawn, deduplicated, and never what evaluation reads."""

from pathlib import Path

import pytest

from isogloss.config import ParallelText, load_config
from isogloss.data.parallel_text import pairs_for, topic_examples, translation_examples
from isogloss.errors import ConfigError, DataError
from isogloss.pipeline.folder import ProgressReporter, Run
from isogloss.pipeline.training_rows import foreseen_rows


def write(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")


@pytest.fixture
def root(tmp_path) -> Path:
    """Swahili: nine pairs of which five can be used. Spanish: twenty, and a file with ids."""
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


def test_pairs_are_each_once_and_none_is_an_evaluation_s(root):
    """Case and punctuation hide nothing; equal and long sentences go too."""
    found = pairs_for([ParallelText(type="tatoeba")], root, ["sw", "hi"], 0)
    assert {(p.english, p.text) for p in found["sw"]} == {
        ("It rains.", "Mvua."), ("Go.", "Nenda."), ("Dog.", "Mbwa."), ("Cat.", "Paka."), ("Sun.", "Jua."),
    }  # fmt: skip
    assert set(found) == {"sw"}


def test_low_resource_languages_are_read_more_often(root):
    """Five pairs at 2.4 are twelve reads, none thrice before all are read twice; Spanish stays at its cap."""
    source = ParallelText(type="tatoeba", items=7, low_resource_factor=2.4)
    found = pairs_for([source], root, ["sw", "es"], 0)
    assert len(found["sw"]) == 12 and len(set(found["sw"][:5])) == 5
    assert found["sw"][5:10] == found["sw"][:5] and found["sw"][10:] == found["sw"][:2]
    assert len(set(found["es"])) == 7 and found["es"] != pairs_for([source], root, ["es"], 1)["es"]
    assert {p.id for p in found["es"]} != {f"tatoeba-es-{n}" for n in range(1, 8)}  # of the file


def test_a_set_s_own_spelling_of_a_language_is_known(root):
    """TICO-19 calls its Spanish es-LA."""
    (pair,) = pairs_for([ParallelText(type="tico19")], root, ["es"], 0)["es"]
    assert (pair.id, pair.english, pair.code, pair.text) == ("tico19-es-1", "cough", "es", "tos")


def test_what_is_not_there_is_refused(root):
    """A data root, and a language of the set."""
    with pytest.raises(DataError, match="parallel_text needs a data root; set data_root"):
        pairs_for([ParallelText(type="tatoeba")], None, ["es"], 0)
    with pytest.raises(DataError, match="parallel_text: tico19 has none of sw; take it out"):
        pairs_for([ParallelText(type="tico19")], root, ["sw"], 0)


def test_a_pair_is_asked_both_ways(root):
    """In the language; the English turn has the English sentence for an answer."""
    pairs = pairs_for([ParallelText(type="tico19")], root, ["es"], 0)
    there, back = translation_examples(pairs)
    assert (there.task, back.task, there.group) == ("from_english", "to_english", "tico19-es-1")
    assert there.turns["es"].instruction.endswith("cough") and there.turns["es"].response == "tos"
    assert back.turns["es"].instruction.endswith("tos") and back.turns["es"].response == "cough"
    assert there.turns["en"].response == back.turns["en"].response == "cough"


def test_sentences_are_asked_for_their_topic_in_every_language_that_has_them(root):
    """In SIB-200's words and options, one example an English sentence, without anybody's answer."""
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


def test_topics_are_learned_with_the_model_s_answers_alone(root, tmp_path):
    """Stage 1 has none of them; stage 2 has them by weight, and they need a teacher's response."""
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


def test_translations_are_rows_besides_the_amounts(root, tmp_path):
    """One item of the demo, and seven pairs both ways."""
    config = load_config(
        None,
        ["languages.targets=[es]", "languages.items.high=1", "data.english_items=3", f"run={tmp_path}/run",
         "parallel_text=[{type: tatoeba, items: 7, use: [translation]}]", "distill.replay_fraction=0"],
        data_root=root,
    )  # fmt: skip
    run = Run(config, ProgressReporter())
    rows = foreseen_rows(run, run.tokenizer)
    assert len(rows) == 15 and sum(row.id.startswith("tatoeba") for row in rows) == 14


def test_sentences_to_align_are_rows_without_a_response(root, tmp_path):
    """Seven pairs as they stand, with what the tokenizer puts around any text, each with its own meaning."""
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
    """Nothing else would read such sentences."""
    with pytest.raises(ConfigError) as caught:
        load_config(None, ["parallel_text=[{type: tatoeba}]", "distill.similarity_weight=0"])
    says = "parallel_text must have use: [translation] where distill.similarity_weight is 0"
    assert says in str(caught.value)
