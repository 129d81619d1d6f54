"""The page for trying out a run: its endpoints, and how a browser shows it."""

import json
import os
from pathlib import Path

import pytest
import torch
from browser import chromium
from served import http_get, http_post, serving

from isogloss.serve.guard import Access

MARKUP = "<img src=x onerror=\"document.title='run'\"><script>alert(1)</script><b>sw</b>"
ANSWERS = {
    None: "<style>*{display:none}</style> As before.",
    "en": "At the market, every morning.",
    "sw": MARKUP,
    "ru": "На рынке, каждое утро.",
    "ur": "بازار سے، ہر صبح۔",
}
TWINS = {
    "en": "Where did Maria buy bread?",
    "sw": "Maria alinunua mkate wapi?",
    "ru": "Где Мария купила хлеб?",
    "ur": "ماریا نے روٹی کہاں سے خریدی؟",
}


@pytest.fixture
def speaking(aligned, monkeypatch):
    """A model that gives fixed answers, one token at a time, and records its prompts."""
    tokenizer = aligned.run.tokenizer
    asked = []

    def complete(prompts, codes, most, *, streamer, stopped):
        codes = codes or [None] * len(prompts)
        asked.extend(zip(codes, map(tokenizer.decode, prompts), strict=True))
        rows = [[*tokenizer(ANSWERS[code]).input_ids[: most - 1], 1] for code in codes]
        for step in range(max(map(len, rows))):
            streamer.put(torch.tensor([row[step] if step < len(row) else 1 for row in rows]))
            if all(stopped(row) for row in range(len(rows))):
                break

    monkeypatch.setattr(aligned, "complete", complete)
    aligned.asked = asked
    return aligned


def write_run(folder: Path) -> None:
    """Write the files of an evaluation with two items, one of them without Urdu."""
    (folder / "predictions").mkdir(exist_ok=True)
    scores = {"schema": 1, "isogloss": "0.1.0", "suites": {"demo": {}}}
    (folder / "scores.json").write_text(json.dumps(scores))
    rows = [
        {"id": number, "language": code, "instruction": TWINS[code], "english_instruction": TWINS["en"]}
        for number in ("one", "two")
        for code in ("sw", "ru", "ur")
        if (number, code) != ("two", "ur")
    ]
    for side in ("before", "after"):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"predictions/demo.{side}.jsonl").write_text(lines)
    (folder / "report.html").write_text("<!doctype html><title>report</title><h1>Report</h1>")


@pytest.fixture
def evaluated(speaking):
    """The same model, with the files of an evaluated run."""
    folder = speaking.run.folder
    write_run(folder)
    yield speaking
    for name in (
        "scores.json",
        "report.html",
        "predictions/demo.before.jsonl",
        "predictions/demo.after.jsonl",
    ):
        (folder / name).unlink()


def answers(port, body, **headers):
    found = http_post(f"http://127.0.0.1:{port}/answers", json=body, headers=headers)
    assert found.status_code == 200, found.text
    return [json.loads(line) for line in found.text.splitlines()]


def joined(lines):
    said = {}
    for line in lines:
        for code in line["codes"]:
            said[line["side"], code] = said.get((line["side"], code), "") + line["text"]
    return said


def test_an_instruction_is_answered_in_every_language_before_and_after(speaking):
    """The reference model is asked once; each line names its answer, and the last one says how it ended."""
    with serving(speaking, longest=200) as (port, _):
        first, *lines = answers(port, {"text": "Где Мария купила хлеб?"})
    assert first == {"detected": "ru"}
    codes = ("en", "sw", "ru", "ur")
    wanted = {("after", code): ANSWERS[code] for code in codes}
    assert joined(lines) == wanted | {("before", code): ANSWERS[None] for code in codes}
    assert sorted(speaking.asked, key=str) == sorted(
        ((code, "<|user|>Где Мария купила хлеб?<|end|><|assistant|>") for code in (None, *codes)), key=str
    )
    ends = {(line["side"], *line["codes"]): line for line in lines if "finish" in line}
    assert len(ends) == 5
    assert ends["after", "ur"]["detected"] == "ur" and ends["after", "ru"]["detected"] == "ru"
    assert ends["after", "en"]["finish"] == "stop"
    assert ends["after", "en"]["tokens"] == len(ANSWERS["en"]) + 1  # one token per byte, plus the end
    assert 0 < ends["after", "en"]["seconds"] < 60
    assert len(lines) > 50  # streamed in pieces


