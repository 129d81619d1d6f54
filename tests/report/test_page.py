"""The page: one file that loads nothing, executes nothing hostile, and shows the run's own values."""

import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from importlib import resources

import pytest

from isogloss.errors import RunError
from isogloss.report.page import write_report

from .conftest import ANSWERS, CODES, make_run, make_scores, write_json

VOID = {"meta", "br", "img", "link", "input", "hr"}


class Reader(HTMLParser):
    """Collects elements and text, and checks that elements are closed in order."""

    def __init__(self, page):
        super().__init__()
        self.elements, self.open, self.text = [], [], []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture
def page(run):
    return write_report(run).read_text(encoding="utf-8")


def plain(page):
    return re.sub(r"\s+", " ", " ".join(Reader(page).text))


def test_every_element_is_closed_and_every_id_is_unique(page):
    reader = Reader(page)
    ids = [attrs["id"] for _, attrs in reader.elements if "id" in attrs]
    assert reader.open == []
    assert len(ids) == len(set(ids))
    used = [attrs[k] for _, attrs in reader.elements for k in ("aria-labelledby",) if k in attrs]
    used += [attrs["href"].removeprefix("#") for tag, attrs in reader.elements if tag == "a"]
    assert set(used) <= set(ids)


def test_nothing_is_fetched(page):
    elements = Reader(page).elements
    assert {tag for tag, _ in elements} & {
        "script",
        "link",
        "img",
        "iframe",
        "object",
        "embed",
        "base",
    } == set()
    links = {a[k] for _, a in elements for k in ("src", "href", "xlink:href", "srcset", "action") if k in a}
    assert all(link.startswith("#") for link in links)
    style = page[page.index("<style>") : page.index("</style>")]
    assert re.findall(r"url\(|@import|https?:", style) == []
    assert "default-src 'none'" in page


def test_hostile_answers_are_shown_as_text(page):
    tags = {tag for tag, _ in Reader(page).elements}
    assert tags & {"script", "b", "em"} == set()
    assert page.count("</style>") == 1
    assert not any(name.startswith("on") for _, attrs in Reader(page).elements for name in attrs)
    assert "&lt;em&gt;notes&lt;/em&gt; are text" in page
    assert "&lt;/pre&gt;&lt;script&gt;x&lt;/script&gt;" in page


def test_each_hostile_string_is_escaped_wherever_it_occurs(run, tmp_path):
    hostile = "</style></title><script>alert('x')</script>{{ 7 * 7 }}\" onload=\"y\u202e\x00\ud800"
    scores = make_scores(hostile)
    suite = scores["suites"][hostile]
    suite.update(languages=[*CODES, hostile], notes=[hostile], signature=hostile, layer=hostile)
    for phase in ("before", "after"):
        suite[phase]["alignment"]["languages"][hostile] = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 1}
        suite["tasks"][phase][hostile] = {"sw": 0.5}
    suite["spread"]["after"]["alignment"]["worst"] = [hostile, 0.1]
    scores["isogloss"] = hostile
    write_json(run / "scores.json", scores)
    write_json(run / "ledger.json", {"stages": [{"stage": hostile, "seconds": 1}]})
    write_json(
        run / "tree.json", {"nodes": [{"name": hostile, "level": hostile, "text": hostile, "rank": 4}]}
    )
    write_json(run / "curves.jsonl", {"stage": hostile, "step": 1, hostile: 2.0, "loss": 1.0})
    page = write_report(run).read_text(encoding="utf-8")
    reader = Reader(page)
    assert reader.open == []
    assert "script" not in {tag for tag, _ in reader.elements}
    assert not any(name.startswith("on") for _, attrs in reader.elements for name in attrs)
    assert "{{ 7 * 7 }}" in page
    assert page.count("</style>") == page.count("</title>") - page.count("<svg role") == 1


def test_characters_that_html_forbids_become_replacement_characters(run):
    lines = (run / "predictions/demo.after.jsonl").read_text(encoding="utf-8").splitlines()
    (run / "predictions/demo.after.jsonl").write_text(
        "\n".join(
            re.sub(r'"answer": ".*?", "cons', r'"answer": "a\\u0000b\\ud800c", "cons', x) for x in lines
        )
    )
    assert "a\ufffdb\ufffdc" in write_report(run).read_text(encoding="utf-8")


