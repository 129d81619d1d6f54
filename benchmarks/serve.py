"""`isogloss serve` under load: many concurrent requests, some of them faulty.

    python benchmarks/serve.py --out benchmarks/serve.json

The endpoint runs in a separate process, with the embedded base and random adapters in float32, and requires a
key. Requests are drawn from a seed: whole answers and streams, in all languages, of several lengths; clients
that hang up at once or during a stream; broken JSON, invalid UTF-8, bodies over the limit, foreign hosts and
origins, wrong keys. Every answer is compared with the library's answer to that request alone, so an answer
mixed with another request's would count as wrong. Memory is the process's unique set size (USS) after each
quarter.
"""

import argparse
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import torch
from machine import about, put

from isogloss.config import load_config
from isogloss.data.sources import parallel_examples
from isogloss.inference import Aligned
from isogloss.model.load import load_model, load_tokenizer
from isogloss.pipeline import training
from isogloss.pipeline.folder import open_run

KEY = "a-key-of-the-benchmark"
KINDS = {
    "whole": 62,
    "stream": 20,
    "hang up": 4,
    "hang up in a stream": 3,
    "broken JSON": 3,
    "invalid UTF-8": 2,
    "too large": 2,
    "foreign host": 1,
    "foreign origin": 1,
    "wrong key": 2,
}
"""Requests per hundred, by kind."""
WANTED = {
    "whole": 200,
    "stream": 200,
    "broken JSON": 400,
    "invalid UTF-8": 400,
    "too large": 413,
    "foreign host": 403,
    "foreign origin": 403,
    "wrong key": 401,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--at-once", type=int, default=32)
    parser.add_argument("--distinct", type=int, default=48, help="number of distinct valid requests")
    parser.add_argument("--tokens", type=int, default=16, help="maximum tokens of an answer")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    draw = random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        model = make(Path(folder) / "run")
        questions = make_questions(model, asked.distinct, asked.tokens, draw)
        command = [sys.executable, "-m", "isogloss", "serve", str(model.run.folder)]
        command += ["--port", "0", "--api-key-env", "BENCHMARK_KEY"]
        keyed = os.environ | {"BENCHMARK_KEY": KEY}
        with subprocess.Popen(command, env=keyed, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout
            port = int(process.stdout.readline().split("/v1")[0].rpartition(":")[2])
            found = load(port, psutil.Process(process.pid), questions, asked, draw)
            process.terminate()
            process.wait(120)
    put(found | about("isogloss", "torch", "transformers", "fastapi", "uvicorn"), asked.out)


def make(folder: Path) -> Aligned:
    """Return the embedded base with random adapters, different for each language."""
    run = open_run(load_config(None, (f"run={folder}", "dtype=float32")))
    load_model("demo", torch.float32).save_pretrained(run.tuned)
    load_tokenizer("demo").save_pretrained(run.tuned)
    adapters = run.student(run.reference_model(), trained=False)
    torch.manual_seed(1)
    state = {name: torch.randn_like(p) * 0.05 for name, p in adapters.state().items()}
    training.save_whole(state, run.trained)
    return Aligned(run)


def make_questions(model: Aligned, count: int, tokens: int, draw: random.Random) -> list[dict[str, Any]]:
    """Return requests, with the library's answer to each alone."""
    codes = (*model.languages, "en", "reference")
    examples = parallel_examples(model.run.config, None, model.languages)
    found = []
    for number in range(count):
        code, example = codes[number % len(codes)], draw.choice(examples)
        text, most = (
            example.turns[code if code in example.turns else "en"].instruction,
            draw.randint(2, tokens),
        )
        if code == "reference":
            answer = model.reference([text], max_new_tokens=most)[0]
        else:
            answer = model.generate([text], code, max_new_tokens=most)[0]
        ask = {"model": code, "messages": [{"role": "user", "content": text}], "max_tokens": most}
        found.append({"ask": ask, "answer": answer})
    return found


def load(
    port: int, process: psutil.Process, questions: list[dict], asked: argparse.Namespace, draw: random.Random
) -> dict[str, Any]:
    """Send all requests and return the results."""
    kinds = draw.choices(list(KINDS), weights=list(KINDS.values()), k=asked.requests)
    work = [(kind, draw.choice(questions)) for kind in kinds]
    memory, results, began = [memory_of(process)], [], time.monotonic()
    quarter = -(-len(work) // 4)
    with ThreadPoolExecutor(asked.at_once) as pool:
        for start in range(0, len(work), quarter):
            part = work[start : start + quarter]
            results += pool.map(lambda one: send(port, *one), part)
            memory.append(memory_of(process))
    took = time.monotonic() - began
    times = sorted(one["seconds"] for one in results if one["status"] == 200)
    counts = Counter(one["kind"] for one in results)
    right = Counter(one["kind"] for one in results if one["right"])
    rows = {
        kind: {"requests": counts[kind], "as wanted": right[kind], "status": WANTED.get(kind)}
        for kind in KINDS
    }
    bad = [one for one in results if not one["right"]]
    print(f"{len(results)} requests in {took:.1f} s, {len(bad)} unexpected; memory {memory} MiB")
    return {
        "requests": len(results),
        "at_once": asked.at_once,
        "seconds": round(took, 1),
        "kinds": rows,
        "not_as_wanted": bad[:10],
        "answer_seconds": {
            "p50": round(statistics.median(times), 3),
            "p95": round(times[int(0.95 * len(times))], 3),
        },
        "memory_mib": memory,
    }


def memory_of(process: psutil.Process) -> float:
    return round(process.memory_full_info().uss / 2**20, 1)


def send(port: int, kind: str, question: dict[str, Any]) -> dict[str, Any]:
    """Send one request of a kind, and check the response."""
    ask, began = question["ask"], time.monotonic()
    stream = "stream" in kind
    body = json.dumps(ask | {"stream": True} if stream else ask).encode()
    body = {"broken JSON": body[:-5], "invalid UTF-8": body[:-1] + b', "user": "\xff"}'}.get(kind, body)
    if kind == "too large":
        body = json.dumps(ask | {"user": "a" * (1 << 20)}).encode()
    host = "rebound.example" if kind == "foreign host" else f"127.0.0.1:{port}"
    lines = ["POST /v1/chat/completions HTTP/1.1", f"Host: {host}", "Content-Type: application/json"]
    lines += [f"Authorization: Bearer {'another' if kind == 'wrong key' else KEY}", "Connection: close"]
    lines += ["Origin: https://evil.example"] if kind == "foreign origin" else []
    head = "\r\n".join([*lines, f"Content-Length: {len(body)}"]) + "\r\n\r\n"
    answer = b""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=600) as connection:
            connection.sendall(head.encode() + body)
            if kind == "hang up":
                return {"kind": kind, "right": True, "status": None, "seconds": 0.0}
            while piece := connection.recv(65536):
                answer += piece
                if kind == "hang up in a stream":
                    return {"kind": kind, "right": True, "status": None, "seconds": 0.0}
    except OSError:  # the server may close the connection while a body that is too large is being sent
        if kind != "too large":
            raise
    status = int(answer.split(b" ", 2)[1]) if answer else None
    right = status == WANTED[kind] or (kind == "too large" and status is None)
    said = None
    if right and kind in ("whole", "stream"):
        said = text_of(answer, stream)
        right = said == question["answer"]
    elif right and answer:
        right = set(json.loads(unchunked(answer))["error"]) == {"message", "type", "param", "code"}
    result = {"kind": kind, "right": right, "status": status, "seconds": time.monotonic() - began}
    return result if right else result | {"said": said, "wanted": question["answer"]}


def unchunked(answer: bytes) -> bytes:
    """Return the body of an HTTP response."""
    head, _, rest = answer.partition(b"\r\n\r\n")
    if b"transfer-encoding: chunked" not in head.lower():
        return rest
    body = b""
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        body, rest = body + rest[: int(size, 16)], rest[int(size, 16) + 2 :]
    return body


def text_of(answer: bytes, stream: bool) -> str:
    body = unchunked(answer).decode()
    if not stream:
        return json.loads(body)["choices"][0]["message"]["content"]
    events = [one.removeprefix("data: ") for one in body.split("\n\n") if one]
    assert events.pop() == "[DONE]"
    return "".join(json.loads(one)["choices"][0]["delta"].get("content", "") for one in events)


if __name__ == "__main__":
    main()
