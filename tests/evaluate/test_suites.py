"""The suites: their instructions, the language of the answers, and the data that they never use."""

import json
import os
from pathlib import Path

import pytest

from isogloss.data.draw import in_draw_order
from isogloss.data.tasks import massive as tasks
from isogloss.data.tasks import sib200
from isogloss.errors import DataError
from isogloss.evaluate.suites import ABOUT, SUITES

ROOT = Path(os.environ.get("ISOGLOSS_DATA", Path(__file__).parents[3] / "shared" / "data"))
needs_data = pytest.mark.skipif(not (ROOT / "massive").is_dir(), reason="no data root: set ISOGLOSS_DATA")


@pytest.mark.parametrize("name", [name for name, about in ABOUT.items() if about.folders])
def test_a_suite_of_real_data_needs_a_data_root(name):
    """The message names the setting."""
    with pytest.raises(
        DataError, match=f"the {name} suite needs a data root; set data_root or ISOGLOSS_DATA"
    ):
        SUITES[name](None, "dev", ["sw"], 10, 10)


@pytest.mark.data
@needs_data
def test_massive_asks_about_intents_and_scenarios_in_turn():
    """Items are parallel by ID; labels are English in every language; Bulgarian is left out."""
    suite = SUITES["massive"](ROOT, "dev", ["sw", "bg"], 20, 0)
    assert {item.task for item in suite.items} == {"intent", "scenario"}
    item = suite.items[0]
    assert set(item.turns) == {"en", "sw"} and item.answer_language == {"en": "en", "sw": "en"}
    assert item.turns["sw"].response == item.turns["en"].response == item.options["sw"][item.gold]
    assert item.paraphrases != (item.turns["en"].instruction,) and len(item.paraphrases) == 1


@pytest.mark.data
@needs_data
def test_training_examples_of_massive_have_labels_in_english_only():
    """A target language's labels are never read: the teacher writes its responses."""
    examples = tasks.examples(ROOT, ["sw", "ur"], ["intent", "scenario", "slot"])
    assert all(turn.response is None for e in examples for code, turn in e.turns.items() if code != "en")
    assert all(e.turns["en"].response for e in examples)
    assert {e.task for e in examples[:6]} == {"intent", "scenario", "slot"}
    first = in_draw_order(examples, 0)[:180]
    assert len({e.turns["en"].response for e in first if e.task == "intent"}) >= 50
    assert len({e.turns["en"].response for e in first if e.task == "scenario"}) == 18
    assert all(set(e.turns) == {"en"} for e in examples if e.task == "slot")


@pytest.mark.data
@needs_data
def test_flores_reports_no_sentence_on_which_its_layer_was_chosen():
    """200 of SIB-200's 420 lines choose it; none of the 420 is reported, nor a near copy: 997 - 421."""
    suite = SUITES["flores101"](ROOT, "dev", ["sw", "bg"], 0, 900)
    assert {code: len(lines) for code, lines in suite.sentences.items()} == {"en": 576, "sw": 576, "bg": 576}
    assert {code: len(lines) for code, lines in suite.layer_sentences.items()} == {
        "en": 200, "sw": 200, "bg": 200,
    }  # fmt: skip
    assert not set(suite.sentences["en"]) & set(suite.layer_sentences["en"])
    topics = {text for table in sib200.read(ROOT, "train", ["en"]).values() for _, text in table.values()}
    assert not set(suite.sentences["en"]) & topics and set(suite.layer_sentences["en"]) & topics
    assert suite.split == "dev (576 lines without SIB-200's)"


@pytest.mark.data
@needs_data
def test_xnli_is_asked_and_answered_in_the_language():
    """Premise, hypothesis and label are all in Swahili."""
    suite = SUITES["xnli"](ROOT, "dev", ["sw"], 30, 0)
    item = next(item for item in suite.items if item.gold == "entailment")
    assert item.options["sw"] == {"entailment": "ndiyo", "neutral": "labda", "contradiction": "hapana"}
    assert item.turns["sw"].response == "ndiyo"


def xnli(root: Path, *rows: tuple[str, str, str], codes=("en", "sw"), split: str = "dev") -> None:
    lines = [
        f"{code}\t{label}\t{premise}\t{hypothesis}\t{n}"
        for code in codes
        for n, (premise, hypothesis, label) in enumerate(rows)
    ]
    header = "language\tgold_label\tsentence1\tsentence2\tpairID"
    write(root / f"XNLI-1.0/xnli.{split}.tsv", "\n".join([header, *lines]) + "\n")


