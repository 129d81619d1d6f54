"""A chat endpoint on loopback that translates by a rule, with faults injected."""

import json
import re
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

SWAHILI = {
    "Where is the library?": "Maktaba iko wapi?",
    "What is the weather like today?": "Hali ya hewa ikoje leo?",
    "Write a letter to your mother.": "Andika barua kwa mama yako.",
    "Wake me up at 7 in the morning.": "Niamshe saa 7 asubuhi.",
    "Say hello to {name} for me.": "Msalimie {name} kwa niaba yangu.",
    "How do you cook rice with coconut?": "Unapikaje wali kwa nazi?",
    "The book is on the table.": "Kitabu kiko juu ya meza.",
    "I want to buy two kilograms of meat.": "Nataka kununua kilo mbili za nyama.",
}


class Endpoint(ThreadingHTTPServer):
    """Answers with the translations that it knows, after the faults that a text has left."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.faults: dict[str, list] = {}
        self.asked: Counter = Counter()
        self.bodies, self.times, self.headers = [], [], []
        self.release = threading.Event()
        self.lock = threading.Lock()
        self.now = self.most = 0
        self.pause = 0.0

    def handle_error(self, request, client_address):
        """A client that hangs up is what some tests want."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Endpoint

    def log_message(self, *args):
        pass

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        texts = re.findall(r"<(t+\d+)>(.*?)</\1>", body["messages"][-1]["content"], re.DOTALL)
        there = self.server
        with there.lock:
            there.asked.update(text for _, text in texts)
            there.bodies.append(body)
            there.headers.append(dict(self.headers))
            there.times.append(time.monotonic())
            there.now += 1
            there.most = max(there.most, there.now)
            fault = next((there.faults[t].pop(0) for _, t in texts if there.faults.get(t)), None)
        try:
            time.sleep(there.pause)
            self.respond(fault, texts)
        finally:
            with there.lock:
                there.now -= 1

    def respond(self, fault, texts):
        said = [f"<{tag}>{SWAHILI[text]}</{tag}>" for tag, text in texts]
        finish, status, headers = "stop", 200, {}
        match fault:
            case "slow":
                self.server.release.wait(60)
            case "drop":
                self.close_connection = True
                return
            case "one too few":
                said = said[:-1]
            case "one too many":
                said = [*said, "<t99>Zaidi.</t99>"]
            case "in English":
                said = [f"<{tag}>{text}</{tag}>" for tag, text in texts]
            case "length":
                said, finish = [said[0][: len(said[0]) // 2]], "length"
            case "nothing":
                said = []
        answer = {
            "choices": [{"message": {"content": "\n".join(said)}, "finish_reason": finish}],
            "usage": {"prompt_tokens": 10 * len(texts), "completion_tokens": 3 * len(texts)},
        }
        sent = json.dumps(answer).encode()
        length = len(sent)
        if fault == "cut":  # fewer bytes than were promised
            sent, self.close_connection = sent[: length // 2], True
        if fault == "half":  # a whole answer over HTTP whose JSON ends in the middle
            sent = sent[: length // 2]
            length = len(sent)
        if isinstance(fault, tuple):
            status, headers = fault
            sent = b'{"error": "no"}'
            length = len(sent)
        self.send_response(status)
        for name, value in {**headers, "content-type": "application/json", "content-length": length}.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(sent)
