"""Readers of real data on files of a few lines: the tests of the data root, for machines without one."""

import gzip
import json
import unicodedata
from pathlib import Path

import pytest
from xglue_files import squad

from isogloss.data.formats import squad as squad_format
from isogloss.data.tasks import massive as tasks
from isogloss.data.tasks import sib200
from isogloss.evaluate.suites import SUITES

INTENTS = ("alarm_set", "play_music", "weather_query")
LOCALES = {"en": "en-US", "sw": "sw-KE", "ur": "ur-PK"}


def write(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = "".join(line + "\n" for line in lines).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def massive(root: Path) -> None:
    """Write six utterances of train and dev in three languages, compressed as in the data root."""
    for code, locale in LOCALES.items():
        rows = [
            {
                "id": str(n),
                "partition": partition,
                "scenario": INTENTS[n % 3].split("_")[0],
                "intent": INTENTS[n % 3],
                "utt": f"{code} {partition} {n}",
                "annot_utt": f"[time : {code} {n}] {partition}",
            }
            for partition in ("train", "dev")
            for n in range(6)
        ]
        write(root / f"massive/{locale}.jsonl.gz", *map(json.dumps, rows))


def test_massive_asks_about_intents_and_scenarios_in_turn(tmp_path):
    """Labels are English in every language; Bulgarian is left out, as it is not in MASSIVE."""
    massive(tmp_path)
    suite = SUITES["massive"](tmp_path, "dev", ["sw", "bg"], 6, 0)
    assert [item.task for item in suite.items] == ["intent", "scenario"] * 3
    for item in suite.items:
        number = int(item.id.split("-")[0])
        intent = INTENTS[number % 3]
        label = intent.replace("_", " ") if item.task == "intent" else intent.split("_")[0]
        assert set(item.turns) == {"en", "sw"} and item.answer_language == {"en": "en", "sw": "en"}
        assert item.turns["sw"].response == item.turns["en"].response == label
        assert f"sw dev {number}" in item.turns["sw"].instruction


def test_massives_options_include_the_labels_of_all_partitions(tmp_path):
    """Dev itself has only one intent."""
    for locale in ("en-US", "sw-KE"):
        labels = (("train", "iot_cleaning"), ("dev", "alarm_set"), ("test", "play_music"))
        rows = [
            {
                "id": str(n), "partition": partition, "scenario": intent.split("_")[0], "intent": intent,
                "utt": f"{locale} {n}", "annot_utt": f"{locale} {n}",
            }
            for n, (partition, intent) in enumerate((*labels, labels[1]))
        ]  # fmt: skip
        write(tmp_path / f"massive/{locale}.jsonl", *map(json.dumps, rows))
    intent, scenario = SUITES["massive"](tmp_path, "dev", ["sw"], 2, 0).items
    assert intent.options["sw"] == {
        "alarm_set": "alarm set", "iot_cleaning": "iot cleaning", "play_music": "play music"
    }  # fmt: skip
    assert list(scenario.options["en"]) == ["alarm", "iot", "play"]


def test_training_examples_of_massive_have_labels_in_english_only(tmp_path):
    """Slots exist in English only, and the first of them is asked for."""
    massive(tmp_path)
    examples = tasks.examples(tmp_path, ["sw", "ur"], ["intent", "scenario", "slot"])
    assert len(examples) == 18
    assert all(turn.response is None for e in examples for code, turn in e.turns.items() if code != "en")
    slots = [e for e in examples if e.task == "slot"]
    assert [(set(e.turns), e.turns["en"].response) for e in slots] == [({"en"}, f"en {n}") for n in range(6)]


def test_flores_reports_no_sentence_on_which_its_layer_was_chosen(tmp_path):
    """200 of 203 dev lines choose the layer; all of devtest are reported."""
    for code in ("eng", "bul"):
        write(tmp_path / f"flores101_dataset/dev/{code}.dev", *(f"{code} dev {n}" for n in range(203)))
        write(tmp_path / f"flores101_dataset/devtest/{code}.devtest", *(f"{code} test {n}" for n in range(4)))
    suite = SUITES["flores101"](tmp_path, "dev", ["bg"], 0, 900)
    assert {code: len(lines) for code, lines in suite.sentences.items()} == {"en": 3, "bg": 3}
    assert {code: len(lines) for code, lines in suite.layer_sentences.items()} == {"en": 200, "bg": 200}
    assert not set(suite.sentences["en"]) & set(suite.layer_sentences["en"])
    for english, bulgarian in zip(suite.sentences["en"], suite.sentences["bg"], strict=True):
        assert english.replace("eng", "bul") == bulgarian
    assert SUITES["flores101"](tmp_path, "test", ["bg"], 0, 900).sentences["bg"] == (
        "bul test 0",
        "bul test 1",
        "bul test 2",
        "bul test 3",
    )


def test_flores_dev_ignores_sib200s_devtest_lines(tmp_path):
    """SIB-200's official files continue dev's numbering in devtest; two of these lines are dev's."""
    for code in ("eng", "bul"):
        write(tmp_path / f"flores101_dataset/dev/{code}.dev", *(f"{code} dev {n}" for n in range(203)))
    rows = (f"{n}\ttravel\tText {n}." for n in (1, 2, 1500))
    write(tmp_path / "sib-200/eng_Latn/train.tsv", "index_id\tcategory\ttext", *rows)
    suite = SUITES["flores101"](tmp_path, "dev", ["bg"], 0, 900)
    assert suite.split == "dev (3 lines without SIB-200's)"
    assert {code: len(lines) for code, lines in suite.sentences.items()} == {"en": 3, "bg": 3}
    assert not {"eng dev 1", "eng dev 2"} & set(suite.sentences["en"])
    assert {"eng dev 1", "eng dev 2"} <= set(suite.layer_sentences["en"])


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ('"a ""b"" c"', 'a "b" c'),
        ('"""b"" c"', '"b" c'),
        ('"a" and "c"', '"a" and "c"'),
        ('"a ""b" c"', '"a ""b" c"'),
        ('a "b" c', 'a "b" c'),
        ('"', '"'),
    ],
)
def test_sib200_is_read_without_the_quotes_of_csv(tmp_path, written, read):
    """Some of its files quote a text that contains quotation marks, and double those."""
    write(tmp_path / "sib-200/eng_Latn/dev.tsv", "index_id\tcategory\ttext", f"7\ttravel\t{written}")
    assert sib200.read(tmp_path, "dev", ["en"]) == {"en": {"7": ("travel", read)}}


