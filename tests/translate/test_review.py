"""The review files for speakers, their page in a browser, and the effect of the marks."""

import csv
import gzip
import json
import subprocess
import sys

import pytest
import yaml
from browser import chromium
from chat_endpoint import SWAHILI, Endpoint

from isogloss.data.formats import parallel_jsonl
from isogloss.errors import ConfigError, DataError
from isogloss.translate import review
from isogloss.translate.review import Mark, Reading

MARKUP = "<img src=x onerror=\"document.title='run'\"></script><script>alert(1)</script><b>mlango</b>"
ROWS = [
    Reading("1", "ur", {"instruction": "Close the door."}, {"instruction": "دروازہ بند کرو۔"}),
    Reading(
        "2",
        "ur",
        {"instruction": "Open it.", "response": "Done."},
        {"instruction": MARKUP, "response": "ہو گیا۔"},
    ),
    Reading("3", "ur", {"instruction": "Sit down."}, {"instruction": "=1+1"}),
]


@pytest.mark.parametrize("name", ["r.csv", "R.CSV", "r.csv.gz"])
def test_marks_are_read_back_from_a_table(name, tmp_path):
    """Right, wrong with a reason, corrected without a verdict, and unmarked. A text that a spreadsheet would
    evaluate is quoted, and read back without the quote."""
    more = Reading("4", "ur", {"instruction": "Wait."}, {"instruction": "ٹھہرو"})
    path = tmp_path / "r.csv"
    review.write(path, "ur", [*ROWS, more])
    with path.open(encoding="utf-8-sig", newline="") as file:
        cells = list(csv.DictReader(file))
    assert cells[2]["instruction"] == "'=1+1" and cells[1]["instruction"] == MARKUP
    cells[0] |= {"verdict": " Wrong", "reason": "too rude"}
    cells[1]["response"] = "مکمل۔"
    cells[2]["verdict"] = "right"
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, cells[0])
        writer.writeheader()
        writer.writerows(cells)
    data, path = path.read_bytes(), tmp_path / name
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    assert review.read([path]) == {
        ("1", "ur"): Mark(ROWS[0].key, "wrong", ROWS[0].own, "too rude"),
        ("2", "ur"): Mark(ROWS[1].key, "corrected", {"instruction": MARKUP, "response": "مکمل۔"}),
        ("3", "ur"): Mark(ROWS[2].key, "right", ROWS[2].own),
    }


def test_a_table_saved_with_semicolons_is_read(tmp_path):
    """As Excel does where a comma is the decimal mark."""
    cells = review._cells(ROWS[0]) | {"verdict": "right", "reason": "short, but right"}
    with (tmp_path / "r.csv").open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, cells, delimiter=";")
        writer.writeheader()
        writer.writerow(cells)
    mark = Mark(ROWS[0].key, "right", ROWS[0].own, "short, but right")
    assert review.read([tmp_path / "r.csv"]) == {("1", "ur"): mark}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"verdict": "corected"}, "the verdict is 'corected'; did you mean corrected?"),
        ({"instruction": " "}, "the corrected instruction is empty; write it, or mark the row wrong"),
        ({"reason": 3, "verdict": "wrong"}, "the reason is a number; it must be a text"),
        ({}, "the file contains no marks; mark some rows and save them"),
    ],
)
def test_invalid_marks_are_refused(change, says, tmp_path):
    path = tmp_path / "marks.jsonl"
    path.write_text(json.dumps(review._cells(ROWS[0]) | change))
    with pytest.raises(DataError) as error:
        review.read([path])
    assert str(error.value).endswith(says)


def test_two_speakers_may_not_disagree(tmp_path):
    """On the same row; two equal marks count as one."""
    files = [tmp_path / name for name in ("a.jsonl", "b.jsonl", "c.jsonl")]
    for file, verdict in zip(files, ("right", "right", "wrong"), strict=True):
        file.write_text(json.dumps(review._cells(ROWS[0]) | {"verdict": verdict}))
    assert len(review.read(files[:2])) == 1
    with pytest.raises(DataError, match="id '1' is marked twice in ur; keep one"):
        review.read(files)


