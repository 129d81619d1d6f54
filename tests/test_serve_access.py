"""Serving: who may ask, how much, and what happens to those who go away."""

import errno
import json
import logging
import re
import socket
import threading

import openai
import pytest
import torch
from served import http_post, serving, until

from isogloss.cli import main
from isogloss.errors import ConfigError
from isogloss.serve import batches, guard
from isogloss.serve.guard import Access
from isogloss.serve.starting import listen, open_record

TURN = [{"role": "user", "content": "Habari"}]
ASK = {"model": "sw", "messages": TURN, "max_tokens": 2}


@pytest.fixture(scope="module")
def guarded(aligned):
    """Wants a key, and is known under another name too."""
    with serving(aligned, access=Access("s3cret", frozenset({"answers.example"}))) as (port, _):
        yield port


def raw(port: int, request: bytes) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of what comes back for these very bytes."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(request)
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
    head, _, body = answer.partition(b"\r\n\r\n")
    first, *rest = head.decode().split("\r\n")
    return int(first.split()[1]), {k.lower(): v for k, v in (one.split(": ", 1) for one in rest)}, body


def get(port: int, path: str, *headers: str, host: str = "127.0.0.1") -> tuple[int, dict, bytes]:
    lines = [f"GET {path} HTTP/1.1", f"Host: {host}", *headers, "Connection: close"]
    return raw(port, ("\r\n".join(lines) + "\r\n\r\n").encode())


KEY = "Authorization: Bearer s3cret"


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1", 200),
        ("localhost:9000", 200),  # a forwarded port
        ("LOCALHOST.", 200),
        ("[::1]:8000", 200),
        ("Answers.Example:8000", 200),
        ("rebound.example", 403),
        ("answers.example.evil.example", 403),
        ("127.0.0.1.evil.example", 403),
        ("127.0.0.1@evil.example", 403),
        ("127.0.0.1:80:80", 403),
        ("8.8.8.8", 403),
    ],
)
def test_a_request_has_to_name_this_endpoint_as_its_host(host, status, guarded):
    """A name that somebody else points here is a page of theirs; ports may be forwarded."""
    found, _, body = get(guarded, "/v1/models", KEY, host=host)
    assert found == status
    if status == 403:
        assert json.loads(body)["error"] == {
            "message": f"Host: {host} is no name of this endpoint; if it is, start it with --allow-host",
            "type": "invalid_request_error",
            "param": None,
            "code": None,
        }


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://localhost:8000", 200),
        ("https://localhost:8000", 200),  # behind a proxy that speaks TLS
        ("http://localhost:3000", 403),
        ("http://localhost", 403),
        ("https://evil.example", 403),
        ("null", 403),
        ("", 403),
    ],
)
def test_pages_of_other_sites_may_not_ask(origin, status, guarded):
    """Nor do they get CORS permission, with the key or without it."""
    found, headers, _ = get(guarded, "/v1/models", KEY, f"Origin: {origin}", host="localhost:8000")
    assert found == status
    assert not [name for name in headers if name.startswith("access-control")]
    ask = f"OPTIONS /v1/chat/completions HTTP/1.1\r\nHost: localhost:8000\r\nOrigin: {origin}\r\n"
    ask += "Access-Control-Request-Method: POST\r\nConnection: close\r\n\r\n"
    found, headers, _ = raw(guarded, ask.encode())
    assert found in (401, 403) and not [name for name in headers if name.startswith("access-control")]


@pytest.mark.parametrize(
    ("header", "status"),
    [
        ("Bearer s3cret", 200),
        ("bearer  s3cret", 200),
        ("Bearer s3cre", 401),
        ("Bearer s3crets", 401),
        ("Bearer S3CRET", 401),
        ("Basic s3cret", 401),
        ("s3cret", 401),
        ("Bearer", 401),
        ("Bearer s3cret, Bearer other", 401),
        ("Bearer \xff", 401),
    ],
)
def test_only_the_key_opens(header, status, guarded):
    """Also what is close to it, and what is not ASCII."""
    request = f"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nAuthorization: {header}\r\nConnection: close"
    found, headers, body = raw(guarded, (request + "\r\n\r\n").encode("latin-1"))
    assert found == status
    if status == 401:
        assert headers["www-authenticate"] == "Bearer"
        assert json.loads(body)["error"] == {
            "message": "Authorization: send the key as Bearer KEY",
            "type": "invalid_request_error",
            "param": None,
            "code": "invalid_api_key",
        }


