"""XGLUE: where the files are, the instructions, and scores worked out by hand."""

import gzip
import io
import json
import re
import tarfile
from pathlib import Path

import pytest
from xglue_files import FILES, put

from isogloss.config import Xglue
from isogloss.data.formats.xglue import LANGUAGES
from isogloss.data.tasks import mlqa
from isogloss.errors import DataError
from isogloss.evaluate.suites import SUITES
from isogloss.evaluate.suites.xglue_items import labels, wordings
from isogloss.evaluate.suites.xglue_scores import read_tags

CODES = ("es", "fr")
SOME = Xglue(skip_missing=True)


@pytest.fixture(scope="module", autouse=True)
def undivided():
    """Two rows per task are too few to divide; `test_division.py` tests the division."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("isogloss.data.division.LEARNED", 0.0)
        yield


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return put(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def suite(root):
    return SUITES["xglue"](root, "dev", CODES, 10, 0, options=SOME)


def references(suite) -> dict[str, dict[str, str]]:
    """Return the right answer to every item."""
    found: dict[str, dict[str, str]] = {}
    for item in suite.items:
        for code, turn in item.turns.items():
            found.setdefault(code, {})[item.id] = turn.response
    return found


def test_every_task_has_templates_in_each_of_its_languages():
    """Templates use the row's own slots; no two labels have the same word."""
    for task, codes in LANGUAGES.items():
        for code in codes:
            if task in ("XNLI", "PAWSX"):
                assert len(set(labels(task, code).values())) == {"XNLI": 3, "PAWSX": 2}[task]
                continue
            if task == "MLQA":
                assert {"{context}", "{question}"} <= set(re.findall(r"{\w+}", mlqa.templates()[code]))
                continue
            assert code in wordings()["ask"][task], (task, code)
            if task in wordings()["labels"]:
                named = labels(task, code)
                assert len(set(named.values())) == len(named) and list(named) == list(labels(task, "en"))
                assert "{labels}" in wordings()["ask"][task][code]


def test_all_eleven_tasks_are_read(suite):
    """Items of parallel tasks are joined by ID if their labels are equal; other items are separate."""
    assert list(dict.fromkeys(item.task for item in suite.items)) == list(LANGUAGES)
    held = {item.id: set(item.turns) for item in suite.items}
    assert held["MLQA-q1"] == held["XNLI-1"] == held["PAWSX-1"] == {"en", "es"}
    assert held["PAWSX-2"] == {"en"} and held["PAWSX-2-es"] == {"es"}
    assert held["NC-2-en"] == {"en"}
    assert suite.items[0].turns["en"].response == "I-PER O"
    assert any(note == "XGLUE's NC dev was not found in fr." for note in suite.notes)


def test_right_answers_score_one_everywhere(suite):
    """Nothing is unreadable."""
    found = suite.score(references(suite))
    means = {(task, m): one["mean"] for task, by in found.tasks.items() for m, one in by.items()}
    assert means == pytest.approx({
        ("NER", "span_f1"): 1, ("NER", "token_accuracy"): 1,
        ("POS", "span_precision"): 1, ("POS", "token_accuracy"): 1,
        ("NC", "accuracy"): 1, ("MLQA", "f1"): 1, ("MLQA", "exact_match"): 1, ("XNLI", "accuracy"): 1,
        ("PAWSX", "accuracy"): 1, ("QADSM", "accuracy"): 1, ("WPR", "ndcg"): 1, ("QAM", "accuracy"): 1,
        ("QG", "bleu"): 1, ("NTG", "bleu"): 1,
    })  # fmt: skip
    assert found.more["overall"] == found.more["overall_documented"] == pytest.approx(1)
    assert {sum(by.values()) for by in found.more["unreadable"].values()} == {0}


