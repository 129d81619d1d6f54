"""Serving: who may send requests, how many, and what happens when clients disconnect."""

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
from isogloss.serve.starting import listen, open_record, serve_until_stopped

TURN = [{"role": "user", "content": "Habari"}]
ASK = {"model": "sw", "messages": TURN, "max_tokens": 2}


@pytest.fixture(scope="module")
def guarded(aligned):
    """A server that needs a key and also accepts another host name."""
    with serving(aligned, access=Access("s3cret", frozenset({"answers.example"}))) as (port, _):
        yield port


def raw(port: int, request: bytes) -> tuple[int, dict[str, str], bytes]:
    """Send exactly these bytes and return the status, headers and body of the response."""
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
def test_the_host_header_must_name_this_endpoint(host, status, guarded):
    """Pages of others may resolve their own name to this machine; ports may be forwarded."""
    found, _, body = get(guarded, "/v1/models", KEY, host=host)
    assert found == status
    if status == 403:
        assert json.loads(body)["error"] == {
            "message": f"Host: {host} is not a known name of this endpoint; if it should be, start it with "
            "--allow-host",
            "type": "invalid_request_error",
            "param": None,
            "code": None,
        }


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://localhost:8000", 200),
        ("https://localhost:8000", 200),  # behind a TLS proxy
        ("http://localhost:3000", 403),
        ("http://localhost", 403),
        ("https://evil.example", 403),
        ("null", 403),
        ("", 403),
    ],
)
def test_pages_of_other_sites_are_refused(origin, status, guarded):
    """They get no CORS headers either, with or without the key."""
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
def test_only_the_exact_key_is_accepted(header, status, guarded):
    """Similar and non-ASCII values are refused."""
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


def test_without_the_key_the_body_is_not_read(guarded):
    """A request without the key or with a foreign host is refused before its body arrives."""
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\n"
    head += "Content-Length: 1000\r\nConnection: close\r\n\r\n"
    assert raw(guarded, head.format("localhost").encode())[0] == 401
    assert raw(guarded, head.format("evil.example").encode())[0] == 403


def test_the_official_client_sends_the_key_and_learns_if_it_is_wrong(guarded):
    """The client raises its own AuthenticationError."""
    address = f"http://127.0.0.1:{guarded}/v1"
    with openai.OpenAI(base_url=address, api_key="s3cret", max_retries=0) as client:
        assert client.chat.completions.create(**ASK).choices
    with (
        openai.OpenAI(base_url=address, api_key="other", max_retries=0) as client,
        pytest.raises(openai.AuthenticationError) as caught,
    ):
        client.chat.completions.create(**ASK)
    assert caught.value.code == "invalid_api_key"


def test_every_response_has_security_headers_for_browsers(guarded):
    """They forbid caching, sniffing, framing and embedding by other sites; refusals have them too."""
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
        (
            None,
            ("http://a",),
            "--host, --allow-host: 'http://a' is not a host; give it without scheme, port and path",
        ),
        (
            None,
            ("a:80",),
            "--host, --allow-host: 'a:80' is not a host; give it without scheme, port and path",
        ),
        (None, ("",), "--host, --allow-host: '' is not a host; give it without scheme, port and path"),
    ],
)
def test_a_key_or_host_that_no_request_could_send_is_refused(key, hosts, says):
    """It is refused when the server is started."""
    with pytest.raises(ConfigError) as caught:
        Access(key, frozenset(hosts))
    assert str(caught.value) == says


def test_a_host_header_that_is_no_host_is_unknown_at_an_address_without_a_name():
    """The address that was requested is None, for instance, on a Unix socket."""
    assert not Access().knows("127.0.0.1:80:80", None) and Access().knows("localhost", None)


def test_the_repr_does_not_contain_the_key():
    assert "s3cret" not in repr(Access("s3cret"))


@pytest.mark.parametrize(
    ("host", "options", "says"),
    [
        (
            "0.0.0.0",
            {},
            "--host: 0.0.0.0 is reachable from other machines; give a key with --api-key-env, or allow "
            "access to anyone with --without-key",
        ),
        (
            "127.0.0.1",
            {"without_key": True},
            "--without-key: 127.0.0.1 is only reachable from this machine; leave it out",
        ),
        (
            "0.0.0.0",
            {"without_key": True, "key_env": "SERVE_KEY"},
            "--without-key: --api-key-env gives a key; leave one of them out",
        ),
        (
            "0.0.0.0",
            {"key_env": "NO_SUCH_KEY"},
            "--api-key-env: the environment variable NO_SUCH_KEY is not set; put the key there",
        ),
    ],
)
def test_beyond_loopback_a_key_or_an_explicit_opt_out_is_required(host, options, says, monkeypatch):
    """An option without effect is refused too."""
    monkeypatch.setenv("SERVE_KEY", "s3cret")
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    with pytest.raises(ConfigError) as caught:
        listen(host, 0, options.pop("key_env", None), **options)
    assert str(caught.value) == says