def test_each_language_gets_its_own_twin(speaking):
    """This also holds before training; a language without a twin gets the text itself."""
    twins = {code: TWINS[code] for code in ("ru", "ur")}
    with serving(speaking) as (port, _):
        answers(port, {"text": TWINS["en"], "twins": twins, "max_tokens": 3})
    prompts = {code: f"<|user|>{text}<|end|><|assistant|>" for code, text in TWINS.items()}
    assert sorted(speaking.asked, key=str) == sorted(
        [
            *((None, prompts[code]) for code in ("en", "ru", "ur")),
            *((code, prompts[code if code in twins else "en"]) for code in TWINS),
        ],
        key=str,
    )


def test_the_page_offers_instructions_that_exist_in_every_language(evaluated):
    """The report is offered too."""
    with serving(evaluated) as (port, _):
        about = http_get(f"http://127.0.0.1:{port}/page.json").json()
        report = http_get(f"http://127.0.0.1:{port}/report")
    assert about["examples"] == [TWINS] and about["report"] is True and about["longest"] == 48
    assert [one["code"] for one in about["languages"]] == ["en", "sw", "ru", "ur"]
    assert about["languages"][3] == {
        "code": "ur",
        "name": "Urdu",
        "autonym": "اردو",
        "bcp47": "ur",
        "direction": "rtl",
    }
    assert "script-src" not in report.headers["content-security-policy"]
    assert "<h1>Report</h1>" in report.text


def test_a_run_without_scores_has_no_examples_and_no_report(speaking):
    with serving(speaking) as (port, _):
        about = http_get(f"http://127.0.0.1:{port}/page.json").json()
        assert about["examples"] == [] and about["report"] is False
        assert http_get(f"http://127.0.0.1:{port}/report").status_code == 404


def test_a_run_that_is_evaluated_while_it_is_served_gets_its_examples(speaking, request):
    with serving(speaking) as (port, _):
        address = f"http://127.0.0.1:{port}/page.json"
        assert http_get(address).json()["examples"] == []
        request.getfixturevalue("evaluated")
        assert http_get(address).json()["examples"] == [TWINS]


def test_the_page_loads_only_its_own_files(speaking):
    """Its content security policy says so, and it contains no address of another host."""
    with serving(speaking) as (port, _):
        for path, kind in (("/", "text/html"), ("/page.css", "text/css"), ("/page.js", "text/javascript")):
            found = http_get(f"http://127.0.0.1:{port}{path}")
            assert found.headers["content-type"] == f"{kind}; charset=utf-8"
            assert "default-src 'none'; script-src 'self';" in found.headers["content-security-policy"]
            assert "http://" not in found.text and "https://" not in found.text
            assert "innerHTML" not in found.text and "style=" not in found.text


