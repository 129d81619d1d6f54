"""An HTTP endpoint on loopback that injects faults; tests define its responses and which requests fail."""

import json
import threading
import time
from collections import Counter
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Faulty(ThreadingHTTPServer):
    """Answer POST requests, after the faults that are queued for the requested names.

    A fault is `slow`, `drop`, `cut` (fewer bytes than the content length), `half` (a complete HTTP response
    whose JSON ends in the middle), a tuple of a status, headers and a body, or a value for `answered`.
    """

    daemon_threads = True
    refusal = b"{}"
    """The body of a status fault that gives none."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.faults: dict[Any, list] = {}
        self.asked: Counter = Counter()
        self.bodies, self.headers = [], []
        self.times: list[tuple[float, Hashable]] = []
        self.release = threading.Event()
        self.lock = threading.Lock()
        self.now = self.most = 0
        self.pause = 0.0

    def names(self, body: dict[str, Any]) -> list[Hashable]:
        """Return the names that a request asks for; faults and counts are kept per name."""
        raise NotImplementedError

    def answered(self, body: dict[str, Any], fault: Any) -> Any:
        """Return the JSON value of a response."""
        raise NotImplementedError

    def handle_error(self, request, client_address):
        """Ignore errors, as some tests hang up on purpose."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    @contextmanager
    def serving(self) -> Iterator[Any]:
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        yield self
        self.release.set()
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Faulty

    def log_message(self, *args):
        pass

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        there, names = self.server, self.server.names(body)
        with there.lock:
            there.asked.update(names)
            there.times.append((time.monotonic(), names[0]))
            there.headers.append(dict(self.headers))
            there.bodies.append(body)
            fault = next((there.faults[name].pop(0) for name in names if there.faults.get(name)), None)
            there.now += 1
            there.most = max(there.most, there.now)
        try:
            time.sleep(there.pause)
            self.respond(fault, json.dumps(there.answered(body, fault)).encode())
        finally:
            with there.lock:
                there.now -= 1

    def respond(self, fault, sent: bytes):
        status, headers, length = 200, {}, len(sent)
        match fault:
            case "slow":
                self.server.release.wait(60)
            case "drop":
                self.close_connection = True
                return
            case "cut":
                sent, self.close_connection = sent[: length // 2], True
            case "half":
                sent = sent[: length // 2]
                length = len(sent)
            case (int() as status, *more):
                headers = more[0] if more else {}
                sent = more[1] if len(more) > 1 else self.server.refusal
                length = len(sent)
        self.send_response(status)
        for name, value in {**headers, "content-type": "application/json", "content-length": length}.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(sent)
