"""Start the server from the command's options: socket, access rules and request record."""

import ipaddress
import json
import os
import socket
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
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
"""Maximum number of concurrent connections; uvicorn answers further ones with 503."""
GRACE = 300
"""Maximum seconds that a stopped server takes to finish open requests."""


def listen(
    host: str, port: int, key_env: str | None, *, without_key: bool = False, names: Sequence[str] = ()
) -> tuple[socket.socket, Access]:
    """Return a listening socket and its access rules.

    Args:
        host: A name or address of this machine, IPv4 or IPv6.
        key_env: Name of the environment variable that contains the key.
        without_key: Require no key although other machines can connect.
        names: Further names or addresses accepted in the `Host` header.

    Raises:
        ConfigError: The address is not on the loopback, and there is neither a key nor `without_key`;
            `without_key` has no effect or contradicts `key_env`; the variable is empty; or a name is invalid.
        RunError: The server cannot listen on the address.
    """
    if key_env is not None and without_key:
        raise ConfigError("--without-key: --api-key-env gives a key; leave one of them out")
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
            f"cannot listen on {host}:{port}: {reason}; choose another --port or --host; --port 0 takes a "
            "free port"
        ) from None
    within = ipaddress.ip_address(listening.getsockname()[0].partition("%")[0]).is_loopback
    refusal = ""
    if within and without_key:
        refusal = f"--without-key: {host} is only reachable from this machine; leave it out"
    if not within and not without_key and key is None:
        refusal = (
            f"--host: {host} is reachable from other machines; give a key with --api-key-env, or allow "
            "access to anyone with --without-key"
        )
    if refusal:
        listening.close()
        raise ConfigError(refusal)
    return listening, access


@contextmanager
def open_record(file: Path | None) -> Iterator[batches.Record | None]:
    """Yield a callback that appends requests and answers to a private file; None without a file."""
    if file is None:
        yield None
        return
    private = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    if stat.S_ISREG(os.fstat(private).st_mode):  # an existing file may be readable to others; not /dev/stdout
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
    """Serve until the process is told to stop, then finish the open requests.

    Args:
        limits: Limits passed on to `make_app`.
    """
    app = make_app(model, access=access, record=record, **limits)
    settings: dict[str, Any] = {"log_level": "warning", "access_log": False, "server_header": False}
    settings |= {"limit_concurrency": CONNECTIONS, "timeout_graceful_shutdown": GRACE}
    with suppress(KeyboardInterrupt):  # raised again once the server has stopped
        uvicorn.Server(uvicorn.Config(app, **settings)).run(sockets=[listening])
