"""Translating through a real HTTP server on loopback, with faults: nothing is lost or requested twice."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest
from chat_endpoint import BACK, SWAHILI, Endpoint

from isogloss.cli import main
from isogloss.config import Endpoint as Settings
from isogloss.data.formats import parallel_jsonl
from isogloss.endpoint import Client
from isogloss.errors import ConfigError
from isogloss.translate import answers
from isogloss.translate.answers import Answer, Spent, Wanted
from isogloss.translate.prompt import load_prompt
from isogloss.translate.served import Served, translations

TEXTS = list(SWAHILI)


@pytest.fixture
def endpoint(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with Endpoint().serving() as made:
        yield made


@pytest.fixture
def data(tmp_path):
    """Write Alpaca rows: eight instructions, the last two with the same response."""
    path = tmp_path / "english.jsonl"
    rows = [{"instruction": text} for text in TEXTS[:6]]
    rows += [{"instruction": TEXTS[6], "output": TEXTS[7]}, {"instruction": TEXTS[7], "output": TEXTS[7]}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def arguments(endpoint, data, *more):
    out = data.parent / "out.jsonl"
    return [
        "translate", str(data), "--to", "sw", "--out", str(out), "--url", endpoint.url, "--model", "mt",
        "--backoff", "0.01", *more,
    ]  # fmt: skip


def command(*given):
    with pytest.raises(SystemExit) as ended:
        main(*given)
    return ended.value.code


def result(data):
    return parallel_jsonl.read(data.parent / "out.jsonl")


def report(data, name="report.json"):
    return json.loads((data.parent / "out.translate" / name).read_text("utf-8"))


def dropped(data):
    lines = (data.parent / "out.translate" / "dropped.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines]


def test_a_file_becomes_parallel_and_each_text_is_requested_once(endpoint, data):
    """One of the eight different texts occurs three times; the second call requests nothing."""
    assert command(arguments(endpoint, data, "--texts", "3")) == 0
    found = result(data)
    assert [one.turns["sw"].instruction for one in found] == [SWAHILI[text] for text in TEXTS]
    assert [one.turns["sw"].response for one in found] == [None] * 6 + [SWAHILI[TEXTS[7]]] * 2
    assert [one.turns["en"].instruction for one in found] == TEXTS
    assert endpoint.asked == Counter(TEXTS)
    assert len(endpoint.bodies) == 3
    assert report(data)["spent"] | {"seconds": 0} == {
        "requests": 3, "tokens_read": 80, "tokens_written": 24, "seconds": 0,
    }  # fmt: skip
    card = (data.parent / "out.translate" / "README.md").read_text("utf-8")
    assert card.startswith("---\nlanguage:\n- en\n- sw\n---\n# Translated instructions\n")
    assert "| Swahili | 8 | none |" in card and "- Where is the library? → Maktaba iko wapi?" in card
    assert command(arguments(endpoint, data, "--texts", "2")) == 0  # the number per request changes no answer
    assert endpoint.asked == Counter(TEXTS)
    assert report(data)["texts"] == {"needed": 8, "asked_now": 0}
    assert report(data)["spent"]["requests"] == 3 and report(data)["spent_now"]["requests"] == 0


@pytest.mark.parametrize("fault", [(500, {}), (429, {"retry-after": "0"}), "drop", "cut", "half"])
def test_a_request_with_a_temporary_fault_is_repeated(endpoint, data, fault):
    """One text is requested twice, another four times; the file is the same as without faults."""
    endpoint.faults = {TEXTS[1]: [fault], TEXTS[4]: [fault] * 3}
    assert command(arguments(endpoint, data, "--texts", "1")) == 0
    assert [one.turns["sw"].instruction for one in result(data)] == list(SWAHILI.values())
    assert endpoint.asked == Counter(TEXTS) + Counter({TEXTS[1]: 1, TEXTS[4]: 3})


def test_a_request_that_times_out_is_repeated(endpoint, data):
    endpoint.faults = {TEXTS[0]: ["slow"]}
    assert command(arguments(endpoint, data, "--texts", "1", "--timeout", "3")) == 0
    assert endpoint.asked == Counter(TEXTS) + Counter({TEXTS[0]: 1})


def test_retry_after_is_waited_for(endpoint, data):
    """0.7 seconds, with one request at a time."""
    endpoint.faults = {TEXTS[0]: [(429, {"retry-after": "0.7"})]}
    assert command(arguments(endpoint, data, "--texts", "1", "--concurrency", "1")) == 0
    (first, _), (second, _), *_ = endpoint.times
    assert second - first >= 0.69


def test_concurrency_and_rate_are_limited(endpoint, data):
    """Two at a time and ten a second: eight requests take at least 0.7 seconds."""
    endpoint.pause = 0.1
    assert command(arguments(endpoint, data, "--texts", "1", "--concurrency", "2", "--rate", "10")) == 0
    times = [moment for moment, _ in endpoint.times]
    assert endpoint.most <= 2 and max(times) - min(times) >= 0.65


@pytest.mark.parametrize("fault", ["one too few", "one too many", "length", "nothing"])
def test_an_answer_with_a_wrong_count_is_requested_again_in_halves(endpoint, data, fault):
    """One request of four texts fails, two of two succeed; no text gets the translation of another."""
    endpoint.faults = {TEXTS[1]: [fault]}
    assert command(arguments(endpoint, data, "--texts", "4")) == 0
    assert [one.turns["sw"].instruction for one in result(data)] == list(SWAHILI.values())
    assert endpoint.asked == Counter(TEXTS) + Counter(TEXTS[:4])
    assert report(data)["spent"]["requests"] == 4


@pytest.mark.parametrize(
    ("fault", "reason", "detail"),
    [
        ("in English", "copy", "it is the English text"),
        ("length", "no translation", "cut off"),
        ("nothing", "no translation", "no answer"),
        ("one too many", "no translation", "no translation in its tags"),
    ],
)
def test_a_text_that_stays_wrong_is_left_out_with_its_reason(endpoint, data, fault, reason, detail):
    """It is requested once, alone; nothing replaces it, and the next call requests nothing."""
    endpoint.faults = {TEXTS[2]: [fault]}
    for _ in range(2):
        assert command(arguments(endpoint, data, "--texts", "1")) == 0
        found = result(data)
        assert [("sw" in one.turns) for one in found] == [True, True, False, True, True, True, True, True]
        assert [one | {"text": None, "details": one["details"][0]} for one in dropped(data)] == [
            {
                "id": "3", "language": "sw", "part": "instruction", "english": TEXTS[2], "text": None,
                "reason": reason, "details": f"{reason}: {detail}",
            }
        ]  # fmt: skip
        assert report(data)["kept"] == {"sw": 7} and report(data)["dropped"] == {"sw": {reason: 1}}
    assert endpoint.asked == Counter(TEXTS)


def test_answers_before_a_refusal_are_kept(endpoint, data, capsys):
    """A 400 ends the job with one line and no parallel file; the next call only requests the rest."""
    endpoint.faults = {TEXTS[5]: [(400, {})]}
    assert command(arguments(endpoint, data, "--texts", "1", "--concurrency", "1")) == 2
    assert f'error --url: {endpoint.url} answered 400: {{"error": "no"}}\n' in capsys.readouterr().err
    assert not (data.parent / "out.jsonl").exists()
    before = Counter(endpoint.asked)
    assert before.total() >= 6
    assert command(arguments(endpoint, data, "--texts", "1")) == 0
    assert endpoint.asked == Counter(TEXTS) + Counter({TEXTS[5]: 1})


def test_a_killed_process_resumes_where_it_was(endpoint, data):
    """SIGKILL after three answers; at most the requests that were under way are repeated."""
    endpoint.pause = 0.2
    line = [
        sys.executable,
        "-m",
        "isogloss",
        *arguments(endpoint, data, "--texts", "1", "--concurrency", "2"),
    ]
    first = subprocess.Popen(line, stdout=subprocess.DEVNULL)
    journal = data.parent / "out.translate" / "answers.jsonl"
    until = time.monotonic() + 120
    while time.monotonic() < until and not (journal.exists() and journal.read_bytes().count(b"\n") >= 3):
        time.sleep(0.02)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    there = journal.read_bytes().count(b"\n")
    assert 3 <= there < 8 and not (data.parent / "out.jsonl").exists()
    asked = endpoint.asked.total()
    assert command(arguments(endpoint, data, "--texts", "1")) == 0
    assert endpoint.asked.total() - asked == 8 - there and max(endpoint.asked.values()) <= 2
    assert [one.turns["sw"].instruction for one in result(data)] == list(SWAHILI.values())


def test_another_prompt_only_requests_the_texts_it_affects(endpoint, data, tmp_path):
    """Only texts with a term of the glossary are requested again."""
    assert command(arguments(endpoint, data)) == 0
    (tmp_path / "prompt.yaml").write_text("glossary: {swahili: {rice: mchele}, ur: {library: x}}\n")
    assert command(arguments(endpoint, data, "--prompt", str(tmp_path / "prompt.yaml"))) == 0
    assert endpoint.asked == Counter(TEXTS) + Counter({"How do you cook rice with coconut?": 1})
    assert "rice: mchele" in endpoint.bodies[-1]["messages"][0]["content"]


def test_a_glossarys_heading_may_name_the_language(tmp_path):
    """It is filled in like the rest of the prompt; $$ is a dollar sign."""
    (path := tmp_path / "prompt.yaml").write_text(
        'glossary_heading: "In $language ($$):"\nglossary: {sw: {rice: mchele}}\n'
    )
    system = load_prompt(path).messages(["Cook rice"], "sw", "t")[0]["content"]
    assert "\nIn Swahili ($):\nrice: mchele" in system


def test_a_dry_run_requests_and_writes_nothing(endpoint, data, capsys):
    before = sorted(data.parent.rglob("*"))
    assert command(arguments(endpoint, data, "--dry-run")) == 0
    assert endpoint.asked == Counter() and sorted(data.parent.rglob("*")) == before
    said = capsys.readouterr().out
    assert "8 texts to translate, 8 of them not translated yet\n" in said and ": 1 requests; about " in said


def test_the_key_comes_from_the_environment(endpoint, data, monkeypatch, capsys):
    """It is sent, but appears in no file and no message."""
    assert command(arguments(endpoint, data, "--key-env", "MT_KEY")) == 2
    assert "--key-env: the environment variable MT_KEY is not set" in capsys.readouterr().err
    monkeypatch.setenv("MT_KEY", "s3cret")
    assert command(arguments(endpoint, data, "--key-env", "MT_KEY")) == 0
    assert {h.get("Authorization") or h.get("authorization") for h in endpoint.headers} == {"Bearer s3cret"}
    written = b"".join(p.read_bytes() for p in data.parent.rglob("*") if p.is_file())
    assert b"s3cret" not in written and "s3cret" not in capsys.readouterr().out


def test_existing_translations_are_kept_and_not_requested(endpoint, tmp_path):
    """One instruction has Swahili already: the seven others are requested."""
    rows = [{"id": str(n), "en": {"instruction": text}} for n, text in enumerate(TEXTS)]
    rows[0]["sw"] = {"instruction": "Maktaba?"}
    data = tmp_path / "english.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert command(arguments(endpoint, data)) == 0
    assert endpoint.asked == Counter(TEXTS[1:])
    assert result(data)[0].turns["sw"].instruction == "Maktaba?"


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--to", "en"], "--to: English is the source language; leave it out"),
        (["--to", "swahilli"], "did you mean sw"),
        (["--to", ","], "--to: names no language; give codes such as sw,ur"),
        (["--out", "x.csv"], "--out x.csv: parallel data is written as JSON lines; name a .jsonl file"),
        (["--url", "127.0.0.1"], "--url: must be http(s)://…/v1, without a user name or key"),
        (["--url", "http://user:pw@host/v1"], "--url: must be http(s)://…"),
        (["--key-env", "sk-123"], "--key-env: must be the name of an environment variable"),
        (["--rate", "0"], "--rate: "),
        (["--least-chrf", "30"], "--least-chrf has no effect without --round-trip; leave it out"),
        (["--examples", "x.jsonl"], "--examples: not used with --url; leave it out"),
    ],
)
def test_an_invalid_option_is_refused_before_any_request(endpoint, data, capsys, more, says):
    assert command(arguments(endpoint, data, *more)) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1
    assert endpoint.asked == Counter() and list(data.parent.iterdir()) == [data]


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--rate", "3"], "--rate has no effect without --url; leave it out"),
        (["--prompt", "x.yaml"], "--prompt has no effect without --url; leave it out"),
        ([], "--model: demo is not a translation model; give parallel data"),
    ],
)
def test_a_local_model_takes_no_options_of_an_endpoint(data, capsys, more, says):
    out = str(data.parent / "out.jsonl")
    assert command(["translate", str(data), "--to", "sw", "--out", out, "--model", "demo", *more]) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1 and list(data.parent.iterdir()) == [data]


# --- the round trip


def test_texts_that_come_back_different_are_left_out(endpoint, data):
    """Seven come back as they were, and one as something else; nothing is requested twice."""
    endpoint.faults["Maktaba iko wapi?"] = ["another"]
    assert command(arguments(endpoint, data, "--texts", "1", "--round-trip")) == 0
    assert len(result(data)) == 8 and [one.id for one in result(data) if "sw" not in one.turns] == ["1"]
    (left,) = dropped(data)
    assert (left["english"], left["text"], left["reason"]) == (TEXTS[0], "Maktaba iko wapi?", "round trip")
    assert left["details"] == [
        "round trip: back-translation 'My cat sleeps on the roof.' has chrF 14, below 25"
    ]
    assert endpoint.asked == Counter(TEXTS) + Counter(list(BACK))
    told = {"from English into Swahili (Kiswahili)", "from Swahili into English (English)"}
    assert {re.search(r"from .*?\)", body["messages"][0]["content"])[0] for body in endpoint.bodies} == told  # type: ignore
    assert report(data)["round_trip"] == {"least": 25.0, "texts": 8, "asked_now": 8}
    assert report(data)["spent"]["requests"] == 16
    assert command(arguments(endpoint, data, "--round-trip", "--least-chrf", "10")) == 0
    assert endpoint.asked.total() == 16 and dropped(data) == []
    assert report(data)["round_trip"] == {"least": 10.0, "texts": 8, "asked_now": 0}


def test_only_translations_without_another_fault_are_translated_back(endpoint, data):
    """A copy of the English is not requested again; a text that never comes back is left out too."""
    endpoint.faults[TEXTS[1]] = ["in English"]
    lost = SWAHILI[TEXTS[2]]
    endpoint.faults[lost] = ["nothing"] * 9
    assert command(arguments(endpoint, data, "--texts", "1", "--round-trip")) == 0
    first, second = dropped(data)
    assert first["english"] == TEXTS[1] and second["details"] == ["round trip: the back-translation is empty"]
    assert SWAHILI[TEXTS[1]] not in endpoint.asked and endpoint.asked[lost] == 1


def test_the_round_trip_of_existing_translations_only_requests_the_way_back(endpoint, data, capsys):
    """A dry run says what it will cost: one request for eight texts."""
    assert command(arguments(endpoint, data)) == 0
    capsys.readouterr()
    assert command(arguments(endpoint, data, "--round-trip", "--dry-run")) == 0
    assert "Up to 8 translations to translate back: 1 requests; about " in capsys.readouterr().out
    assert command(arguments(endpoint, data, "--round-trip")) == 0
    assert endpoint.asked == Counter(TEXTS) + Counter(list(BACK))


def test_a_prompt_that_always_says_from_english_is_refused_for_the_round_trip(
    endpoint, data, tmp_path, capsys
):
    prompt = tmp_path / "prompt.yaml"
    prompt.write_text("system: From English into $language.\n")
    assert command(arguments(endpoint, data, "--prompt", str(prompt), "--round-trip")) == 2
    assert f"--round-trip: {prompt} does not use $source" in capsys.readouterr().err
    assert endpoint.asked == Counter()


# --- the parts


@pytest.mark.parametrize(
    ("content", "count", "found"),
    [
        ("<t1>Moja</t1>\n<t2>Mbili</t2>", 2, ["Moja", "Mbili"]),
        ("<t2>Mbili</t2><t1>Moja</t1>", 2, ["Moja", "Mbili"]),  # the number decides the order
        ("Hapa: <t1> Moja\nmbili </t1>.", 1, ["Moja\nmbili"]),
        ("<think>maybe <t1>x</t1></think><t1>Moja</t1>", 1, ["Moja"]),
        ("<think>hm</think><t1><think>Fikiri.</think>Jibu</t1>", 1, ["<think>Fikiri.</think>Jibu"]),
        (" Moja \n", 1, ["Moja"]),
        ("<t1>Moja</t1>", 2, None),
        ("<t1>Moja</t1><t1>Mbili</t1>", 2, None),
        ("<t1>Moja</t1><t2>Mbili</t2><t3>Tatu</t3>", 2, None),
        ("<t1>Moja</t1><t2></t2>", 2, None),
        ("<t1>Moja", 1, None),
        ("Moja\nMbili", 2, None),
        ("", 1, None),
    ],
)
def test_only_an_answer_with_every_number_once_is_accepted(content, count, found):
    assert translations(content, count, "t") == found


def test_texts_that_contain_the_tags_get_other_ones(tmp_path):
    """A text that contains <t1> is put between <tt1>, and the prompt says so."""
    asked = []

    class Client:
        def post(self, path, body):
            asked.append(body["messages"])
            return {"choices": [{"message": {"content": "<tt1>Weka <t1> hapa</tt1>"}}]}

    kept = []
    served = Served(Settings(url="http://h/v1", model="m"), load_prompt(), 8)
    served._ask(Client(), [Wanted("Put <t1> here", "sw")], lambda one, answer: kept.append(answer))  # type: ignore
    assert kept[0].text == "Weka <t1> hapa"
    assert asked[0][1]["content"] == "<tt1>Put <t1> here</tt1>"
    assert "<tt1>…</tt1>" in asked[0][0]["content"] and "<t1>" not in asked[0][0]["content"]


@pytest.mark.parametrize("said", [None, [], {"choices": []}, {"choices": [{"message": {"content": 3}}]}])
def test_another_kind_of_server_is_refused_in_one_line(said):
    served = Served(Settings(url="http://h/v1", model="m"), load_prompt(), 8)
    with pytest.raises(ConfigError, match=r"^--url: http://h/v1 returns no chat completion; give the URL"):
        served._read(said)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("systm: x", "'systm' is not an entry; did you mean system?"),
        ("user: Translate this.", "user lacks $texts"),
        ("system: to $lang", "system: $lang is unknown; available: autonym, code, glossary"),
        ("system: costs 5$", "system: write a literal dollar sign as $$"),
        ("keep: ['(']", "keep: '(' is not a regular expression"),
        ("glossary: {xx: {a: b}}", "glossary: 'xx' is not a known language code"),
        ("glossary: {sw: [a]}", "glossary: sw must map English terms to texts"),
        ("request: 3", "request is a int, not a mapping"),
        ("[]", "contains no entries; give some of system, user"),
        ("a: [", "not YAML: "),
    ],
)
def test_an_invalid_prompt_is_refused_in_one_line(tmp_path, text, says):
    path = tmp_path / "prompt.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as error:
        load_prompt(path)
    assert says in str(error.value) and "\n" not in str(error.value)


def test_norwegian_is_a_language_in_a_glossary(tmp_path):
    (path := tmp_path / "prompt.yaml").write_text("glossary: {no: {book: bok}}")
    assert load_prompt(path).glossary == {"nb": {"book": "bok"}}


def test_a_language_named_twice_in_a_glossary_keeps_all_its_terms(tmp_path):
    (path := tmp_path / "prompt.yaml").write_text(
        "glossary: {sw: {bank: benki}, Swahili: {cafe\u0301: mkahawa}}"
    )
    assert load_prompt(path).glossary == {"sw": {"bank": "benki", "caf\u00e9": "mkahawa"}}


@pytest.mark.parametrize("url", ["http://localhost:port/v1", "http://[::1/v1", "http://a..b/v1"])
def test_an_invalid_url_is_refused_in_one_line(url):
    client = Client(Settings(url=url, model="m"), "--url", "--key-env")
    with client, pytest.raises(ConfigError) as error:
        client.post("chat/completions", {})
    assert str(error.value).startswith(f"--url: {url!r} is not a valid URL (")
    assert "\n" not in str(error.value)


def test_answers_are_read_back_from_the_journal(tmp_path):
    """A translation and a refusal with their cost; a torn line and one without an answer are ignored."""
    path = tmp_path / "a.jsonl"
    first, second = Answer("Ndiyo", "", Spent(1, 10, 3, 0.5)), Answer(None, "cut off")
    journal = answers.journal(path)
    journal.put("a", first)
    journal.put("b", second)
    with path.open("a") as file:
        file.write('{"key": "c", "spent": [0, 0, 0, 0]}\n{"key": "d", "te')
    found = answers.journal(path)
    assert found["a"] == first and found["b"] == second and len(found) == 2


def test_a_second_process_is_refused(endpoint, data):
    from isogloss.files import locked

    with locked(data.parent / "out.translate"):
        line = [sys.executable, "-m", "isogloss", *arguments(endpoint, data)]
        found = subprocess.run(line, capture_output=True, text=True, check=False)
    assert found.returncode == 2 and "is being written to by process" in found.stderr