def test_everything_but_the_page_itself_needs_the_key(evaluated):
    """This covers answers, the data of the run, and its report."""
    with serving(evaluated, access=Access("s3cret")) as (port, _):
        address = f"http://127.0.0.1:{port}"
        status = {
            path: http_get(address + path).status_code
            for path in ("/", "/page.css", "/page.js", "/page.json", "/report", "/v1/models", "/other")
        }
        assert status == {
            "/": 200,
            "/page.css": 200,
            "/page.js": 200,
            "/page.json": 401,
            "/report": 401,
            "/v1/models": 401,
            "/other": 401,
        }
        assert http_post(f"{address}/answers", json={"text": "a"}).status_code == 401
        assert answers(port, {"text": "a"}, Authorization="Bearer s3cret")


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"text": ""}, "text: string should have at least 1 character"),
        ({"text": "a", "twins": {"sw": 1}}, "twins.sw: input should be a valid string"),
        ({"text": "a", "other": 1}, "other: not supported; leave it out"),
        (
            {"text": "a" * 1100},
            "the messages have 1103 tokens; the model's limit is 1024 including its answer; shorten them",
        ),
    ],
)
def test_an_invalid_instruction_is_refused(body, says, speaking):
    """It is refused before anything is answered."""
    with serving(speaking) as (port, _):
        found = http_post(f"http://127.0.0.1:{port}/answers", json=body)
    assert (found.status_code, found.json()["error"]["message"]) == (400, says)
    assert speaking.asked == []


@pytest.mark.chromium
def test_a_browser_shows_answers_as_text_and_contacts_no_other_host(evaluated, tmp_path):
    """An instruction is sent by keyboard and answered in every language; markup in answers stays text.

    Screenshots are saved if ISOGLOSS_PICTURES names a folder.
    """
    pictures = os.environ.get("ISOGLOSS_PICTURES")
    keyed = serving(evaluated, access=Access("s3cret"), longest=200)
    with keyed as (port, _), chromium(tmp_path) as tab:
        tab.go(f"http://127.0.0.1:{port}/")
        tab.until("!document.getElementById('unlock').hidden")
        tab.do("Input.insertText", text="s3cret")
        tab.press("Enter", 13)
        tab.until("document.activeElement.id === 'text'")
        refused = tab.complaints()
        assert len(refused) == 1 and "401" in refused[0]
        tab.events.clear()
        tab.do("Input.insertText", text=TWINS["en"])
        tab.press("Enter", 13)
        tab.until("document.getElementById('status').textContent.includes('8 answers in')")
        said = tab.run("[...document.querySelectorAll('.said')].map((one) => one.textContent)")
        assert said == [text for code in ("en", "sw", "ru", "ur") for text in (ANSWERS[None], ANSWERS[code])]
        assert tab.run("document.querySelectorAll('main img, main script, main style, main b').length") == 0
        assert tab.run("document.title").endswith(": one instruction, every language")
        marks = "[...document.querySelectorAll('.said')].map((one) => `${one.lang} ${one.dir}`)"
        assert tab.run(marks)[5::2] == ["ru ltr", "ur rtl"]
        assert tab.run("document.getElementById('status').textContent").startswith("Read as English. ")
        verdicts = "[...document.querySelectorAll('.marks')].map((one) => one.firstChild.textContent)"
        assert tab.run(verdicts)[1::2] == ["✓ in English", "in English", "in Russian", "in Urdu"]
        choose = "const o = document.getElementById('example'); o.value = '0';"
        tab.run(choose + "o.dispatchEvent(new Event('change')); document.getElementById('text').focus()")
        tab.press("Enter", 13)
        tab.until("document.querySelectorAll('.asked').length === 4")
        tab.until("document.getElementById('status').textContent.includes('8 answers in')")
        asked = "[...document.querySelectorAll('.asked')].map((one) => one.textContent)"
        assert tab.run(asked) == [TWINS[code] for code in ("en", "sw", "ru", "ur")]
        assert tab.run(verdicts)[1::2] == ["✓ in English", "✗ in English", "✓ in Russian", "✓ in Urdu"]
        wide = "document.documentElement.scrollWidth > document.documentElement.clientWidth"
        tab.look(tmp_path / "phone.png", width=360, height=740)
        assert tab.run(wide) is False
        if pictures:
            tab.look(Path(pictures) / "phone.png", width=360, height=740)
            tab.look(Path(pictures) / "light.png")
            tab.look(Path(pictures) / "dark.png", dark=True)
        assert tab.complaints() == []
