"""From the command's options to a server that runs: where it listens, who may ask, what is written down."""

import ipaddress
import json
import os
import socket
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import uvicorn

from isogloss.errors import ConfigError, RunError
from isogloss.inference import Aligned
from isogloss.serve import batches
from isogloss.serve.app import REFERENCE, make_app
from isogloss.serve.guard import Access

CONNECTIONS = 1024
"""At the same time, at most; uvicorn answers others with 503."""
GRACE = 300
"""Seconds that a stopped server takes to finish what it began, at most."""


def listen(
    host: str, port: int, key_env: str | None, *, without_key: bool = False, names: Sequence[str] = ()
) -> tuple[socket.socket, Access]:
    """A socket that listens, and who may ask there.

    Args:
        host: A name or address of this machine, IPv4 or IPv6.
        key_env: Name of the environment variable that holds the key.
        without_key: Beyond the loopback no key is asked for.
        names: Other names or addresses under which requests may come.

    Raises:
        ConfigError: Beyond the loopback there is neither a key nor the word that none is wanted; the variable
            is empty; or a name is none.
        RunError: The address cannot be listened on.
    """
    if key_env is not None and without_key:
        raise ConfigError("--without-key: --api-key-env names a key; leave one of them out")
    key = None if key_env is None else os.environ.get(key_env, "")
    if key == "":
        raise ConfigError(f"--api-key-env: the environment variable {key_env} is not set; put the key there")
    access = Access(key, frozenset((host, *names)))
    try:
        listening = socket.create_server(
            (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET
        )
    except OSError as error:
        reason = (error.strerror or str(error)).partition(" (")[0]
        raise RunError(
            f"cannot listen on {host}:{port}: {reason}; name another --port or --host; --port 0 takes a free "
            "port"
        ) from None
    within = ipaddress.ip_address(listening.getsockname()[0].partition("%")[0]).is_loopback
    refusal = ""
    if within and without_key:
        refusal = f"--without-key: {host} is reached from this machine alone; leave it out"
    if not within and not without_key and key is None:
        refusal = (
            f"--host: {host} is reached from other machines; name a key with --api-key-env, or answer "
            "whoever asks with --without-key"
        )
    if refusal:
        listening.close()
        raise ConfigError(refusal)
    return listening, access


@contextmanager
def open_record(file: Path | None) -> Iterator[batches.Record | None]:
    """What appends requests and answers to a file that nobody else may read; nothing without a file."""
    if file is None:
        yield None
        return
    private = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    if stat.S_ISREG(os.fstat(private).st_mode):  # one that was there may be open to others; not /dev/stdout
        os.fchmod(private, 0o600)
    with open(private, "a", encoding="utf-8") as lines:  # noqa: PTH123  # pathlib takes no descriptor

        def record(request: batches.Request, prompt: str, answer: str, finish: batches.Finish) -> None:
            row = {"time": datetime.now(UTC).isoformat(timespec="milliseconds")}
            row |= {"model": request.code or REFERENCE, "prompt": prompt, "answer": answer, "finish": finish}
            lines.write(json.dumps(row, ensure_ascii=False) + "\n")
            lines.flush()

        yield record


def serve_until_stopped(
    model: Aligned, listening: socket.socket, *, access: Access, record: batches.Record | None, **limits: Any
) -> None:
    """Answer until the process is told to stop, and then whatever was asked before.

    Args:
        limits: Those of `make_app`.
    """
    app = make_app(model, access=access, record=record, **limits)
    settings: dict[str, Any] = {"log_level": "warning", "access_log": False, "server_header": False}
    settings |= {"limit_concurrency": CONNECTIONS, "timeout_graceful_shutdown": GRACE}
    uvicorn.Server(uvicorn.Config(app, **settings)).run(sockets=[listening])
