"""A served teacher over a real HTTP server on loopback, with faults: nothing is lost or requested twice."""

import json
import math
import time
from collections import Counter
from email.utils import formatdate

import pytest
import torch
from faulty import Faulty

from isogloss.config import ServerTeacher, load_config
from isogloss.data.chat import Encoded
from isogloss.endpoint import retry_after
from isogloss.errors import ConfigError, RunError
from isogloss.model.cost import StageCost
from isogloss.pipeline.folder import ProgressReporter
from isogloss.teacher import server as served
from isogloss.teacher.joining import scores_of
from isogloss.teacher.rows import Row
from isogloss.teacher.scored import ScoreRequest, whole
from isogloss.teacher.store import Store
from isogloss.train.stage2 import distill

K = 3
ROWS = [ScoreRequest(tuple(range(10 + n, 14 + n)), tuple(range(40 + n, 42 + n + n % 3))) for n in range(6)]


def place(token: int) -> dict:
    """Return the top k and the token itself in vLLM's format; the token is likely if it is even."""
    best = {1: -1.0, 2: -2.0, 3: -3.0, token: -1.5 if token % 2 == 0 else -9.0}
    return {
        str(number): {"logprob": value, "rank": 1, "decoded_token": "?"} for number, value in best.items()
    }


def expected(row: ScoreRequest):
    """Return the scores by hand: an even token is second, an odd one is not in the top k."""
    ids = [[1, t, 2] if t % 2 == 0 else [1, 2, 3] for t in row.response]
    logprobs = [[-1.0, -1.5, -2.0] if t % 2 == 0 else [-1.0, -2.0, -3.0] for t in row.response]
    return torch.tensor(ids), torch.tensor(logprobs)


class Endpoint(Faulty):
    """Answers like vLLM."""

    def __init__(self):
        super().__init__()
        self.answer = lambda ids: {"choices": [{"prompt_logprobs": [None, *(place(t) for t in ids[1:])]}]}

    def names(self, body):
        return [tuple(body["prompt"])]

    def answered(self, body, fault):
        return self.answer(tuple(body["prompt"]))