def test_the_command_refuses_before_the_model_is_loaded(aligned, capsys):
    """The error is one line, with exit code 2."""
    with pytest.raises(SystemExit) as caught:
        main(["serve", str(aligned.run.folder), "--host", "0.0.0.0", "--port", "0"])
    assert caught.value.code == 2
    assert capsys.readouterr().err == (
        "error --host: 0.0.0.0 is reachable from other machines; give a key with --api-key-env, or allow "
        "access to anyone with --without-key\n"
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
def test_safe_addresses_are_listened_on(host, options, monkeypatch):
    """The key comes from the environment."""
    monkeypatch.setenv("SERVE_KEY", "s3cret")
    listening, access = listen(host, 0, options.pop("key_env", None), **options)
    listening.close()
    assert access.key in ("s3cret", None) and access.knows("localhost", None)


def test_ipv6_is_listened_on():
    """The test is skipped if the machine has no IPv6."""
    if not socket.has_ipv6:
        pytest.skip("IPv6 is not available")
    try:
        listening, access = listen("::1", 0, None)
    except ValueError as error:
        pytest.skip(str(error))
    listening.close()
    assert access.knows("[::1]:80", None)


class Held:
    """Pause a model before its second token until `go` is set; count steps and record batches."""

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
def test_a_client_that_disconnects_costs_no_further_work(stream, aligned, monkeypatch):
    """The current answer ends long before its limit, and waiting ones are never started."""
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


def test_a_full_queue_gives_429_with_retry_after(aligned, monkeypatch):
    """Waiting requests are answered, and a client that disconnects frees its place."""
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
        assert error["message"] == f"2 requests are waiting; try again in {headers['retry-after']} s"
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
    """Its content length is enough."""
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n{KEY}\r\n"
    head += "Content-Type: application/json\r\nConnection: close\r\n"
    declared = head + f"Content-Length: {guard.LARGEST + 1}\r\n\r\n"
    status, _, body = raw(guarded, declared.encode())
    assert status == 413
    assert json.loads(body)["error"]["message"] == "the body has more than 1 MiB; shorten the messages"


def test_a_body_that_never_arrives_times_out(guarded, monkeypatch):
    """A shutdown then need not wait for it."""
    monkeypatch.setattr(guard, "PATIENCE", 0.2)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n{KEY}\r\n"
    head += "Content-Type: application/json\r\nContent-Length: 100\r\nConnection: close\r\n\r\n{"
    status, _, body = raw(guarded, head.encode())
    assert status == 408
    assert json.loads(body)["error"]["message"] == "the body did not arrive within 0 seconds"


def test_a_prompt_over_the_servers_own_limit_is_refused(aligned):
    """The error gives the limit."""
    with serving(aligned, longest_prompt=10) as (port, _):
        found = http_post(f"http://127.0.0.1:{port}/v1/chat/completions", json=ASK)
        assert found.status_code == 200
        long = ASK | {"messages": [{"role": "user", "content": "Habari yako"}]}
        found = http_post(f"http://127.0.0.1:{port}/v1/chat/completions", json=long)
    assert found.status_code == 400
    error = found.json()["error"]
    assert error["message"] == "the messages have 14 tokens; at most 10 are allowed here; shorten them"
    assert error["code"] == "context_length_exceeded"


SECRET = "Neno la siri 4711"


def test_a_failure_does_not_reveal_the_prompt(aligned, monkeypatch, caplog, capfd):
    """Neither the client nor the log gets it, even if the error's own message contains it."""

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


def test_prompts_are_recorded_if_requested(aligned, tmp_path):
    """They are stored as the model read them, with the answer, in a file that only its owner can read."""
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


def test_a_record_that_others_could_read_is_made_private(tmp_path):
    """Its content is unchanged."""
    file = tmp_path / "asked.jsonl"
    file.write_text("{}\n")
    file.chmod(0o644)
    with open_record(file):
        assert file.stat().st_mode & 0o777 == 0o600
    assert file.read_text() == "{}\n"


def rows(aligned, *limits, ends=(), record=None):
    """Return a batch's rows and, for each row, the pieces that were sent."""
    heard = [[] for _ in limits]
    batch = [
        batches.Request((5, 6), "sw", limit, one.append, tuple(ends))
        for limit, one in zip(limits, heard, strict=True)
    ]
    stops = frozenset({aligned.run.tokenizer.eos_token_id})
    return batches._Rows(aligned.run.tokenizer, batch, stops, record), heard


def test_whitespace_at_the_end_of_an_answer_is_not_sent(aligned):
    """It is not recorded either; whitespace between words is kept."""
    tokenizer, written = aligned.run.tokenizer, []
    made, (heard,) = rows(aligned, 20, record=lambda request, prompt, text, finish: written.append(text))
    ids = tokenizer("Habari  yako \n\n", add_special_tokens=False)["input_ids"]
    for token in (*ids, tokenizer.eos_token_id):
        made.put(torch.tensor([token]))
    assert "".join(piece.text for piece in heard) == written[0] == "Habari  yako"
    assert heard[-1].finish == "stop"


@pytest.mark.parametrize("ends", [("\n\n",), ("\nHa", "yako")])
def test_a_stop_string_may_be_whitespace_before_an_answer(aligned, ends):
    """The answer is then empty."""
    made, (heard,) = rows(aligned, 20, ends=ends)
    for token in aligned.run.tokenizer("\n\nHabari yako", add_special_tokens=False)["input_ids"]:
        if not made.stopped(0):
            made.put(torch.tensor([token]))
    assert [(piece.text, piece.finish) for piece in heard] == [("", "stop")]


def test_the_padding_of_a_disconnected_row_is_not_an_answer(aligned):
    """Other rows of the batch continue."""
    written = []
    made, (heard, other) = rows(aligned, 3, 3, record=lambda *given: written.append(given[2:]))
    (token,) = aligned.run.tokenizer("a", add_special_tokens=False)["input_ids"]
    made.put(torch.tensor([token, token]))
    made.batch[0].left.set()
    for _ in range(2):
        made.put(torch.tensor([aligned.run.tokenizer.eos_token_id, token]))
    assert [piece.finish for piece in heard] == [None] and other[-1].finish == "length"
    assert [finish for _, finish in written] == ["length"]


def test_a_full_disk_does_not_hold_back_an_answer(aligned):
    """It is sent before it is recorded."""

    def record(*given):
        raise OSError(errno.ENOSPC, "No space left on device")

    heard = []
    batcher = batches.Batcher(aligned, record=record)
    batcher.submit(batches.Request((5, 6, 7), "sw", 2, heard.append))
    batcher.close()
    assert heard and heard[-1].finish and heard[-1].tokens and heard[-1].error is None


def test_batches_starve_no_request(aligned):
    """The oldest request goes first, with others that fit its batch; long ones go separately."""
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


def test_a_long_prompt_and_a_long_answer_get_separate_batches(aligned):
    """Each row runs to the end of the longest answer, where learned positions may run out."""
    batcher = batches.Batcher(aligned, positions=100)
    batcher.close()
    long, short = (batches.Request((5,) * n, "sw", most, print) for n, most in ((90, 10), (9, 60)))
    batcher._queue = [long, short]
    assert [batcher._gather(), batcher._gather()] == [[long], [short]]


def test_stream_options_without_a_stream_are_refused(guarded):
    """They would have no effect. In a stream with `include_usage`, usage is null until the end."""
    headers = {"Authorization": "Bearer s3cret"}
    address = f"http://127.0.0.1:{guarded}/v1/chat/completions"
    options = {"stream_options": {"include_usage": True}}
    found = http_post(address, json=ASK | options, headers=headers)
    assert (found.status_code, found.json()["error"]["message"]) == (
        400,
        "stream_options: only allowed with stream; set stream or leave them out",
    )
    found = http_post(address, json=ASK | options | {"stream": True}, headers=headers)
    assert found.headers["content-type"] == "text/event-stream; charset=utf-8"
    *events, last, done = [line.removeprefix("data: ") for line in found.text.split("\n\n") if line]
    assert done == "[DONE]" and json.loads(last)["usage"]["completion_tokens"] == 2
    assert [json.loads(event)["usage"] for event in events] == [None] * len(events)
    found = http_post(address, json=ASK | {"stop": ["a", "b", "c", "d", "e"]}, headers=headers)
    assert found.status_code == 400 and found.json()["error"]["param"].startswith("stop")


def test_the_response_names_the_detected_language_as_its_model(aligned):
    """Other endpoints name the version that answered in the same way."""
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


def test_a_stopped_server_finishes_accepted_requests(aligned, monkeypatch):
    """It finishes the current answer and a waiting one, and refuses new connections."""
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


def test_ctrl_c_ends_the_server_without_an_error(aligned, monkeypatch):
    """uvicorn raises the interrupt again when it has finished."""

    def run(server, sockets):
        raise KeyboardInterrupt

    monkeypatch.setattr("uvicorn.Server.run", run)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        serve_until_stopped(aligned, listening, access=Access(), record=None)


def listens(port: int) -> bool:
    """Return whether new connections are accepted."""
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True