def test_scores_are_those_worked_out_by_hand(suite):
    """One Spanish answer per task is wrong, one is unreadable; English is all right."""
    answers = references(suite)
    answers["es"] |= {
        "NER-0-es": "O O",  # PER missed: 1 of 2 spans found, precision 1: F1 2/3
        "POS-1-es": "NOUN NOUN VERB",  # three tags for two words: unreadable, both wrong
        "NC-1-es": "Viajes!", "NC-2-es": "?",  # wrong label; unreadable
        "MLQA-q1": "gato negro",  # gold: gato (no articles): 2·1/(2+1) = 2/3; q2 right
        "XNLI-1": "no", "WPR-1-es": "perfecto",  # the irrelevant page is above the relevant one
    }  # fmt: skip
    found = suite.score(answers)
    spanish = {
        (task, m): one["languages"]["es"]
        for task, by in found.tasks.items()
        for m, one in by.items()
        if "es" in one["languages"]
    }
    assert spanish["NER", "span_f1"] == pytest.approx(2 / 3)
    assert spanish["NER", "token_accuracy"] == pytest.approx(3 / 4)
    assert spanish["POS", "span_precision"] == pytest.approx(2 / 4)  # PROPN and VERB right, two wrong tags
    assert spanish["POS", "token_accuracy"] == pytest.approx(2 / 4)
    assert spanish["NC", "accuracy"] == 0
    assert spanish["MLQA", "f1"] == pytest.approx((2 / 3 + 1) / 2)
    assert spanish["MLQA", "exact_match"] == pytest.approx(1 / 2)
    # Relevances 1, 3 ranked as given: (1 + 3/log2 3) / (3 + 1/log2 3) = 2.892789 / 3.630930
    assert spanish["WPR", "ndcg"] == pytest.approx(0.796708, abs=1e-6)
    unread = {task: by["es"] for task, by in found.more["unreadable"].items() if by.get("es")}
    assert unread == {"POS": 1, "NC": 1}
    assert found.tasks["NER"]["span_f1"]["mean"] == pytest.approx((1 + 2 / 3) / 2)
    mains = [
        (1 + 2 / 3) / 2,
        (1 + 1 / 2) / 2,
        1 / 2,
        (1 + 5 / 6) / 2,
        3 / 4,
        1,
        1,
        (1 + 0.796708) / 2,
        1,
        1,
        1,
    ]
    assert found.more["overall"] == pytest.approx(sum(mains) / 11, abs=1e-6)


def test_prediction_files_are_what_the_official_script_reads(suite):
    """One line per row or tag, an empty one between sentences; one object for MLQA; labels as in the gold."""
    answers = references(suite)
    answers["es"] |= {"NC-1-es": "", "WPR-2-es": "nada que ver", "QG-1-es": "¿ quién\n ganó ?"}
    files = suite.score(answers).files
    assert files["NER/en.prediction"] == "I-PER\nO\n\nI-LOC\nI-LOC\nO\nO\n"
    assert files["POS/es.prediction"] == "PROPN\nVERB\n\nNOUN\nVERB\n"
    assert files["NC/es.prediction"] == "foodanddrink\ntravel\n"  # unreadable: a wrong label
    assert files["XNLI/en.prediction"] == "neutral\ncontradiction\n"
    assert files["PAWSX/es.prediction"] == "1\n1\n"
    assert files["QADSM/fr.prediction"] == "Good\nBad\n"
    assert files["WPR/es.prediction"] == "1\n-4\n"  # unreadable: below all others, the most relevant last
    assert json.loads(files["MLQA/es.prediction"]) == {"q1": "El gato", "q2": "llovido"}
    assert files["QG/es.prediction"] == "¿ quién ganó ?\n¿ qué tiempo hace hoy ?\n"
    assert set(files) == {
        f"{task}/{code}.prediction" for task in LANGUAGES for code in ("en", *CODES)
        if any(item.task == task and code in item.turns for item in suite.items)
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "tags"),
    [
        ("O B-PER", ("O", "B-PER")),
        (" O\nO ", ("O", "O")),
        ("O", None),
        ("O O O", None),
        ("O b-per", None),
        ("", None),
    ],
)
def test_tags_are_read_strictly(text, tags):
    """There must be as many as tokens, each spelled as a tag."""
    assert read_tags(text, "NER", 2) == tags


def test_a_missing_language_is_named_with_the_searched_paths(root):
    """It is an error unless the options skip it."""
    with pytest.raises(DataError) as error:
        SUITES["xglue"](root, "dev", ["fr"], 10, 0, options=Xglue(tasks=("QAM", "NC")))
    folder = root / "xglue_full_dataset"
    assert str(error.value) == (
        f"XGLUE dev lacks NC in fr (looked for {folder}/NC/xglue.nc.fr.dev, {root}/xglue_fr/NC/fr.dev); put "
        "it there, name others in evaluate.xglue.tasks, or set evaluate.xglue.skip_missing"
    )
    assert len(SUITES["xglue"](root, "dev", ["fr"], 10, 0, options=Xglue(tasks=("QAM",))).items) == 4
    with pytest.raises(DataError, match="XGLUE dev has none of the selected tasks in fr; add a language"):
        SUITES["xglue"](root, "dev", ["fr"], 10, 0, options=Xglue(tasks=("NC",), skip_missing=True))