def test_a_language_that_a_suite_does_not_have_is_left_out(tmp_path):
    """XNLI never had Japanese; a missing file of a language that it has is still an error."""
    xnli(tmp_path, ("It rained.", "It was wet.", "entailment"), split="test")
    suite = SUITES["xnli"](tmp_path, "test", ["sw", "ja"], 10, 0)
    assert set(suite.items[0].turns) == {"en", "sw"} and suite.split == "test"
    with pytest.raises(DataError, match="no rows in ur; available: en, sw"):
        SUITES["xnli"](tmp_path, "test", ["sw", "ur"], 10, 0)


@pytest.mark.parametrize(
    ("folders", "revision"),
    [(("massive",) * 2, "1.0"), (("1.1/data",) * 2, "1.1"), (("1.0/data", "1.1/data"), "1.0+1.1")],
)
def test_massive_signs_the_release_that_it_read(folders, revision, tmp_path):
    row = {
        "id": "1",
        "partition": "dev",
        "scenario": "alarm",
        "intent": "alarm_set",
        "utt": "u",
        "annot_utt": "u",
    }
    for folder, locale in zip(folders, ("en-US", "sw-KE"), strict=True):
        write(tmp_path / folder / f"{locale}.jsonl", json.dumps(row) + "\n")
    assert SUITES["massive"](tmp_path, "dev", ["sw"], 4, 0).revision == revision


@pytest.mark.parametrize(
    ("folder", "names"),
    [
        ("1.1", {"massive"}),
        ("XNLI", {"xnli", "xglue"}),
        ("x-final", {"pawsx", "xglue"}),
        ("xglue_de", {"xglue"}),
    ],
)
def test_a_suite_is_present_in_every_folder_that_it_reads(folder, names, tmp_path):
    (tmp_path / folder).mkdir()
    here = {
        name
        for name, one in ABOUT.items()
        if any(path for pattern in one.folders for path in tmp_path.glob(pattern))
    }
    assert here == names


def test_massive_uses_the_languages_of_the_requested_split(tmp_path):
    """Languages in dev_only are only used for dev; a language without templates is left out."""
    for locale, utt in (("en-US", "wake me up"), ("sw-KE", "niamshe"), ("cy-GB", "deffro fi")):
        rows = [
            {"id": str(n), "partition": "dev", "scenario": "alarm", "intent": "alarm_set", "utt": utt,
             "annot_utt": utt}
            for n in range(4)
        ]  # fmt: skip
        write(tmp_path / f"massive/dev_only/{locale}.jsonl", "\n".join(map(json.dumps, rows)) + "\n")
    suite = SUITES["massive"](tmp_path, "dev", ["sw", "cy"], 4, 0)
    assert [set(item.turns) for item in suite.items] == [{"en", "sw"}] * 4


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def pawsx(root: Path, *rows: str, code: str = "es") -> None:
    write(
        root / "x-final" / code / "dev_2k.tsv", "\n".join(["id\tsentence1\tsentence2\tlabel", *rows]) + "\n"
    )


@pytest.fixture
def undivided(monkeypatch):
    """Report all of a dev set; `test_division.py` tests the division."""
    monkeypatch.setattr("isogloss.data.division.LEARNED", 0.0)


def test_pawsx_joins_by_id_and_leaves_out_untranslated_pairs(tmp_path, undivided):
    """A pair with the release's placeholder, or with different labels, is left out in every language."""
    pawsx(tmp_path, '1\tA "b\tB\t1', "2\tC\tD\t0", "3\tE\tF\t0", "4\tG\tH\t1", code="en")
    pawsx(tmp_path, "4\tg\th\t0", "2\tNS\td\t0", "3\te\tf\t0", '1\ta "b\tb\t1')
    suite = SUITES["pawsx"](tmp_path, "dev", ["sw", "es"], 10, 0)
    assert [(item.id, item.gold) for item in suite.items] == [("1", "same"), ("3", "different")]
    first = suite.items[0].turns["es"]
    assert 'a "b' in first.instruction and first.response == "igual"
    assert set(suite.items[0].turns) == {"en", "es"}


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (["1\ta\tb\t2"], "dev_2k.tsv:2: the label is '2'; it must be 0 or 1"),
        (["1\ta\tb"], "dev_2k.tsv:2: 3 fields, but the header names 4"),
        (["1\ta\tb\t1", "1\ta\tb\t1"], "dev_2k.tsv:3: id 1 occurs twice; keep one row of each"),
    ],
)
def test_a_damaged_pawsx_file_is_refused_with_its_line(rows, says, tmp_path):
    pawsx(tmp_path, "1\tA\tB\t1", code="en")
    pawsx(tmp_path, *rows)
    with pytest.raises(DataError) as error:
        SUITES["pawsx"](tmp_path, "dev", ["es"], 10, 0)
    assert str(error.value).endswith(says)