def test_without_the_key_nothing_is_read(guarded):
    """A wrong key, a foreign host: refused before the body has come."""
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\n"
    head += "Content-Length: 1000\r\nConnection: close\r\n\r\n"
    assert raw(guarded, head.format("localhost").encode())[0] == 401
    assert raw(guarded, head.format("evil.example").encode())[0] == 403


def test_the_official_client_sends_the_key_and_hears_when_it_is_wrong(guarded):
    """As an error of its own."""
    address = f"http://127.0.0.1:{guarded}/v1"
    with openai.OpenAI(base_url=address, api_key="s3cret", max_retries=0) as client:
        assert client.chat.completions.create(**ASK).choices
    with (
        openai.OpenAI(base_url=address, api_key="other", max_retries=0) as client,
        pytest.raises(openai.AuthenticationError) as caught,
    ):
        client.chat.completions.create(**ASK)
    assert caught.value.code == "invalid_api_key"


def test_every_answer_says_how_browsers_are_to_treat_it(guarded):
    """Not kept, not guessed at, not framed, not embedded by others; refusals too."""
    for header in (KEY, "X: y"):
        _, headers, _ = get(guarded, "/v1/models", header)
        assert headers["cache-control"] == "no-store"
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"
        assert headers["cross-origin-resource-policy"] == "same-origin"


@pytest.mark.parametrize(
    ("key", "hosts", "says"),
    [
        ("", (), "the key must be one or more printable ASCII characters without blanks"),
        ("a b", (), "the key must be one or more printable ASCII characters without blanks"),
        ("schlüssel", (), "the key must be one or more printable ASCII characters without blanks"),
        (None, ("http://a",), "'http://a' is no host; name it without scheme, port and path"),
        (None, ("a:80",), "'a:80' is no host; name it without scheme, port and path"),
    ],
)
def test_a_key_or_host_that_no_request_could_send_is_refused(key, hosts, says):
    """When the server is started."""
    with pytest.raises(ConfigError) as caught:
        Access(key, frozenset(hosts))
    assert str(caught.value) == says


def test_a_key_is_not_shown():
    """Where an object is printed."""
    assert "s3cret" not in repr(Access("s3cret"))


@pytest.mark.parametrize(
    ("host", "options", "says"),
    [
        (
            "0.0.0.0",
            {},
            "--host: 0.0.0.0 is reached from other machines; name a key with --api-key-env, or answer "
            "whoever asks with --without-key",
        ),
        (
            "127.0.0.1",
            {"without_key": True},
            "--without-key: 127.0.0.1 is reached from this machine alone; leave it out",
        ),
        (
            "0.0.0.0",
            {"without_key": True, "key_env": "SERVE_KEY"},
            "--without-key: --api-key-env names a key; leave one of them out",
        ),
        (
            "0.0.0.0",
            {"key_env": "NO_SUCH_KEY"},
            "--api-key-env: the environment variable NO_SUCH_KEY is not set; put the key there",
        ),
    ],
)
def test_beyond_the_loopback_a_key_is_wanted_or_the_word_that_none_is(host, options, says, monkeypatch):
    """And a word that changes nothing is refused."""
    monkeypatch.setenv("SERVE_KEY", "s3cret")
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    with pytest.raises(ConfigError) as caught:
        listen(host, 0, options.pop("key_env", None), **options)
    assert str(caught.value) == says


def test_the_command_refuses_before_the_model_is_loaded(aligned, capsys):
    """In one line, with exit code 2."""
    with pytest.raises(SystemExit) as caught:
        main(["serve", str(aligned.run.folder), "--host", "0.0.0.0", "--port", "0"])
    assert caught.value.code == 2
    assert capsys.readouterr().err == (
        "error --host: 0.0.0.0 is reached from other machines; name a key with --api-key-env, or answer "
        "whoever asks with --without-key\n"
    )


@pytest.mark.parametrize(
    ("host", "options"),
    [
        ("127.0.0.1", {}),
        ("127.0.0.1", {"key_env": "SERVE_KEY"}),
        ("localhost", {}),
        ("0.0.0.0", {"key_env": "SERVE_KEY"}),
        ("0.0.0.0", {"without_key": True}),
    ],
)
def test_what_is_safe_is_listened_on(host, options, monkeypatch):
    """The key comes from the environment."""
    monkeypatch.setenv("SERVE_KEY", "s3cret")
    listening, access = listen(host, 0, options.pop("key_env", None), **options)
    listening.close()
    assert access.key in ("s3cret", None) and access.knows("localhost", None)