def test_an_archive_is_unpacked_once_beside_itself(root, tmp_path):
    """It gives the same items as its folder."""
    archive = tmp_path / "xglue_full_dataset.tar.gz"
    with tarfile.open(archive, "w:gz") as made:
        made.add(root / "xglue_full_dataset", "xglue_full_dataset")
    wanted = SUITES["xglue"](root, "dev", CODES, 10, 0, options=SOME).items
    assert SUITES["xglue"](tmp_path, "dev", CODES, 10, 0, options=SOME).items == wanted
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "xglue_full_dataset",
        "xglue_full_dataset.tar.gz",
    ]
    by_path = SUITES["xglue"](None, "dev", CODES, 10, 0, options=Xglue(path=archive, skip_missing=True))
    assert by_path.items == wanted


def member(name: str, kind: bytes = tarfile.REGTYPE, size: int = 0) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.size, made.linkname = kind, size, "/etc/passwd"
    return made


@pytest.mark.parametrize(
    ("one", "says"),
    [
        (
            member("../evil"),
            "it contains '../evil', which is not inside xglue_full_dataset; do not unpack it",
        ),
        (member("/evil"), "it contains '/evil', which is not inside xglue_full_dataset; do not unpack it"),
        (
            member("xglue_full_dataset/../../evil"),
            "it contains 'xglue_full_dataset/../../evil', which is not inside",
        ),
        (
            member("other/NER/en.dev"),
            "it contains 'other/NER/en.dev', which is not inside xglue_full_dataset",
        ),
        (
            member("xglue_full_dataset/a", tarfile.SYMTYPE),
            "'xglue_full_dataset/a' is neither a file nor a folder",
        ),
        (
            member("xglue_full_dataset/a", tarfile.FIFOTYPE),
            "'xglue_full_dataset/a' is neither a file nor a folder",
        ),
    ],
)
def test_a_dangerous_archive_is_refused_and_nothing_written(one, says, tmp_path):
    """All members are checked before any is unpacked."""
    archive = tmp_path / "xglue_full_dataset.tar.gz"
    with tarfile.open(archive, "w:gz") as made:
        made.addfile(member("xglue_full_dataset/NER/en.dev"), io.BytesIO())
        made.addfile(one)
    with pytest.raises(DataError) as error:
        SUITES["xglue"](tmp_path, "dev", CODES, 10, 0)
    assert says in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == [archive.name]


def test_too_large_and_damaged_archives_are_refused(root, tmp_path, monkeypatch):
    """One has more files than the limit, lowered here; the others are cut or have a wrong checksum."""
    archive = tmp_path / "xglue_full_dataset.tar.gz"
    with tarfile.open(archive, "w:gz") as made:
        made.add(root / "xglue_full_dataset", "xglue_full_dataset")
    whole = archive.read_bytes()
    with monkeypatch.context() as changed:
        changed.setattr("isogloss.data.formats.archive.MOST_FILES", 5)
        with pytest.raises(DataError, match="it contains more than 5 files or 16 GiB; do not unpack it"):
            SUITES["xglue"](tmp_path, "dev", CODES, 10, 0)
    open_ended = gzip.decompress(whole).rstrip(b"\0")
    wrong_sum = bytearray(gzip.compress(open_ended + bytes(-len(open_ended) % 512)))
    wrong_sum[-8] ^= 1
    for damaged in (whole[: len(whole) // 2], wrong_sum):
        archive.write_bytes(damaged)
        with pytest.raises(DataError, match="the archive is damaged"):
            SUITES["xglue"](tmp_path, "dev", CODES, 10, 0)
    assert [path.name for path in tmp_path.iterdir()] == [archive.name]


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("NER/es.dev", "Ana B-PER\ncanta\n",
         "NER/es.dev:2: the line must be a token, a space or tab, and its tag"),
        ("NER/es.dev", "Ana B-PERS\n", "NER/es.dev:1: 'B-PERS' is not a tag of NER; did you mean B-PER?"),
        ("POS/es.dev", "\n\n", "POS/es.dev: the file is empty; it must contain POS in es"),
        ("NC/xglue.nc.es.dev", "a\tb\tsports\na\tb\n",
         "NC/xglue.nc.es.dev:2: 2 fields, the label is missing; older releases lack it in their test, "
         "so download the newer one"),
        ("NC/xglue.nc.es.dev", "a\tb\tsport\n",
         "NC/xglue.nc.es.dev:1: 'sport' is not a label of NC; did you mean sports?"),
        ("QADSM/xglue.qadsm.fr.dev", "q\tt\td\tx\tGood\n",
         "QADSM/xglue.qadsm.fr.dev:1: 5 fields; there must be 4: query, title, description, label"),
        ("PAWSX/es/dev_2k.tsv", "id\tsentence1\tsentence2\tlabel\n1\ta\tb\t1\n1\ta\tb\t1\n",
         "PAWSX/es/dev_2k.tsv:3: id 1 occurs twice; keep one row of each"),
        ("XNLI/es.dev", "Comió.\tEstá lleno.\tneutral\n",
         "XNLI/es.dev: pair 2 is in en but not in es; both must have it"),
        ("QG/xglue.qg.es.src.dev", "uno\n",
         "QG/xglue.qg.es.tgt.dev: 2 lines, but 1 in xglue.qg.es.src.dev; they must match line by line"),
        ("WPR/xglue.wpr.es.dev", "a\tb\tc\t1\nd\tb\tc\t1\n",
         "WPR/xglue.wpr.es.dev: no query has two consecutive rows; there is nothing to rank"),
        ("MLQA/MLQA_V1/dev/dev-context-es-question-es.json", "{\n  nonsense",
         "dev-context-es-question-es.json:2: not JSON; the file must be one object in SQuAD's layout"),
    ],
)  # fmt: skip
def test_a_damaged_file_is_refused_with_its_line(name, text, says, tmp_path):
    """The message says what is wrong and what would be right."""
    put(tmp_path, **{name.replace("/", "__"): text})
    with pytest.raises(DataError) as error:
        SUITES["xglue"](tmp_path, "dev", CODES, 10, 0, options=SOME)
    assert str(error.value).endswith(says)