def test_sib200_is_asked_and_answered_in_the_language(tmp_path):
    """Rows are joined by index, whatever their order."""
    header = "index_id\tcategory\ttext\n"
    write(tmp_path / "sib-200/eng_Latn/dev.tsv", header + "7\ttravel\tBook early.\n9\thealth\tRest.\n")
    write(tmp_path / "sib-200/swh_Latn/dev.tsv", header + "9\thealth\tPumzika.\n7\ttravel\tWeka nafasi.\n")
    suite = SUITES["sib200"](tmp_path, "dev", ["sw"], 10, 0)
    assert [(item.id, item.gold, item.turns["sw"].response) for item in suite.items] == [
        ("7", "travel", "usafiri"), ("9", "health", "afya"),
    ]  # fmt: skip
    assert suite.items[0].turns["sw"].instruction.partition("\n")[0].endswith("Weka nafasi.")
    named = "\nsayansi na teknolojia / usafiri / siasa / michezo / afya / burudani / jiografia"
    assert all(item.turns["sw"].instruction.endswith(named) for item in suite.items)
    (again,) = suite.items[0].paraphrases
    assert "Book early." in again and again != suite.items[0].turns["en"].instruction
    write(tmp_path / "sib-200/swh_Latn/dev.tsv", header + "9\thealthy\tPumzika.\n")
    with pytest.raises(DataError, match=r"dev.tsv:2: 'healthy' is not a category; did you mean health\?"):
        SUITES["sib200"](tmp_path, "dev", ["sw"], 10, 0)


def test_xcopa_answers_with_the_likelier_choice(tmp_path):
    """Cause and effect are asked for in the language's own words; rows are joined by idx.

    Which of them is asked for is English's: the Turkish file always says "effect".
    """

    def row(idx: int, label: int, question: str, *texts: str) -> str:
        keys = ("premise", "choice1", "choice2")
        return json.dumps(
            dict(zip(keys, texts, strict=True)) | {"question": question, "label": label, "idx": idx}
        )

    english = [row(0, 1, "cause", "It broke.", "It sang.", "It fell."), row(1, 0, "effect", "P", "Q", "R")]
    turkish = [
        row(1, 1, "effect", "p", "q", "r"),
        row(0, 1, "effect", "Kırıldı.", "Şarkı söyledi.", "Düştü."),
    ]
    write(tmp_path / "xcopa/data/en/val.en.jsonl", "\n".join(english) + "\n")
    write(tmp_path / "xcopa/data/tr/val.tr.jsonl", "\n".join(turkish) + "\n")
    suite = SUITES["xcopa"](tmp_path, "dev", ["tr", "es"], 10, 0)
    assert [item.id for item in suite.items] == ["0"]  # the labels of the other one differ
    turn = suite.items[0].turns["tr"]
    assert turn.response == "Düştü."
    assert turn.instruction == "Kırıldı. Bunun nedeni neydi? 1. Şarkı söyledi. 2. Düştü."


@pytest.mark.parametrize("label", ["1.0", "true", '"1"', "2"])
def test_an_xcopa_label_is_the_number_0_or_1(label, tmp_path):
    row = (
        f'{{"premise": "P", "choice1": "Q", "choice2": "R", "question": "cause", "label": {label}, "idx": 0}}'
    )
    for code in ("en", "tr"):
        write(tmp_path / f"xcopa/data/{code}/val.{code}.jsonl", row)
    with pytest.raises(DataError, match=r"val.en.jsonl:1: question is 'cause' and label .*, and 0 or 1"):
        SUITES["xcopa"](tmp_path, "dev", ["tr"], 10, 0)


@pytest.mark.data
@needs_data
@pytest.mark.parametrize(("name", "code"), [("pawsx", "fr"), ("sib200", "ur"), ("xcopa", "th")])
def test_the_real_files_are_read(name, code):
    """The released files can be read."""
    suite = SUITES[name](ROOT, "dev", [code], 20, 0)
    assert len(suite.items) == 20
    for item in suite.items:
        assert item.gold in item.options[code] and item.turns[code].response == item.options[code][item.gold]
