"""Run a server on loopback for the duration of a test."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import httpx2
import uvicorn
from fastapi import FastAPI

from isogloss.inference import Aligned
from isogloss.serve.app import make_app

http_get, http_post = (partial(one, timeout=60) for one in (httpx2.get, httpx2.post))


@contextmanager
def serving(model: Aligned, **options: Any) -> Iterator[tuple[int, FastAPI]]:
    """Yield the port and application of a server that runs inside the context."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        app = make_app(model, **({"longest": 48} | options))
        app.state.server = server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        while not server.started:
            time.sleep(0.01)
        try:
            yield listening.getsockname()[1], app
        finally:
            server.should_exit = True
            thread.join(60)
    assert not thread.is_alive()


def until(true: Callable[[], object], seconds: float = 60.0) -> None:
    """Wait until a condition is true."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)