def test_the_variants_of_the_release_read_the_same(root, tmp_path):
    """MLQA_v1 for MLQA_V1, one XNLI file for all languages, spelled-out labels, a query column."""
    moved = put(tmp_path)
    folder = moved / "xglue_full_dataset"
    (folder / "MLQA/MLQA_V1").rename(folder / "MLQA/MLQA_v1")
    for code in ("en", "es"):
        (folder / f"XNLI/{code}.dev").unlink()
    header = "language\tgold_label\tx1\tx2\tx3\tx4\tsentence1\tsentence2\n"
    rows = [
        f"{code}\t{fields[2].replace('contradictory', 'contradiction')}\t\t\t\t\t{fields[0]}\t{fields[1]}\n"
        for code in ("en", "es")
        for line in FILES[f"XNLI/{code}.dev"].splitlines()
        for fields in [line.split("\t")]
    ]
    (folder / "XNLI/xnli.dev.tsv").write_text(header + "".join(rows))
    (folder / "PAWSX/es/dev_2k.tsv").write_text(FILES["PAWSX/es/dev_2k.tsv"].replace("\t1\n", "\tsame\n"))
    (folder / "QAM/xglue.qam.en.dev").write_text("Who?\tAnna.\tTrue\nWho?\tIt rains.\tFalse\n")
    (folder / "WPR/xglue.wpr.es.dev").write_text("gatos\tPerros\tNada\tFair\ngatos\tGatos\tTodo\tExcellent\n")
    (folder / "NC/xglue.nc.es.dev").write_text("q\tCopa\tGanaron.\tsports\nq\tRuta\tUn viaje.\ttravel\n")
    ours = SUITES["xglue"](moved, "dev", CODES, 10, 0, options=SOME).items
    assert ours == SUITES["xglue"](root, "dev", CODES, 10, 0, options=SOME).items


def test_parts_in_the_data_root_are_used_instead(root, tmp_path):
    """WikiANN for NER and UD for POS, tab-separated; the notes name them."""
    for name, text in (("wikiann/dev-{}.tsv", "Ana\tB-PER\n"), ("udpos/dev-{}.tsv", "Ana\tPROPN\n")):
        for code in ("en", "es"):
            path = tmp_path / name.format(code)
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
    suite = SUITES["xglue"](tmp_path, "dev", ["es"], 5, 0, options=Xglue(tasks=("NER", "POS")))
    assert [item.id for item in suite.items] == ["NER-0-en", "NER-0-es", "POS-0-en", "POS-0-es"]
    assert suite.notes == ("XGLUE's NER was read from wikiann.", "XGLUE's POS was read from udpos.")


def test_fewer_items_are_spread_over_a_file_and_whole_queries(tmp_path):
    """Two of ten rows, not the first two; rankings keep whole queries and drop single rows."""
    tags = "".join(f"w{n} O\n\n" for n in range(10))
    pages = "".join(f"q{n // 2}\tt\ts\t{n % 5}\n" for n in range(10)) + "alone\tt\ts\t1\n"
    put(tmp_path, **{"NER__es.dev": tags, "WPR__xglue.wpr.es.dev": pages})
    suite = SUITES["xglue"](tmp_path, "dev", ["es"], 2, 0, options=Xglue(tasks=("NER", "WPR")))
    spanish = [item.id for item in suite.items if "es" in item.turns]
    assert spanish[:2] == ["NER-1-es", "NER-6-es"]
    assert len(spanish) == 4 and spanish[2:] in [[f"WPR-{n}-es", f"WPR-{n + 1}-es"] for n in (1, 3, 5, 7, 9)]
