"""Serving: the official OpenAI client against a real server on loopback."""

import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx2
import openai
import pytest
import uvicorn

from isogloss.serve.app import make_app
from isogloss.serve.guard import LARGEST

RUSSIAN = "Доброе утро, мой дорогой друг"


@pytest.fixture(scope="module")
def client(aligned):
    """A client of a server that runs for all tests of the module."""
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(make_app(aligned, size=8, longest=48), log_level="warning"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = listening.getsockname()[1]
    with openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0) as made:
        yield made
    server.should_exit = True
    thread.join(20)
    listening.close()
    assert not thread.is_alive()


def ask(client, model, text, **options):
    messages = [{"role": "user", "content": text}]
    return client.chat.completions.create(model=model, messages=messages, **options)


def test_every_language_is_a_model(client):
    """`auto` detects the language, `en` uses the root, and `reference` has no adapters."""
    assert [model.id for model in client.models.list()] == ["auto", "sw", "ru", "ur", "en", "reference"]


def test_an_answer_equals_that_of_the_library(client, aligned):
    """Any code of the language works; usage counts prompt and answer."""
    found = ask(client, "rus_Cyrl", RUSSIAN, max_tokens=12)
    assert found.choices[0].message.content == aligned.generate([RUSSIAN], "ru", max_new_tokens=12)[0]
    assert found.choices[0].finish_reason in ("stop", "length")
    assert found.usage.total_tokens == found.usage.prompt_tokens + found.usage.completion_tokens
    assert 1 <= found.usage.completion_tokens <= 12
    plain = ask(client, "reference", RUSSIAN, max_tokens=12).choices[0].message.content
    assert plain == aligned.reference([RUSSIAN], max_new_tokens=12)[0]
    assert ask(client, "auto", RUSSIAN, max_tokens=12).choices[0].message == found.choices[0].message


def test_concurrent_requests_are_answered_on_their_own_paths(client, aligned):
    """24 requests arrive at once, some for the reference model, and are answered in batches of eight."""
    asked = [
        (model, f"{RUSSIAN} {number}") for number in range(6) for model in ("sw", "ru", "ur", "reference")
    ]
    with ThreadPoolExecutor(24) as pool:
        found = list(pool.map(lambda one: ask(client, *one, max_tokens=8).choices[0].message.content, asked))
    for (model, text), answer in zip(asked, found, strict=True):
        if model == "reference":
            assert answer == aligned.reference([text], max_new_tokens=8)[0]
        else:
            assert answer == aligned.generate([text], model, max_new_tokens=8)[0]


def test_a_stream_is_the_same_answer_in_pieces(client):
    """The role comes first, then text, the finish reason, and usage if requested."""
    whole = ask(client, "sw", "Habari", max_tokens=16)
    options = {"stream": True, "stream_options": {"include_usage": True}}
    chunks = list(ask(client, "sw", "Habari", max_tokens=16, **options))
    assert chunks[0].choices[0].delta.role == "assistant"
    said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert said == whole.choices[0].message.content
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    assert chunks[-1].usage == whole.usage