def test_ipv6_is_listened_on():
    """Where the machine has it."""
    if not socket.has_ipv6:
        pytest.skip("no IPv6")
    try:
        listening, access = listen("::1", 0, None)
    except ValueError as error:
        pytest.skip(str(error))
    listening.close()
    assert access.knows("[::1]:80", None)


class Held:
    """A model that stops before its second token until it may go on, and counts steps and batches."""

    def __init__(self, model, monkeypatch):
        self.go, self.steps, self.batches = threading.Event(), 0, []
        complete = model.complete

        def counted(prompts, codes, most, *, streamer, stopped):
            self.batches.append(streamer.batch)

            def waiting(row):
                self.steps += 1
                self.go.wait(60)
                return stopped(row)

            return complete(prompts, codes, most, streamer=streamer, stopped=waiting)

        monkeypatch.setattr(model, "complete", counted)


def post(body: bytes, *headers: str) -> bytes:
    lines = ["POST /v1/chat/completions HTTP/1.1", "Host: localhost", "Content-Type: application/json"]
    lines += [f"Content-Length: {len(body)}", *headers]
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + body


@pytest.mark.parametrize("stream", [False, True])
def test_who_hangs_up_costs_nothing_more(stream, aligned, monkeypatch):
    """The answer under way ends long before its limit, and those that wait are never begun."""
    held = Held(aligned, monkeypatch)
    with serving(aligned, size=1, longest=400) as (port, app):
        body = json.dumps({**ASK, "max_tokens": 400, "stream": stream}).encode()
        connections = [socket.create_connection(("127.0.0.1", port)) for _ in range(3)]
        for connection in connections:
            connection.sendall(post(body))
        until(lambda: held.steps and len(app.state.batcher._queue) == 2)
        jobs = [*held.batches[0], *app.state.batcher._queue]
        for connection in connections:
            connection.close()
        until(lambda: all(job.left.is_set() for job in jobs))
        held.go.set()
        assert http_post(f"http://127.0.0.1:{port}/v1/chat/completions", json=ASK).status_code == 200
        assert len(held.batches) == 2
        assert held.steps <= 1 + ASK["max_tokens"]


def test_more_than_the_queue_holds_is_told_when_to_come_again(aligned, monkeypatch):
    """With 429; what waits is answered, and one that has hung up gives its place away."""
    held = Held(aligned, monkeypatch)
    with serving(aligned, size=1, waiting=2) as (port, app):
        batcher, body = app.state.batcher, post(json.dumps(ASK).encode(), "Connection: close")
        connections = [socket.create_connection(("127.0.0.1", port), timeout=60) for _ in range(3)]
        for number, connection in enumerate(connections):
            connection.sendall(body)
            until(lambda n=number: held.steps and len(batcher._queue) == n)
        status, headers, said = raw(port, body)
        assert status == 429 and int(headers["retry-after"]) >= 1
        error = json.loads(said)["error"]
        assert (error["type"], error["code"]) == ("requests", "rate_limit_exceeded")
        assert error["message"] == f"2 requests are waiting; ask again in {headers['retry-after']} s"
        connections[2].close()
        until(lambda: batcher._queue[1].left.is_set())
        with socket.create_connection(("127.0.0.1", port), timeout=60) as another:
            another.sendall(body)
            until(lambda: not any(one.left.is_set() for one in batcher._queue))
            held.go.set()
            for connection in (*connections[:2], another):
                assert connection.recv(12) == b"HTTP/1.1 200"
        for connection in connections[:2]:
            connection.close()


def test_a_body_that_is_too_large_is_refused_unread(guarded):
    """By what it says of itself, or once it is; the server goes on."""
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n{KEY}\r\n"
    head += "Content-Type: application/json\r\nConnection: close\r\n"
    declared = head + f"Content-Length: {guard.LARGEST + 1}\r\n\r\n"
    status, _, body = raw(guarded, declared.encode())
    assert status == 413
    assert json.loads(body)["error"]["message"] == "the body has more than 1 MiB; shorten the messages"


def test_a_body_that_never_comes_is_given_up(guarded, monkeypatch):
    """So a shutdown does not wait for it."""
    monkeypatch.setattr(guard, "PATIENCE", 0.2)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n{KEY}\r\n"
    head += "Content-Type: application/json\r\nContent-Length: 100\r\nConnection: close\r\n\r\n{"
    status, _, body = raw(guarded, head.encode())
    assert status == 408
    assert json.loads(body)["error"]["message"] == "the body was not there within 0 seconds"


