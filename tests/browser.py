"""A real browser without a screen: Chromium, driven by its DevTools protocol over a pipe.

Messages are JSON, each ended by a byte of value 0 (``--remote-debugging-pipe``). No library and no port is needed.
"""

from __future__ import annotations

import base64
import contextlib
import importlib.util
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sim.kernel.processes import children

__all__ = ["Page", "accessibility", "browser", "needs_browser"]

NAMES = ("chromium", "chromium-browser", "google-chrome")
PROGRAM = next((found for name in NAMES if (found := shutil.which(name))), None)
OPTIONS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars"),
    *("--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", "--remote-debugging-pipe", "about:blank"),
)
# The browser reads descriptor 3 and writes descriptor 4.
PIPES = """
import fcntl, os, sys
ends = [fcntl.fcntl(int(each), fcntl.F_DUPFD, 10) for each in sys.argv[1:3]]
os.dup2(ends[0], 3), os.dup2(ends[1], 4)
os.execv(sys.argv[3], sys.argv[3:])
"""
PATIENCE_S, ATTEMPTS = 20.0, 3
DESKTOP, PHONE = (1280, 900), (390, 844)

needs_browser = pytest.mark.skipif(PROGRAM is None, reason=f"no browser here: none of {', '.join(NAMES)}")


class Page:
    """One page of a browser.

    Attributes:
        complaints: what the page has put on its console as errors, and its exceptions.
        requests: the addresses that the page has asked for.
    """

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self._out, self._in = os.fdopen(to_browser, "wb", 0), os.fdopen(from_browser, "rb")
        self._buffer, self._number, self._session = b"", 0, ""
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self._events: list[str] = []
        target = self.send("Target.getTargets")["targetInfos"][0]["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol, and wait for its result."""
        self._number += 1
        call = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            call["sessionId"] = self._session
        try:
            self._out.write(json.dumps(call).encode() + b"\0")
        except BrokenPipeError:
            pytest.skip("the browser has ended by itself")
        while (message := self._receive()).get("id") != self._number:
            pass
        assert "error" not in message, message
        result: dict[str, Any] = message["result"]
        return result

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            part = os.read(self._in.fileno(), 1 << 16)
            if not part:
                pytest.skip("the browser has ended by itself")
            self._buffer += part
        text, _, self._buffer = self._buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(text)
        self._note(message.get("method", ""), message.get("params", {}))
        return message

    def _note(self, method: str, its: dict[str, Any]) -> None:
        self._events.append(method)
        if method == "Network.requestWillBeSent":
            self.requests.append(its["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(its["exceptionDetails"])[:500])
        elif method == "Log.entryAdded" and its["entry"]["level"] == "error":
            self.complaints.append(f"{its['entry']['text']} {its['entry'].get('url', '')}")

    def open(self, address: str) -> None:
        """Load an address, and wait until the page and its pictures are there.

        One load in some hundreds never ends, and the browser is idle: it is asked again.
        """
        for _ in range(ATTEMPTS):
            self._events.clear()
            self.send("Page.navigate", url=address)
            while "Page.loadEventFired" not in self._events and self._has_more():
                self._receive()
            if "Page.loadEventFired" in self._events:
                return
        pytest.fail(f"the browser does not load {address}")

    def _has_more(self) -> bool:
        """Whether a message has come, or comes in time."""
        return b"\0" in self._buffer or bool(select.select([self._in], [], [], PATIENCE_S)[0])

    def run(self, script: str) -> Any:
        """The value of an expression in the page; a promise is awaited."""
        done = self.send("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    def wait(self, condition: str) -> None:
        """Wait until an expression is true. Each change of the page is a reason to look again."""
        self.run(
            f"new Promise(done => {{ const look = () => ({condition}) ? done(true) : setTimeout(look, 20); look() }})"
        )

    def resize(self, width: int, height: int, *, dark: bool = False) -> None:
        """The size of the window in CSS pixels, and the colours that its user prefers."""
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])

    def key(self, name: str, code: int) -> None:
        """Press a key and let it go."""
        for kind in ("rawKeyDown", "keyUp"):
            self.send("Input.dispatchKeyEvent", type=kind, key=name, code=name, windowsVirtualKeyCode=code)

    def picture(self, path: Path, *, whole: bool = False) -> None:
        """Write what is seen, or the whole page, as PNG."""
        data = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=whole)["data"]
        path.write_bytes(base64.b64decode(data))

    def print(self, path: Path) -> None:
        """Write the page as it prints, as PDF."""
        path.write_bytes(base64.b64decode(self.send("Page.printToPDF", printBackground=False)["data"]))


@contextlib.contextmanager
def browser() -> Iterator[Page]:
    """A browser with an empty profile, until the end of the block."""
    assert PROGRAM is not None
    before = children()
    theirs_in, to_browser = os.pipe()
    from_browser, theirs_out = os.pipe()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [sys.executable, "-S", "-c", PIPES, str(theirs_in), str(theirs_out), PROGRAM]
        command += [f"--user-data-dir={profile}", *OPTIONS]
        with subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(theirs_in, theirs_out),
            env={**os.environ, "TMPDIR": profile, "HOME": profile},
            start_new_session=True,
        ) as process:
            os.close(theirs_in)
            os.close(theirs_out)
            try:
                page = Page(to_browser, from_browser)
                with page._out, page._in:
                    yield page
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, 9)
                process.wait()
                # Its crash handlers have sessions of their own, and end with it; this process adopts orphans.
                for orphan in children() - before:
                    os.waitpid(orphan, 0)


VIOLATIONS = """
axe.run({resultTypes: ['violations']}).then(done => done.violations.map(each => {
  const places = each.nodes.slice(0, 3).map(node => node.target + ' ' + node.failureSummary);
  return `${each.id} (${each.impact}): ${places.join('; ')}`;
}))
"""


def accessibility(page: Page) -> list[str]:
    """What axe-core finds wrong with the page that is open: the rule, its severity, and where."""
    package = importlib.util.find_spec("axe_core_python")
    assert package is not None
    assert package.origin is not None
    page.run(f"{Path(package.origin).with_name('axe.min.js').read_text()}; 0")
    return [str(each) for each in page.run(VIOLATIONS)]