def test_every_language_is_marked_with_its_code_and_direction(page):
    spans = {(a["lang"], a.get("dir")) for tag, a in Reader(page).elements if tag == "span" and "lang" in a}
    expected = {(code, "rtl" if code in {"ar", "ur"} else "ltr") for code in CODES}
    assert expected <= spans
    assert '<span class="autonym" lang="sw" dir="ltr">Kiswahili</span>' in page
    assert any(f">{ANSWERS[code]}</p>" in page for code in CODES)


@pytest.mark.parametrize(
    "value",
    [
        "42.1 → 62.7 %",
        "+20.6 points; interval 61.5–63.9, before 40.9–43.3",
        "before: Swahili 21.2; standard deviation 11.3 → 8.1",
        "67.1 → 87.7 %",
        "−0.4 points interval −1.1 to +0.3",
        "Swahili: 21.2 before, 49.7 after, interval 46.6–52.7",
        "20 min 46 s · 16.5 M tokens forwarded · 921 TFLOP · peak memory 2.10 GiB",
        "Arabic العربية 40.2 37.1–43.2 61.1 58.0–64.1 +20.9",
        "tune 4 min 21 s 4.20 M 1.30 M 0 0 231 TFLOP 1.50 GiB",
        "all 20 min 46 s 16.5 M 6.30 M 8,400 3,296 921 TFLOP 2.10 GiB",
        "English accuracy 87.3 % retrieval layer 3",
        "scoring map seed 0",
        "Total rank: 72.",
        "server: 'https://localhost:8000/v1'",
    ],
)
def test_values_equal_those_in_the_files(page, value):
    assert value in plain(page)


def test_only_the_demo_is_labelled_as_a_demonstration(tmp_path):
    page = write_report(make_run(tmp_path / "both", "demo", "massive")).read_text(encoding="utf-8")
    assert page.count("This is a demonstration.") == 1
    assert '<a href="#suite-1">demo</a>' in page
    assert '<a href="#suite-2">massive</a>' in page


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (
            "demo",
            "The model is the small one that ships with isogloss, and the items were written by its authors.",
        ),
        ("Qwen/Qwen3-0.6B", "The items were written by the authors of isogloss; they are few and easy."),
    ],
)
def test_only_the_demo_model_is_called_the_small_one(run, model, says):
    (run / "config.yaml").write_text(f"run: runs/x\nmodel: {model}\n", encoding="utf-8")
    text = plain(write_report(run).read_text(encoding="utf-8"))
    assert f"This is a demonstration. {says}" in text
    assert ("ships with isogloss" in text) == (model == "demo")


def test_a_suite_without_english_says_that_nothing_can_be_compared(run):
    for phase in ("before", "after"):
        row = {"id": "1", "task": "t", "language": "sw", "answer": "a", "consistent": None}
        write_json(run / f"predictions/demo.{phase}.jsonl", row)
    text = plain(write_report(run).read_text(encoding="utf-8"))
    assert "No item can be compared with an English answer." in text


def test_tables_are_made_for_screen_readers(page):
    elements = Reader(page).elements
    assert all(attrs.get("scope") for tag, attrs in elements if tag == "th")
    tables = [tag for tag, _ in elements if tag == "table"]
    assert len(tables) == [tag for tag, _ in elements].count("caption") == 5
    drawings = [attrs for tag, attrs in elements if tag == "svg"]
    assert all(a.get("role") == "img" or a.get("aria-hidden") == "true" for a in drawings)
    assert page.count('<svg role="img"') == len(re.findall(r'<svg role="img"[^>]*><title>', page)) == 18


def test_the_same_files_give_the_same_bytes(run):
    first = write_report(run).read_bytes()
    assert write_report(run).read_bytes() == first
    assert sorted(p.name for p in run.iterdir() if "report" in p.name) == ["report.html"]


@pytest.mark.parametrize(
    ("file", "note"),
    [
        ("ledger.json", "ledger.json is not in this run."),
        ("tree.json", "tree.json is not in this run."),
        ("curves.jsonl", "curves.jsonl is not in this run."),
        ("config.yaml", "config.yaml is not in this run."),
        ("predictions/demo.after.jsonl", "demo.after.jsonl is not in this run."),
    ],
)
def test_a_missing_file_becomes_one_sentence(run, file, note):
    (run / file).unlink()
    assert plain(write_report(run).read_text(encoding="utf-8")).count(note) == 1