def test_a_long_prompt_is_refused_whatever_the_model_reads(aligned):
    """Its limit is told."""
    with serving(aligned, longest_prompt=10) as (port, _):
        found = http_post(f"http://127.0.0.1:{port}/v1/chat/completions", json=ASK)
        assert found.status_code == 200
        long = ASK | {"messages": [{"role": "user", "content": "Habari yako"}]}
        found = http_post(f"http://127.0.0.1:{port}/v1/chat/completions", json=long)
    assert found.status_code == 400
    error = found.json()["error"]
    assert error["message"] == "the messages have 14 tokens and at most 10 are read here; shorten them"
    assert error["code"] == "context_length_exceeded"


SECRET = "Neno la siri 4711"


def test_a_failure_tells_no_prompt(aligned, monkeypatch, caplog, capfd):
    """Neither to the asker nor to the log, even where the error's own message holds one."""

    def fail(prompts, *args, **options):
        raise RuntimeError(f"cannot read {SECRET}")

    monkeypatch.setattr(aligned, "complete", fail)
    said = ASK | {"messages": [{"role": "user", "content": SECRET}]}
    with serving(aligned) as (port, _), caplog.at_level(logging.INFO):
        whole = http_post(f"http://127.0.0.1:{port}/v1/chat/completions", json=said)
        streamed = http_post(f"http://127.0.0.1:{port}/v1/chat/completions", json=said | {"stream": True})
        monkeypatch.setattr("isogloss.serve.app._code", fail)
        unforeseen = http_post(f"http://127.0.0.1:{port}/v1/chat/completions", json=said)
    message = "RuntimeError while answering"
    assert (whole.status_code, whole.json()["error"]["message"]) == (500, message)
    assert json.loads(streamed.text.split("data: ")[-1])["error"]["message"] == message
    assert (unforeseen.status_code, unforeseen.json()["error"]["message"]) == (500, message)
    assert message in caplog.text
    assert SECRET not in caplog.text + "".join(capfd.readouterr())


def test_prompts_are_written_down_where_that_is_asked_for(aligned, tmp_path):
    """As the model read them, with the answer, in a file that is its owner's alone."""
    file = tmp_path / "asked.jsonl"
    with open_record(file) as record, serving(aligned, record=record) as (port, _):
        found = http_post(f"http://127.0.0.1:{port}/v1/chat/completions", json=ASK).json()
    (row,) = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    answer = found["choices"][0]
    assert row == {
        "time": row["time"],
        "model": "sw",
        "prompt": "<|user|>Habari<|end|><|assistant|>",
        "answer": answer["message"]["content"],
        "finish": answer["finish_reason"],
    }
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", row["time"])
    assert file.stat().st_mode & 0o777 == 0o600


def test_a_record_that_others_could_read_is_closed_to_them(tmp_path):
    """It stays as it was but for who may read it."""
    file = tmp_path / "asked.jsonl"
    file.write_text("{}\n")
    file.chmod(0o644)
    with open_record(file):
        assert file.stat().st_mode & 0o777 == 0o600
    assert file.read_text() == "{}\n"


def rows(aligned, *limits, ends=(), record=None):
    """A batch's rows and, by row, the pieces that were heard."""
    heard = [[] for _ in limits]
    batch = [
        batches.Request((5, 6), "sw", limit, one.append, tuple(ends))
        for limit, one in zip(limits, heard, strict=True)
    ]
    stops = frozenset({aligned.run.tokenizer.eos_token_id})
    return batches._Rows(aligned.run.tokenizer, batch, stops, record), heard


def test_blanks_at_the_end_of_an_answer_are_not_told(aligned):
    """Nor kept in what is written down; those between words are."""
    tokenizer, written = aligned.run.tokenizer, []
    made, (heard,) = rows(aligned, 20, record=lambda request, prompt, text, finish: written.append(text))
    ids = tokenizer("Habari  yako \n\n", add_special_tokens=False)["input_ids"]
    for token in (*ids, tokenizer.eos_token_id):
        made.put(torch.tensor([token]))
    assert "".join(piece.text for piece in heard) == written[0] == "Habari  yako"
    assert heard[-1].finish == "stop"


def test_the_padding_of_a_row_that_was_left_is_no_answer(aligned):
    """Others in its batch go on."""
    written = []
    made, (heard, other) = rows(aligned, 3, 3, record=lambda *given: written.append(given[2:]))
    (token,) = aligned.run.tokenizer("a", add_special_tokens=False)["input_ids"]
    made.put(torch.tensor([token, token]))
    made.batch[0].left.set()
    for _ in range(2):
        made.put(torch.tensor([aligned.run.tokenizer.eos_token_id, token]))
    assert [piece.finish for piece in heard] == [None] and other[-1].finish == "length"
    assert [finish for _, finish in written] == ["length"]