@pytest.fixture
def endpoint(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with Endpoint().serving() as made:
        yield made


def settings(endpoint, **more) -> ServerTeacher:
    given = {"top_k": K, "backoff": 0.01, "attempts": 5, "timeout": 60.0} | more
    return ServerTeacher(url=endpoint.url, model="teacher", **given)


def ids_of(row: ScoreRequest) -> tuple[int, ...]:
    return row.prompt + row.response


def check(found):
    for row, one in zip(ROWS, found, strict=True):
        ids, logprobs = expected(row)
        assert torch.equal(one.ids, ids)
        assert torch.equal(one.logprobs, logprobs)
        assert one.covered.all() and len(one.covered) == len(row.response)


def test_only_the_positions_of_the_response_are_scored(endpoint, tmp_path):
    """Each row is requested once, as token IDs."""
    check(served.score(ROWS, settings(endpoint), Store(tmp_path / "rows.jsonl")))
    assert endpoint.asked == Counter({ids_of(row): 1 for row in ROWS})
    assert endpoint.bodies[0] | {"prompt": []} == {
        "model": "teacher", "prompt": [], "max_tokens": 1, "temperature": 0, "prompt_logprobs": K,
    }  # fmt: skip


@pytest.mark.parametrize(
    "fault", [(500,), (503,), (429, {"retry-after": "0"}), (408,), "drop", "cut", "half"]
)
def test_a_temporary_fault_costs_one_more_request_each_time(endpoint, tmp_path, fault):
    """Rows that fail once and three times take two and four requests; the results are as without faults."""
    endpoint.faults = {ids_of(ROWS[1]): [fault], ids_of(ROWS[4]): [fault] * 3}
    check(served.score(ROWS, settings(endpoint), Store(tmp_path / "rows.jsonl")))
    counts = dict.fromkeys(map(ids_of, ROWS), 1) | {ids_of(ROWS[1]): 2, ids_of(ROWS[4]): 4}
    assert endpoint.asked == Counter(counts)


def test_a_request_that_times_out_is_repeated(endpoint, tmp_path):
    endpoint.faults = {ids_of(ROWS[0]): ["slow"]}
    check(served.score(ROWS, settings(endpoint, timeout=4.0, concurrency=2), Store(tmp_path / "rows.jsonl")))
    assert endpoint.asked == Counter(dict.fromkeys(map(ids_of, ROWS), 1) | {ids_of(ROWS[0]): 2})


def test_all_requests_wait_for_retry_after(endpoint, tmp_path):
    """After a 429 with 0.7 seconds no request starts earlier; one that was under way may finish."""
    endpoint.faults = {ids_of(ROWS[0]): [(429, {"retry-after": "0.7"})]}
    check(served.score(ROWS, settings(endpoint, concurrency=1), Store(tmp_path / "rows.jsonl")))
    (first, name), (second, _), *_ = endpoint.times
    assert name == ids_of(ROWS[0])
    assert second - first >= 0.69
    assert endpoint.asked[ids_of(ROWS[0])] == 2


def test_retry_after_by_hand():
    """Seconds, a date, a date in the past, and neither."""
    assert retry_after("3") == 3.0
    assert retry_after(formatdate(time.time() + 30, usegmt=True)) == pytest.approx(30, abs=3)
    assert retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0.0
    assert retry_after("soon") is None
    assert retry_after("inf") is None
    assert retry_after(None) is None


def test_answers_are_kept_and_the_rest_is_requested_later(endpoint, tmp_path):
    """One row is refused and the run ends with one line; the next run only requests what is missing."""
    endpoint.faults = {ids_of(ROWS[3]): [(400, {}, b'{"error": "too   long"}')]}
    store = Store(tmp_path / "rows.jsonl")
    with pytest.raises(ConfigError) as error:
        served.score(ROWS, settings(endpoint, concurrency=1), store)
    assert str(error.value) == f'distill.teacher: {endpoint.url} answered 400: {{"error": "too long"}}'
    before = Counter(endpoint.asked)
    again = Store(tmp_path / "rows.jsonl")
    assert len(again) == sum(before.values()) - 1 >= 3
    check(served.score(ROWS, settings(endpoint), again))
    assert endpoint.asked == Counter(dict.fromkeys(map(ids_of, ROWS), 1) | {ids_of(ROWS[3]): 2})
    check(served.score(ROWS, settings(endpoint), Store(tmp_path / "rows.jsonl")))
    assert sum(endpoint.asked.values()) == 7


def test_a_server_that_never_answers_ends_the_run(endpoint, tmp_path):
    """After the number of attempts in the settings, with one line that says what to do."""
    endpoint.faults = {ids_of(ROWS[0]): [(503,)] * 9}
    with pytest.raises(
        RunError, match="did not answer in 3 attempts \\(the last: 503\\); the answers so far are kept"
    ):
        served.score(ROWS[:1], settings(endpoint, attempts=3), Store(tmp_path / "rows.jsonl"))
    assert endpoint.asked[ids_of(ROWS[0])] == 3


def test_equal_rows_are_requested_once(endpoint, tmp_path):
    found = served.score([ROWS[0], ROWS[0]], settings(endpoint), Store(tmp_path / "rows.jsonl"))
    assert torch.equal(found[0].ids, found[1].ids)
    assert endpoint.asked == Counter({ids_of(ROWS[0]): 1})


def test_concurrency_and_rate_are_limited(endpoint, tmp_path):
    """Two at a time and ten a second: six rows take at least half a second."""
    endpoint.pause = 0.15
    served.score(ROWS, settings(endpoint, concurrency=2, rate=10.0), Store(tmp_path / "rows.jsonl"))
    assert endpoint.most <= 2
    times = [moment for moment, _ in endpoint.times]
    assert times[-1] - times[0] >= 0.45


def test_the_key_comes_from_the_environment_and_goes_nowhere_else(endpoint, tmp_path, monkeypatch):
    """It is in the header, but neither in the store nor in an error that repeats it."""
    monkeypatch.setenv("TEACHER_KEY", "abc\r")
    with pytest.raises(ConfigError, match="the environment variable TEACHER_KEY has no valid key"):
        served.score(ROWS, settings(endpoint, key_env="TEACHER_KEY"), Store(tmp_path / "rows.jsonl"))
    monkeypatch.delenv("TEACHER_KEY")
    with pytest.raises(ConfigError, match="the environment variable TEACHER_KEY is not set"):
        served.score(ROWS, settings(endpoint, key_env="TEACHER_KEY"), Store(tmp_path / "rows.jsonl"))
    monkeypatch.setenv("TEACHER_KEY", "s3cret")
    store = Store(tmp_path / "rows.jsonl")
    served.score(ROWS[:1], settings(endpoint, key_env="TEACHER_KEY"), store)
    assert {h.get("authorization") or h.get("Authorization") for h in endpoint.headers} == {"Bearer s3cret"}
    endpoint.faults = {ids_of(ROWS[1]): [(400, {}, b"no s3cret here"), (401, {}, b"bad s3cret")]}
    for says in (f"{endpoint.url} answered 400: no … here", f"{endpoint.url} answered 401; name the"):
        with pytest.raises(ConfigError) as error:
            served.score(ROWS[1:2], settings(endpoint, key_env="TEACHER_KEY"), store)
        assert says in str(error.value) and "s3cret" not in str(error.value)
    assert b"s3cret" not in (tmp_path / "rows.jsonl").read_bytes()


def test_no_part_of_a_key_is_shown_where_a_message_is_cut(endpoint, tmp_path, monkeypatch):
    """The key straddles the place where the server's message is cut."""
    monkeypatch.setenv("TEACHER_KEY", "s3cret-abcdefghijklmnop")
    endpoint.faults = {ids_of(ROWS[1]): [(400, {}, b"x" * 189 + b" s3cret-abcdefghijklmnop is no key")]}
    with pytest.raises(ConfigError) as error:
        served.score(ROWS[1:2], settings(endpoint, key_env="TEACHER_KEY"), Store(tmp_path / "rows.jsonl"))
    assert str(error.value) == f"distill.teacher: {endpoint.url} answered 400: {'x' * 189} … is no ke"


def answering(place):
    """Return an endpoint's answer with the same entry at every position."""
    return lambda ids: {"choices": [{"prompt_logprobs": [None] + [place] * (len(ids) - 1)}]}


def likeliest(logprob: float, token: int = 2) -> dict:
    """Return an entry with the tokens that ROWS[0] sends and two others, of which one is kept."""
    named = {1: logprob, token: logprob, 40: -2.0, 41: -2.0}
    return {str(number): {"logprob": value} for number, value in named.items()}


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (lambda ids: {"choices": [{"text": "x"}]}, "returns no prompt_logprobs; use a server that does"),
        (lambda ids: {"choices": [{"prompt_logprobs": [None]}]}, "read 1 tokens where 6 were sent"),
        (
            lambda ids: {"choices": [{"prompt_logprobs": [None] + [place(99)] * (len(ids) - 1)}]},
            "did not read the token 40 that was sent",
        ),
        (
            lambda ids: {
                "choices": [{"prompt_logprobs": [None, *({str(t): {"logprob": -1}} for t in ids[1:])]}]
            },
            "distill.teacher.top_k is 3 and",
        ),
        *(
            (lambda ids, said=said: said, "returns no prompt_logprobs; use a server that does")
            for said in (
                None,
                [],
                "no",
                {},
                {"choices": None},
                {"choices": []},
                {"choices": [None]},
                {"choices": ["x"]},
                {"choices": {"0": 1}},
                {"choices": [{"prompt_logprobs": {"1": 2}}]},
            )
        ),
        *(
            (answering(place), "returns prompt_logprobs without a logprob by token ID")
            for place in (
                None,
                [],
                "x",
                3,
                {"x": {"logprob": -1.0}},
                {"1.5": {"logprob": -1.0}},
                {"1": None},
                {"1": -1.0},
                {"1": {}},
                {"1": {"logprob": None}},
                {"1": {"logprob": "high"}},
                {"1": {"logprob": [-1.0]}},
                {"1": {"logprob": 10**400}},
            )
        ),
        *(
            (answering(place), "returns an invalid distribution: ")
            for place in (
                likeliest(-math.inf),
                likeliest(math.nan),
                likeliest(math.inf),
                likeliest(0.5),
                likeliest(-0.5),
                likeliest(-1.0, token=-1),
                likeliest(-1.0, token=2**31),
                likeliest(-1.0, token=2**70),
            )
        ),
    ],
)
def test_another_kind_of_server_is_refused_in_one_line(endpoint, tmp_path, answer, says):
    """After one request: repeating it would not help."""
    endpoint.answer = answer
    with pytest.raises(ConfigError) as error:
        served.score(ROWS[:1], settings(endpoint), Store(tmp_path / "rows.jsonl"))
    assert says in str(error.value) and "\n" not in str(error.value)
    assert sum(endpoint.asked.values()) == 1 and not (tmp_path / "rows.jsonl").exists()


