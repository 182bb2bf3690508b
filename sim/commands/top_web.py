"""The pages of `ivsim top --web`: a server on the loopback that sends each snapshot to the browsers that watch."""

from __future__ import annotations

import contextlib
import json
import threading
from collections import deque
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from nodes.errors import HostError, UsageError
from sim.kernel.shortage import is_shortage
from sim.views.html.live_page import live_page

HOST = "127.0.0.1"
KEPT = 2400
KEEP_ALIVE_S = 10.0
CLIENT_PATIENCE_S = 10.0


class LiveServer:
    """Serves the page and its events until it is closed. A context manager.

    Raises:
        UsageError, HostError: the port cannot be used.
    """

    def __init__(self, port: int) -> None:
        self._news = threading.Condition()
        self._kept: deque[tuple[int, str]] = deque(maxlen=KEPT)
        self._number = 0
        self._ended: str | None = None
        try:
            self._server = _Server((HOST, port), _Handler)
        except OSError as error:
            kind = HostError if is_shortage(error) and port == 0 else UsageError
            raise kind(f"cannot listen on {HOST}:{port}: {error.strerror}") from None
        self._server.live = self
        self._thread = threading.Thread(target=self._server.serve_forever, name="ivsim top --web")
        self._thread.start()

    @property
    def address(self) -> str:
        return f"http://{HOST}:{self._server.server_port}/"

    @property
    def hosts(self) -> tuple[str, str]:
        """The values of the header Host that are accepted: another one is a page of another site (DNS rebinding)."""
        port = self._server.server_port
        return f"{HOST}:{port}", f"localhost:{port}"

    def publish(self, snapshot: dict[str, Any]) -> None:
        """Send a snapshot to all browsers; those that come later get it, too."""
        with self._news:
            self._number += 1
            self._kept.append((self._number, json.dumps(snapshot, separators=(",", ":"))))
            self._news.notify_all()

    def events(self, seen: int) -> Iterator[bytes]:
        """The events after number ``seen``, as they come; a comment where nothing comes for long."""
        while True:
            with self._news:
                if self._number <= seen and self._ended is None:
                    self._news.wait(KEEP_ALIVE_S)
                fresh = [(number, text) for number, text in self._kept if number > seen]
                ended = self._ended
            for number, text in fresh:
                seen = number
                yield f"id: {number}\ndata: {text}\n\n".encode()
            if ended is not None:
                yield f"event: end\ndata: {ended}\n\n".encode()
                return
            if not fresh:
                yield b": still here\n\n"

    def close(self, why: str = "") -> None:
        """Tell the browsers that the run is over, or why nothing more comes, and end the server."""
        with self._news:
            self._ended = self._ended if self._ended is not None else why
            self._news.notify_all()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def __enter__(self) -> LiveServer:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close("" if kind is None else "not watched any more")


class _Server(ThreadingHTTPServer):
    daemon_threads = False
    live: LiveServer


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = CLIENT_PATIENCE_S
    server_version, sys_version = "ivsim", ""

    def do_GET(self) -> None:
        live = self.server.live
        if self.headers.get("Host") not in live.hosts:
            self.send_error(403)
        elif self.path == "/":
            self._answer("text/html; charset=utf-8", iter([live_page().encode()]))
        elif self.path == "/events":
            last = self.headers.get("Last-Event-ID") or ""
            self._answer("text/event-stream", live.events(int(last) if last.isascii() and last.isdigit() else 0))
        else:
            self.send_error(404)

    def _answer(self, kind: str, parts: Iterator[bytes]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        with contextlib.suppress(OSError):  # the browser has left, or does not read
            for part in parts:
                self.wfile.write(part)
                self.wfile.flush()

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing: the terminal is its user's."""