@pytest.mark.parametrize(
    "file", ["ledger.json", "tree.json", "curves.jsonl", "predictions/demo.before.jsonl"]
)
@pytest.mark.parametrize("content", [b"{", b"[1]", b"\xff\xfe", b'{"stages": [3], "nodes": 4}', b"null"])
def test_a_damaged_file_does_not_stop_the_report(run, file, content):
    (run / file).write_bytes(content)
    assert write_report(run).is_file()


def test_wrong_types_inside_a_file_leave_out_its_section(run):
    write_json(run / "ledger.json", {"stages": [{"stage": "tune", "seconds": "long"}]})
    write_json(run / "tree.json", {"nodes": [{"name": "root", "rank": "many"}]})
    text = plain(write_report(run).read_text(encoding="utf-8"))
    assert "ledger.json is not as expected; its section is left out." in text
    assert "tree.json is not as expected; its section is left out." in text


def test_scores_alone_make_a_page(tmp_path):
    write_json(tmp_path / "scores.json", make_scores("demo"))
    assert "62.7" in write_report(tmp_path).read_text(encoding="utf-8")


def test_a_suite_without_after_scores_shows_the_others(run):
    scores = make_scores("demo")
    for part in (
        scores["suites"]["demo"],
        scores["suites"]["demo"]["spread"],
        scores["suites"]["demo"]["tasks"],
    ):
        part.pop("after")
    write_json(run / "scores.json", scores)
    assert "42.1" in plain(write_report(run).read_text(encoding="utf-8"))


def test_a_headline_of_the_benchmarks_own_counts_the_languages_in_its_mean(run):
    """Not those of the suite, of which a task may lack some."""
    tasks = {"NER": {"span_f1": {"mean": 0.3, "languages": {"de": 0.2, "es": 0.4}}}}
    official = {"before": {"tasks": tasks}, "after": {"tasks": tasks}}
    suite = {"languages": ["de", "es", "sw"], "before": {}, "after": {}, "official": official}
    write_json(run / "scores.json", make_scores() | {"suites": {"xglue": suite}})
    text = plain(write_report(run).read_text(encoding="utf-8"))
    assert "NER span f1, mean over 2 languages" in text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"scores\.json is missing; run `isogloss evaluate` first, which writes it"),
        ("{", r"scores\.json is not JSON"),
        ("[]", r"scores\.json has no suites"),
        ('{"schema": 2, "suites": {}}', r"scores\.json has schema 2; this version reads 1"),
        ('{"schema": 1, "suites": {"demo": 3}}', r"scores\.json is not as expected"),
    ],
)
def test_scores_that_cannot_be_read_are_refused_and_nothing_is_written(run, content, message):
    (run / "scores.json").unlink()
    if content is not None:
        (run / "scores.json").write_text(content, encoding="utf-8")
    with pytest.raises(RunError, match=message):
        write_report(run)
    assert not list(run.glob("*report*"))


def luminance(colour):
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_all_colours_have_a_contrast_of_at_least_four_and_a_half():
    css = resources.files("isogloss.report").joinpath("page.css.jinja").read_text(encoding="utf-8")
    steps = re.findall(r"\.h\d \{ background: (#\w{6}); color: (#\w{6}); \}", css)
    assert len(steps) == 20  # ten for light, ten for dark
    assert min(contrast(*pair) for pair in steps) >= 4.5
    schemes = css.split("@media screen and (prefers-color-scheme: dark)")
    for scheme in schemes:
        colour = dict(re.findall(r"--(\w+): (#\w{6});", scheme))
        for ink in ("ink", "soft", "accent", "good", "bad"):
            assert contrast(colour[ink], colour["paper"]) >= 4.5, ink
            assert contrast(colour[ink], colour["raised"]) >= 4.5, ink


def test_the_report_loads_no_torch():
    code = "import sys, isogloss.report; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.chromium
def test_chromium_opens_the_page_without_an_error(run, tmp_path):
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        pytest.skip("Chromium is not installed: apt-get install chromium")
    flags = "--headless --no-sandbox --disable-gpu --enable-logging=stderr --v=0 --dump-dom --no-first-run"
    flags += (
        " --disable-background-networking --disable-component-update --disable-sync --window-size=360,800"
    )
    command = [browser, *flags.split(), f"--user-data-dir={tmp_path / 'profile'}"]
    address = write_report(run).as_uri()
    done = subprocess.run([*command, address], capture_output=True, text=True, timeout=120, check=False)
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert (done.returncode, console) == (0, [])
    assert "<h1>english-to-twelve</h1>" in done.stdout
    assert "<script" not in done.stdout