def test_a_sent_token_of_probability_zero_is_no_fault(endpoint, tmp_path):
    """It is -Infinity outside the top k, and is dropped."""
    best = {str(number): {"logprob": -float(number)} for number in (1, 2, 3)}
    endpoint.answer = lambda ids: {
        "choices": [{"prompt_logprobs": [None, *(best | {str(t): {"logprob": -math.inf}} for t in ids[1:])]}]
    }
    (found,) = served.score(ROWS[:1], settings(endpoint), Store(tmp_path / "rows.jsonl"))
    assert found.ids.tolist() == [[1, 2, 3]] * 2


# --- the store


ROW = whole(torch.tensor([[5, 7], [9, 2]]), torch.tensor([[-0.1, -2.5], [-1e-8, -20.5]]))


def test_a_stored_row_is_bit_identical(tmp_path):
    """Read from the file by another instance."""
    Store(tmp_path / "s").put("a", ROW)
    found = Store(tmp_path / "s")["a"]
    assert torch.equal(found.ids, ROW.ids) and torch.equal(found.logprobs, ROW.logprobs)


def test_a_torn_line_is_ignored_and_spoils_no_other_line(tmp_path):
    """Cut anywhere within the last line: the first row stays, and a third can be added."""
    path = tmp_path / "s"
    store = Store(path)
    store.put("a", ROW)
    first = path.stat().st_size
    store.put("b", ROW)
    content = path.read_bytes()
    for cut in range(first + 1, len(content), 7):
        path.write_bytes(content[:cut])
        torn = Store(path)
        assert "a" in torn and "b" not in torn
        torn.put("c", ROW)
        healed = Store(path)
        assert "a" in healed and "b" not in healed and "c" in healed


