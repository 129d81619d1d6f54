"""Drive headless Chromium over a pipe with its DevTools protocol; nothing but the browser is needed."""

import base64
import contextlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-pipe",
    "--hide-scrollbars",
)


class Tab:
    """One browser page."""

    def __init__(self, reading: int, writing: int):
        self.reading, self.writing, self.buffer, self.number = reading, writing, b"", 0
        self.events: list[dict[str, Any]] = []
        self.session = ""
        target = self.do("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.do("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.do(f"{domain}.enable")

    def do(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command and return its result."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        message |= {"sessionId": self.session} if self.session else {}
        os.write(self.writing, json.dumps(message).encode() + b"\0")
        while True:
            found = self._next()
            if found.get("id") == self.number:
                assert "error" not in found, found
                return found["result"]
            self.events.append(found)

    def run(self, script: str) -> Any:
        """Evaluate an expression, await it and return its value."""
        found = self.do("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def until(self, script: str, seconds: float = 120.0) -> Any:
        """Wait until an expression is true and return its value."""
        end = time.monotonic() + seconds
        while not (value := self.run(script)):
            assert time.monotonic() < end, self.run("document.body.innerText")
            time.sleep(0.05)
        return value

    def go(self, address: str) -> None:
        self.do("Page.navigate", url=address)
        self.until(f"location.href.startsWith({json.dumps(address)}) && document.readyState === 'complete'")

    def press(self, key: str, code: int) -> None:
        text = {"text": "\r"} if key == "Enter" else {}
        for kind in ("keyDown", "keyUp"):
            self.do("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code, **text)

    def look(self, file: Path, *, width: int = 1100, height: int = 900, dark: bool = False) -> None:
        """Save a screenshot of the whole page."""
        phone = width < 600
        self.do(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=2 if phone else 1,
            mobile=phone,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.do("Emulation.setEmulatedMedia", features=[scheme])
        shot = self.do("Page.captureScreenshot", captureBeyondViewport=True)
        file.write_bytes(base64.b64decode(shot["data"]))

    def complaints(self) -> list[str]:
        """Return console messages, exceptions, and URLs of requests to other hosts."""
        self.run("0")
        found = []
        for event in self.events:
            kind, params = event.get("method"), event.get("params", {})
            if kind in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"):
                found.append(json.dumps(params))
            if kind == "Network.requestWillBeSent":
                url = params["request"]["url"]
                if not url.startswith(("http://127.0.0.1:", "data:", "about:")):
                    found.append(url)
        return found

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self.buffer:
            piece = os.read(self.reading, 1 << 16)
            assert piece, "Chromium exited"
            self.buffer += piece
        one, _, self.buffer = self.buffer.partition(b"\0")
        return json.loads(one)


@contextlib.contextmanager
def chromium(profile: Path) -> Iterator[Tab]:
    """Yield a tab of a browser that runs inside the context; skip the test if Chromium is not installed."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        pytest.skip("Chromium is not installed: apt-get install chromium")
    theirs, writing = os.pipe()
    reading, answering = os.pipe()
    command = f'exec "$@" 3<&{theirs} 4>&{answering}'
    flags = [*FLAGS, f"--user-data-dir={profile}"]
    process = subprocess.Popen(
        ["bash", "-c", command, "bash", browser, *flags],
        pass_fds=(theirs, answering),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(theirs)
    os.close(answering)
    try:
        tab = Tab(reading, writing)
        yield tab
    finally:
        process.kill()
        process.wait()
        os.close(writing)
        os.close(reading)