def test_an_answer_ends_before_a_stop_string(client):
    """The finish reason says so, and a stream never shows a part of the stop string."""
    whole = ask(client, "sw", "Habari", max_tokens=16).choices[0].message.content
    end = whole[len(whole) // 2 : len(whole) // 2 + 2]
    cut = ask(client, "sw", "Habari", max_tokens=16, stop=end).choices[0]
    assert (cut.message.content, cut.finish_reason) == (whole[: whole.index(end)].rstrip(), "stop")
    streamed = ask(client, "sw", "Habari", max_tokens=16, stop=[end], stream=True)
    said = "".join(chunk.choices[0].delta.content or "" for chunk in streamed)
    assert said.rstrip() == cut.message.content


def test_a_conversation_may_have_several_turns(client):
    """A system message and earlier turns are read, so the prompt is longer."""
    short = ask(client, "sw", "Habari", max_tokens=4)
    messages = [
        {"role": "system", "content": "Jibu kwa kifupi."},
        {"role": "user", "content": "Hujambo"},
        {"role": "assistant", "content": "Sijambo"},
        {"role": "user", "content": [{"type": "text", "text": "Habari"}]},
    ]
    long = client.chat.completions.create(model="sw", messages=messages, max_tokens=4)
    assert long.usage.prompt_tokens == short.usage.prompt_tokens + 3 * 2 + len(
        b"Jibu kwa kifupi.HujamboSijambo"
    )


def test_closing_a_stream_frees_the_server(client):
    """The next request is answered."""
    stream = ask(client, "sw", "Habari", max_tokens=48, stream=True)
    next(iter(stream))
    stream.close()
    assert ask(client, "sw", "Habari", max_tokens=2).usage.completion_tokens <= 2


def test_parameters_that_do_not_change_the_answer_are_accepted(client):
    """These are neutral values, parameters for other servers, and null for any name."""
    options = {
        "n": 1, "temperature": 0, "top_p": 0.5, "seed": 7, "frequency_penalty": 0, "presence_penalty": 0.0,
        "logit_bias": {"50": 0}, "logprobs": False, "top_logprobs": 0, "tools": [], "functions": [],
        "tool_choice": "auto", "function_call": "none", "parallel_tool_calls": True,
        "response_format": {"type": "text"}, "modalities": ["text"], "reasoning_effort": "none",
        "verbosity": "medium", "user": "u", "safety_identifier": "s", "metadata": {"a": "b"}, "store": True,
        "service_tier": "auto", "prompt_cache_key": "k", "prompt_cache_retention": "24h",
        "prompt_cache_options": {}, "prediction": {"type": "content", "content": "a"}, "audio": None,
        "stream": None, "stream_options": None, "web_search_options": None, "extra_body": {"other": None},
    }  # fmt: skip
    plain = ask(client, "sw", "Habari", max_tokens=8)
    assert ask(client, "sw", "Habari", max_tokens=8, **options).choices == plain.choices
    nothing = {"logit_bias": {}, "temperature": None, "response_format": None, "tools": None}
    assert ask(client, "sw", "Habari", max_tokens=8, **nothing).choices == plain.choices


def test_the_clients_own_message_can_be_sent_back_as_a_turn(client):
    """It is sent as an object, and as all its fields, most of them null."""
    said = ask(client, "sw", "Habari", max_tokens=4).choices[0].message
    turns = [
        [{"role": "user", "content": "a"}, one, {"role": "user", "content": "b"}]
        for one in (said, said.model_dump(), {"role": "assistant", "content": said.content})
    ]
    usages = [
        client.chat.completions.create(model="sw", messages=m, max_tokens=1).usage.prompt_tokens
        for m in turns
    ]
    assert usages[0] == usages[1] == usages[2]


CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"frequency_penalty": 0.5}, "frequency_penalty: input should be less than or equal to 0"),
        ({"presence_penalty": -1}, "presence_penalty: input should be greater than or equal to 0"),
        ({"logit_bias": {"50": -100}}, "logit_bias.50: input should be greater than or equal to 0"),
        ({"n": 0}, "n: input should be 1"),
        ({"top_logprobs": 2}, "top_logprobs: input should be 0"),
        ({"tools": [TOOL]}, "tools: list should have at most 0 items after validation, not 1"),
        (
            {"functions": [{"name": "f"}]},
            "functions: list should have at most 0 items after validation, not 1",
        ),
        ({"tool_choice": "required"}, "tool_choice: input should be 'none' or 'auto'"),
        ({"function_call": {"name": "f"}}, "function_call: input should be 'none' or 'auto'"),
        ({"response_format": {"type": "json_object"}}, "response_format.type: input should be 'text'"),
        ({"modalities": ["text", "audio"]}, "modalities.1: input should be 'text'"),
        ({"audio": {"voice": "alloy", "format": "wav"}}, "audio: not supported; leave it out"),
        ({"reasoning_effort": "high"}, "reasoning_effort: input should be 'none'"),
        ({"verbosity": "low"}, "verbosity: input should be 'medium'"),
        ({"web_search_options": {}}, "web_search_options: not supported; leave it out"),
        ({"extra_body": {"repetition_penalty": 1.3}}, "repetition_penalty: not supported; leave it out"),
        (
            {"messages": [{"role": "assistant", "content": "a", "tool_calls": [CALL]}]},
            "messages.0.tool_calls: not supported; leave it out",
        ),
        (
            {"messages": [{"role": "user", "content": "a", "name": "Asha"}]},
            "messages.0.name: not supported; leave it out",
        ),
    ],
    ids=lambda one: next(iter(one)) if isinstance(one, dict) else "",
)
def test_parameters_that_would_change_the_answer_are_refused(options, says, client):
    """The error is one line that begins with the parameter."""
    given = {"model": "sw", "messages": [{"role": "user", "content": "Habari"}]} | options
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**given)
    body = caught.value.body
    assert body == {
        "message": says, "type": "invalid_request_error", "param": says.split(":")[0], "code": None,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        (
            {"model": "sww"},
            openai.NotFoundError,
            "use one such as sw, swh_Latn or Swahili; or name auto or reference",
        ),
        ({"model": "sw", "n": 2}, openai.BadRequestError, "n: input should be 1"),
        (
            {"model": "sw", "stop": list("abcde")},
            openai.BadRequestError,
            "stop: list should have at most 4 items",
        ),
        (
            {
                "model": "sw",
                "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
            },
            openai.BadRequestError,
            "messages.0.content.0.type: input should be 'text'",
        ),
        (
            {"model": "sw", "temperature": 0.7},
            openai.BadRequestError,
            "temperature: input should be less than",
        ),
        (
            {"model": "sw", "max_tokens": 0},
            openai.BadRequestError,
            "max_tokens: input should be greater than",
        ),
        ({"model": "sw", "logprobs": True}, openai.BadRequestError, "logprobs: input should be False"),
        (
            {"model": "sw", "messages": []},
            openai.BadRequestError,
            "messages: list should have at least 1 item",
        ),
        (
            {"model": "sw", "messages": [{"role": "user", "content": "a" * 1100}]},
            openai.BadRequestError,
            "the messages have 1103 tokens; the model's limit is 1024 including its answer; shorten them",
        ),
    ],
)
def test_unsupported_requests_are_refused(options, error, says, client):
    """The client raises its own types of errors."""
    with pytest.raises(error) as caught:
        client.chat.completions.create(**{"messages": [{"role": "user", "content": "Habari"}], **options})
    assert says in caught.value.body["message"]
    assert caught.value.body["type"] == "invalid_request_error"