def test_a_damaged_row_is_ignored(tmp_path):
    """A letter within the numbers has changed, but the line is still JSON."""
    path = tmp_path / "s"
    Store(path).put("a", ROW)
    entry = json.loads(path.read_text())
    entry["ids"] = entry["ids"].replace("BQAAAA", "BgAAAA")
    path.write_text(json.dumps(entry) + "\n")
    assert "a" not in Store(path)


def test_an_invalid_row_is_ignored(tmp_path):
    """So it is requested again, and the file need not be deleted."""
    Store(tmp_path / "s").put("a", whole(ROW.ids, torch.full((2, 2), -math.inf)))
    Store(tmp_path / "s").put("b", ROW)
    found = Store(tmp_path / "s")
    assert "a" not in found and "b" in found


def test_two_writers_share_a_file(tmp_path):
    """Each appends, and a third instance reads both."""
    one, two = Store(tmp_path / "s"), Store(tmp_path / "s")
    one.put("a", ROW)
    two.put("b", ROW)
    one.put("c", ROW)
    found = Store(tmp_path / "s")
    assert len(found) == 3 and all(name in found for name in "abc")


# --- training


def test_a_model_and_a_server_of_the_same_weights_teach_the_same(
    endpoint, base, tiny, five, student, tokenizer, tmp_path
):
    """Both train, with curves equal up to packing; the divergence reported before is the textbook's."""
    teacher = tiny("qwen3", seed=5)
    teacher.save_pretrained(tmp_path / "teacher")
    tokenizer.save_pretrained(tmp_path / "teacher")

    def answer(ids):
        with torch.no_grad():
            said = teacher(torch.tensor([ids])).logits[0].log_softmax(-1)
        places = []
        for place, token in enumerate(ids[1:]):
            best = said[place].topk(8)
            pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
            names = {str(n): {"logprob": v} for n, v in pairs}
            places.append(names | {str(token): {"logprob": said[place, token].item()}})
        return {"choices": [{"prompt_logprobs": [None, *places]}]}

    endpoint.answer = answer
    rows = [
        Row(f"{n}", code, n, Encoded((5 + n, 6, 7), (40 + n, 41, 1)), (8, 9, 10 + n), (11 + n, 12))
        for n, code in enumerate(["sw", "ru", "en", "es"])
    ]
    kinds = {
        "model": f"{{type: model, path: '{tmp_path / 'teacher'}', top_k: 8}}",
        "server": f"{{type: server, url: '{endpoint.url}', model: m, top_k: 8}}",
    }
    curves = {}
    for kind, given in kinds.items():
        settings = load_config(
            None,
            [
                f"distill.teacher={given}",
                "distill.kl_weight=1.0",
                "distill.batch_size=4",
                "distill.epochs=12",
            ],
        ).distill
        cost, bar = StageCost("distill"), ProgressReporter().bar
        scored = scores_of(rows, settings, tokenizer, torch.float32, tmp_path / "scores.jsonl", cost, bar)
        assert cost.teacher_calls == 3
        adapters, said = student(tiny("qwen3"), five), []
        before = {name: p.detach().clone() for name, p in adapters.parameters().items()}
        distill(
            adapters, rows, settings, pad_id=0, seed=0, work=tmp_path / f"{kind}.work",
            curve=tmp_path / f"{kind}.jsonl", cost=cost, bar=bar, say=said.append, scored=scored,
        )  # fmt: skip
        assert any(not torch.equal(p, before[name]) for name, p in adapters.parameters().items())
        curves[kind] = [json.loads(line) for line in (tmp_path / f"{kind}.jsonl").read_text().splitlines()]
        told = dict(pair.split() for pair in said[0].split(": ")[1].split(", "))

        fresh = student(tiny("qwen3"), five)
        for row in rows[:2]:
            fresh.set_path([row.language])
            text = torch.tensor([[*row.student.prompt, *row.student.response]])
            other = torch.tensor([[*row.teacher_prompt, *row.student.response]])
            with torch.no_grad():
                q = fresh.model(text).logits[0, 2:5].double().softmax(-1)
                p = teacher(other).logits[0, 2:5].double().softmax(-1)
            kept = p.topk(8).indices
            p8, q8 = p.gather(1, kept), q.gather(1, kept)
            p9, q9 = (torch.cat([x, 1 - x.sum(1, keepdim=True)], 1) for x in (p8, q8))
            nats = (p9 * (p9.log() - q9.log())).sum(1).mean().item()
            assert float(told[row.language]) == pytest.approx(nats, abs=5e-3)
    assert len(endpoint.asked) == 3
    for name in ("kl", "ce", "similarity", "replay"):
        ours, theirs = ([line[name] for line in curves[kind] if name in line] for kind in kinds)
        assert ours == pytest.approx(theirs, abs=2e-2) and len(ours) > 3
    divergences = [line["kl"] for line in curves["server"] if "kl" in line]
    assert divergences[-1] < divergences[0]