def test_a_full_disk_keeps_no_answer_back(aligned):
    """It is heard before it is written down."""

    def record(*given):
        raise OSError(errno.ENOSPC, "No space left on device")

    heard = []
    batcher = batches.Batcher(aligned, record=record)
    batcher.submit(batches.Request((5, 6, 7), "sw", 2, heard.append))
    batcher.close()
    assert heard and heard[-1].finish and heard[-1].tokens and heard[-1].error is None


def test_batches_leave_nobody_behind(aligned):
    """The one that has waited longest goes first, with those like it; too long ones go apart."""
    batcher = batches.Batcher(aligned, size=4)
    batcher.close()
    batcher.tokens = 40

    def request(code, tokens):
        return batches.Request((5,) * tokens, code, 1, lambda piece: None)

    queue = [request(*one) for one in [("sw", 9), (None, 9), ("ru", 9), ("ur", 30), ("en", 9), (None, 50)]]
    queue[4].left.set()
    batcher._queue = queue
    found = [batcher._gather() for _ in range(4)]
    assert found == [[queue[0], queue[2]], [queue[1]], [queue[3]], [queue[5]]]
    assert batcher._gather() == []


def test_a_long_prompt_and_a_long_answer_are_answered_apart(aligned):
    """A row goes on to the longest answer's end, where learned positions may have none left."""
    batcher = batches.Batcher(aligned, positions=100)
    batcher.close()
    long, short = (batches.Request((5,) * n, "sw", most, print) for n, most in ((90, 10), (9, 60)))
    batcher._queue = [long, short]
    assert [batcher._gather(), batcher._gather()] == [[long], [short]]


def test_options_of_a_stream_without_a_stream_are_refused(guarded):
    """They would change nothing; and usage is null until the end where it is asked for."""
    headers = {"Authorization": "Bearer s3cret"}
    address = f"http://127.0.0.1:{guarded}/v1/chat/completions"
    options = {"stream_options": {"include_usage": True}}
    found = http_post(address, json=ASK | options, headers=headers)
    assert (found.status_code, found.json()["error"]["message"]) == (
        400,
        "stream_options: only a stream has options; set stream or leave them out",
    )
    found = http_post(address, json=ASK | options | {"stream": True}, headers=headers)
    assert found.headers["content-type"] == "text/event-stream; charset=utf-8"
    *events, last, done = [line.removeprefix("data: ") for line in found.text.split("\n\n") if line]
    assert done == "[DONE]" and json.loads(last)["usage"]["completion_tokens"] == 2
    assert [json.loads(event)["usage"] for event in events] == [None] * len(events)
    found = http_post(address, json=ASK | {"stop": ["a", "b", "c", "d", "e"]}, headers=headers)
    assert found.status_code == 400 and found.json()["error"]["param"].startswith("stop")


def test_a_detected_language_is_named_as_the_model(aligned):
    """As other endpoints name the version that answered."""
    with serving(aligned) as (port, _):
        found = [
            http_post(f"http://127.0.0.1:{port}/v1/chat/completions", json=ASK | one).json()["model"]
            for one in (
                {"model": "auto", "messages": [{"role": "user", "content": "Доброе утро, друг"}]},
                {"model": "rus_Cyrl"},
                {"model": "reference"},
            )
        ]
    assert found == ["ru", "ru", "reference"]


def test_a_stopped_server_finishes_what_it_began(aligned, monkeypatch):
    """An answer under way and one that waits; nobody new is let in."""
    held = Held(aligned, monkeypatch)
    with serving(aligned, size=1) as (port, app):
        body = post(json.dumps(ASK).encode())
        connections = [socket.create_connection(("127.0.0.1", port), timeout=60) for _ in range(2)]
        for connection in connections:
            connection.sendall(body)
        until(lambda: held.steps and len(app.state.batcher._queue) == 1)
        app.state.server.should_exit = True
        until(lambda: not listens(port))
        held.go.set()
        for connection in connections:
            answer = b""
            while piece := connection.recv(65536):
                answer += piece
            assert answer.startswith(b"HTTP/1.1 200") and b'"finish_reason"' in answer
            connection.close()


def listens(port: int) -> bool:
    """Whether anybody new is let in."""
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True