def test_xnli_is_asked_and_answered_in_the_language(tmp_path):
    """Premise, hypothesis and label are all in Swahili."""
    rows = [
        f"{code}\t{label}\t{code} premise {n}\t{code} hypothesis {n}\t{n}"
        for code in ("en", "sw")
        for n, label in enumerate(("entailment", "neutral", "contradiction"))
    ]
    header = "language\tgold_label\tsentence1\tsentence2\tpairID"
    write(tmp_path / "XNLI-1.0/xnli.test.tsv.gz", header, *rows)
    items = SUITES["xnli"](tmp_path, "test", ["sw"], 30, 0).items
    assert sorted((item.gold, item.turns["sw"].response) for item in items) == [
        ("contradiction", "hapana"),
        ("entailment", "ndiyo"),
        ("neutral", "labda"),
    ]
    for item in items:
        asked = item.turns["sw"].instruction
        assert f"Sw premise {item.id}" in asked and f"sw hypothesis {item.id}" in asked


def test_mlqas_files_are_read_compressed(tmp_path):
    """Answers are still found in their contexts after normalisation to NFC."""
    path = tmp_path / "dev-context-vi-question-vi.json.gz"
    context, asked = (unicodedata.normalize("NFD", text) for text in ("Hà Nội là thủ đô.", "Ở đâu?"))
    text = squad(("q1", context, asked, "Hà Nội"))
    path.write_bytes(gzip.compress(text.encode()))
    (one,) = squad_format.read(path).values()
    assert one.answers == ("Hà Nội",) and one.context == "Hà Nội là thủ đô." and one.question == "Ở đâu?"
