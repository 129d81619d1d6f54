"""Access control and limits on request bodies, enforced before a body is read.

A page of another site can make its visitor's browser send requests to this machine, and if its owner points
a host name at this machine (DNS rebinding), the browser takes that page and the endpoint for one site. So
`Host` must be a known name of the endpoint, and `Origin`, if a browser sends one, the endpoint itself. CORS
permission is never granted, framing is forbidden, and messages of unexpected errors are never logged, as they
could contain a prompt.
"""

import asyncio
import hmac
import ipaddress
import logging
import re
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

from fastapi.responses import JSONResponse
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from isogloss.errors import ConfigError

LARGEST = 1 << 20
"""Maximum bytes of a request body: far more than a model can process."""
TOO_LARGE = f"the body has more than {LARGEST >> 20} MiB; shorten the messages"
PATIENCE = 30.0
"""Seconds within which a body must arrive: one sent byte by byte would delay the shutdown."""
LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
PUBLIC = frozenset({"/", "/page.css", "/page.js"})
"""Paths served without a key: those of the page that asks for the key."""
HEADERS = {
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
HOST = re.compile(r"(\[[0-9a-f:.]+\]|[^\s:/\[\]@]+)(:\d{1,5})?")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Access:
    """Access rules.

    Attributes:
        key: Required with every request as `Authorization: Bearer KEY`, except for `PUBLIC` paths; None
            requires no key.
        hosts: Names of the endpoint, besides those of the loopback and the address that a request was sent
            to.

    Raises:
        ConfigError: The key is not valid in a header, or a host is not a plain name or address.
    """

    key: str | None = field(default=None, repr=False)
    hosts: frozenset[str] = frozenset()

    def __post_init__(self):
        if self.key is not None and not re.fullmatch(r"[!-~]+", self.key):
            raise ConfigError("the key must be one or more printable ASCII characters without blanks")
        for host in self.hosts:
            if not (_is_address(host) or re.fullmatch(r"[^\s:/\[\]@]+", host)):
                raise ConfigError(
                    f"--host, --allow-host: {host!r} is not a host; give it without scheme, port and path"
                )

    def knows(self, host: str, reached: str | None) -> bool:
        """Return True if a `Host` header names this endpoint; `reached` is the address requested."""
        found = HOST.fullmatch(host.lower())
        if found is None:
            return False
        name = found[1].strip("[]").removesuffix(".")
        return name in LOOPBACK or name == reached or name in {one.lower() for one in self.hosts}

    def opens(self, authorization: str) -> bool:
        """Return True if the header contains the key; the comparison takes constant time."""
        if self.key is None:
            return True
        scheme, _, given = authorization.partition(" ")
        right = hmac.compare_digest(_digest(given.strip()), _digest(self.key))
        return right and scheme.lower() == "bearer"


def _digest(text: str) -> bytes:
    return sha256(text.encode("utf-8", "surrogateescape")).digest()


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


class Guard:
    """Middleware that rejects requests without access and bodies above `LARGEST` bytes."""

    def __init__(self, app: ASGIApp, access: Access):
        self.app, self.access = app, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun = False

        async def guarded(message: Message) -> None:
            nonlocal begun
            begun = True
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        if refusal := self._refusal(scope):
            await refusal(scope, receive, guarded)
            return
        try:
            await self.app(scope, _bounded(receive), guarded)
        except ClientDisconnect:
            pass
        except Exception as unforeseen:
            log(unforeseen)
            if not begun:
                said = f"{type(unforeseen).__name__} while answering"
                await error_response(said, 500, "server_error")(scope, receive, guarded)

    def _refusal(self, scope: Scope) -> JSONResponse | None:
        headers = Headers(scope=scope)
        hosts, origins = headers.getlist("host"), headers.getlist("origin")
        reached = (scope.get("server") or (None,))[0]
        if len(hosts) != 1 or not self.access.knows(hosts[0], reached):
            named = ", ".join(hosts) or "none"
            return error_response(
                f"Host: {named} is not a known name of this endpoint; if it should be, start it with "
                "--allow-host",
                403,
            )
        # The scheme is ignored: behind a TLS proxy, the browser's is https.
        if any(origin.partition("://")[2].lower() != hosts[0].lower() for origin in origins):
            return error_response("Origin: requests from pages of other sites are not allowed", 403)
        if scope["path"] not in PUBLIC and not self.access.opens(headers.get("authorization", "")):
            ask_for_it = {"WWW-Authenticate": "Bearer"}
            said = "Authorization: send the key as Bearer KEY"
            return error_response(said, 401, code="invalid_api_key", headers=ask_for_it)
        declared = headers.get("content-length", "")
        return error_response(TOO_LARGE, 413) if declared.isdecimal() and int(declared) > LARGEST else None


def _bounded(receive: Receive) -> Receive:
    """Wrap `receive` to reject bodies that are too large or too slow, with or without a declared length."""
    read, whole, until = 0, False, asyncio.get_running_loop().time() + PATIENCE

    async def bounded() -> Message:
        nonlocal read, whole
        try:
            async with asyncio.timeout_at(None if whole else until):
                message = await receive()
        except TimeoutError:
            raise HTTPException(408, f"the body did not arrive within {PATIENCE:.0f} seconds") from None
        read, whole = read + len(message.get("body", b"")), not message.get("more_body", False)
        if read > LARGEST:
            raise HTTPException(413, TOO_LARGE)
        return message

    return bounded


def log(unforeseen: Exception) -> None:
    """Log the traceback and type of an error, but not its message, which may contain a prompt."""
    frames = "".join(traceback.format_tb(unforeseen.__traceback__))
    _log.error("%s while answering\n%s", type(unforeseen).__name__, frames)


def error_response(
    message: str,
    status: int,
    kind: str = "invalid_request_error",
    param: str | None = None,
    code: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    """Return an error in OpenAI's format."""
    # A name from the request may contain a lone surrogate, which cannot be encoded.
    body: dict[str, Any] = {"message": message.encode("utf-8", "replace").decode(), "type": kind}
    body |= {"param": param and param.encode("utf-8", "replace").decode(), "code": code}
    return JSONResponse({"error": body}, status_code=status, headers=headers)