def test_files_that_are_no_review_and_other_file_types_are_refused(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("id,text\n1,a\n")
    with pytest.raises(DataError, match="there is no 'language'; use a file that --review made"):
        review.read([path])
    with pytest.raises(ConfigError, match=r"name a file in \.html or \.csv"):
        review.check(tmp_path / "r.xlsx", ["sw"])


def test_a_table_with_marks_is_not_written_over(tmp_path):
    """A fresh one may be, as nothing is lost."""
    page, own = tmp_path / "r.csv", tmp_path / "r.sw.csv"
    review.write(own, "sw", ROWS)
    review.check(page, ["sw", "ur"])
    own.write_text(review._table([review._cells(ROWS[0]) | {"verdict": "right"}]))
    assert len(review.read([own])) == 1
    with pytest.raises(ConfigError) as caught:
        review.check(page, ["sw", "ur"])
    assert str(caught.value) == (
        f"--review {page}: {own} has marks, which would be lost; name another file, and read this one with "
        "--reviewed"
    )
    # A typing error is no reason to lose it.
    own.write_text(review._table([review._cells(ROWS[0]) | {"verdict": "rigth"}]))
    with pytest.raises(DataError, match="the verdict is 'rigth'; did you mean right"):
        review.check(page, ["sw", "ur"])


@pytest.mark.parametrize("text", ["3/4", "007", "42.0", "123456789012", "=1+1", "-5"])
def test_a_spreadsheet_gets_numbers_and_formulas_as_text(text, tmp_path):
    row = review.Reading(text, "sw", {"instruction": text}, {"instruction": "tatu"})
    review.write(tmp_path / "r.csv", "sw", [row])
    with (tmp_path / "r.csv").open(encoding="utf-8-sig", newline="") as file:
        (cells,) = csv.DictReader(file)
    assert cells["id"] == cells["english_instruction"] == f"'{text}" and cells["instruction"] == "tatu"


def test_each_language_has_its_own_file(tmp_path):
    assert review.place(tmp_path / "r.html", "sw", ["sw"]) == tmp_path / "r.html"
    assert review.place(tmp_path / "r.html", "sw", ["sw", "ur"]) == tmp_path / "r.sw.html"


# --- the command


@pytest.fixture
def endpoint(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with Endpoint().serving() as made:
        yield made


def translate(folder, endpoint, *more):
    data = folder / "english.jsonl"
    data.write_text("".join(json.dumps({"instruction": text}) + "\n" for text in list(SWAHILI)[:4]))
    line = [
        sys.executable, "-m", "isogloss", "translate", str(data), "--to", "sw",
        "--out", str(folder / "out.jsonl"), "--url", endpoint.url, "--model", "mt", *map(str, more),
    ]  # fmt: skip
    return subprocess.run(line, capture_output=True, text=True, check=False)


def test_a_speakers_marks_override_the_filter(endpoint, tmp_path):
    """Of four rows, one is corrected with a number that the filter would reject, and one is wrong; the next
    page only has the rows that nobody has marked."""
    assert translate(tmp_path, endpoint, "--review", tmp_path / "r.csv", "--review-rows", "3").returncode == 0
    with (tmp_path / "r.csv").open(encoding="utf-8-sig", newline="") as file:
        cells = {row["id"]: row | {"key": row["key"].removeprefix("'")} for row in csv.DictReader(file)}
    assert len(cells) == 3
    rest = ({"1", "2", "3", "4"} - set(cells)).pop()
    first, second, third = cells
    cells[first]["instruction"] = "Nyingine 1999"
    cells[second] |= {"verdict": "wrong", "reason": "rude"}
    marks = tmp_path / "marks.jsonl"
    marks.write_text("".join(json.dumps(row) + "\n" for row in cells.values()))
    found = translate(
        tmp_path, endpoint, "--reviewed", marks, "--review", tmp_path / "next.html", "--parquet",
        "--license", "CC BY 4.0: see LICENCE",
    )  # fmt: skip
    assert found.returncode == 0 and "2 of 2 marks applied" in found.stdout
    made = {one.id: one.turns for one in parallel_jsonl.read(tmp_path / "out.jsonl")}
    assert made[first]["sw"].instruction == "Nyingine 1999" and "sw" not in made[second]
    assert parallel_jsonl.read(tmp_path / "out.parquet") == parallel_jsonl.read(tmp_path / "out.jsonl")
    dropped = json.loads((tmp_path / "out.translate" / "dropped.jsonl").read_text("utf-8"))
    assert (dropped["id"], dropped["reason"], dropped["details"]) == (second, "review", ["review: rude"])
    page = (tmp_path / "next.html").read_text("utf-8")
    rows = json.loads(page.partition('type="application/json">')[2].partition("</script>")[0])["rows"]
    assert {row["id"] for row in rows} == {third, rest}
    card = (tmp_path / "out.translate" / "README.md").read_text("utf-8")
    assert "A speaker of Swahili has reviewed 2 of them: 0 right, 1 corrected, 1 left out." in card
    front = yaml.safe_load(card.split("---")[1])
    assert front == {"language": ["en", "sw"], "license": "CC BY 4.0: see LICENCE"}
    assert "| Swahili | 3 | review 1 |" in card
    assert "from `english.jsonl`," in card and str(tmp_path) not in card
    assert "A pair is dropped if any of these checks fails: empty, copy, language, length" in card
    assert endpoint.asked.total() == 4


def test_options_without_effect_are_refused_before_any_request(endpoint, tmp_path):
    found = translate(tmp_path, endpoint, "--review-rows", "3")
    assert found.returncode == 2 and "--review-rows has no effect without --review" in found.stderr
    assert endpoint.asked.total() == 0


# --- the page


@pytest.mark.chromium
def test_a_page_is_marked_by_keyboard_and_shows_markup_as_text(tmp_path):
    """Keys 1, 3 with a reason and 2 with another text; the saved marks are read back. On a phone nothing is
    wider than the screen, Urdu runs from right to left, and no host is contacted."""
    page = tmp_path / "r.html"
    review.write(page, "ur", ROWS)
    with chromium(tmp_path / "profile") as tab:
        tab.go(page.as_uri())
        tab.until("document.querySelectorAll('.item').length === 3")
        assert tab.run("[...document.querySelectorAll('.own')].map(p => p.textContent)") == [
            ROWS[0].own["instruction"], MARKUP, "ہو گیا۔", "=1+1",
        ]  # fmt: skip
        assert tab.run("getComputedStyle(document.querySelector('.own')).direction") == "rtl"
        assert tab.run("document.querySelectorAll('.own *').length") == 0
        tab.press("1", 49)  # right, moves on to the second
        tab.press("3", 51)  # wrong, moves into the reason
        assert tab.run("document.activeElement.getAttribute('aria-label')") == "What is wrong"
        tab.do("Input.insertText", text="markup 1")
        tab.press("Enter", 13)
        tab.press("2", 50)
        tab.run("document.activeElement.select()")
        tab.do("Input.insertText", text="بیٹھ جاؤ۔")
        assert tab.run("document.getElementById('state').textContent") == (
            "3 of 3 marked: 1 right, 1 corrected, 1 wrong"
        )
        tab.look(tmp_path / "phone.png", width=390, height=800)
        assert tab.run("document.documentElement.scrollWidth") <= 390
        tab.look(tmp_path / "wide.png")
        (tmp_path / "marks.jsonl").write_text(tab.run("saving()"), encoding="utf-8")
        assert tab.run("document.title") == "3 translations into Urdu"
        assert [one for one in tab.complaints() if not one.startswith("file:")] == []
    assert review.read([tmp_path / "marks.jsonl"]) == {
        ("1", "ur"): Mark(ROWS[0].key, "right", ROWS[0].own),
        ("2", "ur"): Mark(ROWS[1].key, "wrong", ROWS[1].own, "markup 1"),
        ("3", "ur"): Mark(ROWS[2].key, "corrected", {"instruction": "بیٹھ جاؤ۔"}),
    }