def test_turns_that_the_chat_template_rejects_are_refused(client, aligned, monkeypatch):
    """The error has the template's message and status 400; later requests are answered."""
    tokenizer = aligned.run.tokenizer
    raising = (
        "{%- if messages[0]['role'] == 'system' -%}{{- raise_exception('no system texts') -}}{%- endif -%}"
    )
    monkeypatch.setattr(tokenizer, "chat_template", raising + tokenizer.chat_template)
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="sw", messages=[{"role": "system", "content": "Jibu."}])
    assert caught.value.body["message"] == "messages: rejected by the chat template: no system texts"
    assert ask(client, "sw", "Habari", max_tokens=1).choices


def post(client, body):
    headers = {"content-type": "application/json"}
    return httpx2.post(f"{client.base_url}chat/completions", content=body, headers=headers)


TURN = '"messages": [{"role": "user", "content": "%s"}]'
HALF = "\\ud800"
PARTS = '"messages": [{"role": "user", "content": [{"type": "text", "text": "%s"}]}]'


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ('{"model": "sw", ' + TURN % HALF + "}", "messages.0.content"),
        ('{"model": "sw", ' + PARTS % HALF + "}", "messages.0.content"),
        ('{"model": "' + HALF + '", ' + TURN % "a" + "}", "model"),
        ('{"model": "sw", "stop": ["' + HALF + '"], ' + TURN % "a" + "}", "stop"),
        ('{"model": "sw", "' + HALF + '": 1, ' + TURN % "a" + "}", "body"),
    ],
)
def test_half_a_surrogate_pair_is_refused_anywhere_in_the_body(body, param, client):
    """JSON can express it, but no tokenizer can read it."""
    answer = post(client, body.encode())
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error" and error["param"].startswith(param)
    assert "\n" not in error["message"]


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        (b'{"model": "\xff"}', 400, "body: not JSON in UTF-8"),
        (b"[" * 100_000, 400, "body: not JSON in UTF-8"),
        (b'{"model": }', 400, "body: not JSON at byte 10 (Expecting value)"),
        (b" " * (LARGEST + 1), 413, "the body has more than 1 MiB; shorten the messages"),
    ],
)
def test_a_body_that_cannot_be_read_is_refused_in_one_line(body, status, says, client):
    """It has another encoding, endless nesting, invalid JSON, or too many bytes."""
    answer = post(client, body)
    assert (answer.status_code, answer.json()["error"]["message"]) == (status, says)


def test_a_model_is_found_by_any_code_of_its_language(client):
    """This is how the client asks whether a model exists."""
    for name in ("sw", "swh_Latn", "auto", "reference", "en"):
        assert client.models.retrieve(name).id == name
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("sww")
    assert caught.value.body["code"] == "model_not_found"
    assert "use one such as sw, swh_Latn or Swahili" in caught.value.body["message"]


def test_an_unknown_path_or_method_is_told_what_is_available(client):
    found = httpx2.post(f"{client.base_url}embeddings", json={})
    assert found.status_code == 404 and found.json()["error"]["message"] == (
        "there is no POST /v1/embeddings here; available: GET /v1/models, GET /v1/models/NAME and POST "
        "/v1/chat/completions"
    )
    found = httpx2.get(f"{client.base_url}chat/completions")
    assert found.status_code == 405
    assert found.json()["error"]["message"] == "/v1/chat/completions does not allow GET, only POST"
    assert found.headers["allow"] == "POST"


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("application/x-www-form-urlencoded", b'{"model": "sw"}'),  # what curl sends unless told otherwise
        ("application/json", b"[1]"),
    ],
)
def test_a_body_that_is_no_json_object_is_refused(kind, body, client):
    """The error names the content type, without which no body is read as JSON."""
    found = httpx2.post(f"{client.base_url}chat/completions", content=body, headers={"content-type": kind})
    says = "body: not a JSON object; send one, with Content-Type: application/json"
    assert (found.status_code, found.json()["error"]["message"]) == (400, says)


def test_turns_for_which_the_chat_template_writes_nothing_are_refused(client, aligned, monkeypatch):
    """An empty prompt would fail, and with it every other request of its batch."""
    tokenizer = aligned.run.tokenizer
    silent = "{%- if messages[0]['role'] != 'system' -%}" + tokenizer.chat_template + "{%- endif -%}"
    monkeypatch.setattr(tokenizer, "chat_template", silent)
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="sw", messages=[{"role": "system", "content": "Jibu."}])
    assert caught.value.body["message"] == (
        "messages: the chat template writes no prompt; end with a user turn"
    )


def test_a_body_that_is_not_json_is_refused(client):
    """The status is 400, not 500."""
    answer = httpx2.post(
        f"{client.base_url}chat/completions", content=b"{", headers={"content-type": "application/json"}
    )
    assert answer.status_code == 400 and "error" in answer.json()
