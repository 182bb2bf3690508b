"""The log of a server: one JSON object a line, written without waiting for the reader."""

from __future__ import annotations

import json
import os
import select
import stat
import time
from datetime import UTC, datetime

from nodes.errors import UsageError


class EventLog:
    """Writes to ``descriptor``, which it owns if ``owned``.

    The reader of a pipe or a terminal may be slow: a line that would have to wait is dropped, and the next written line
    says how many were dropped. When nothing can be written any more (no reader, a full disk), the server goes on
    without it.
    """

    def __init__(self, descriptor: int, *, owned: bool) -> None:
        self._descriptor, self._owned = descriptor, owned
        self._poll: select.poll | None = None
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            self._poll = select.poll()
            self._poll.register(descriptor, select.POLLOUT)
        self.dropped = 0
        self.failure = ""
        """Why the last line could not be written, unless its reader was too slow."""

    def write(self, event: str, **details: object) -> None:
        """One line; ``details`` that are None are left out."""
        now_s = time.time()
        told = {key: value for key, value in details.items() if value is not None}
        if self.dropped:
            told["lines_dropped"] = self.dropped
        line = {"time": datetime.fromtimestamp(now_s, UTC).isoformat(timespec="microseconds"), "event": event} | told
        self.put(json.dumps(line))

    def put(self, text: str) -> None:
        """Write one short line as it is."""
        try:
            # A pipe that is writable has room for PIPE_BUF bytes at least (pipe(7)), and a line is shorter.
            if self._poll is not None and not any(what & select.POLLOUT for _, what in self._poll.poll(0)):
                self.dropped += 1
                return
            os.write(self._descriptor, f"{text}\n".encode())
        except OSError as error:
            self.dropped += 1
            self.failure = error.strerror or str(error)
        else:
            self.dropped = 0
            self.failure = ""

    def close(self) -> None:
        if self._owned:
            os.close(self._descriptor)


def open_log(target: str) -> EventLog:
    """A log that appends to ``target``; "-" is standard output. Raises ``UsageError`` if it cannot be opened."""
    if target == "-":
        return EventLog(1, owned=False)
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK
        return EventLog(os.open(target, flags, 0o640), owned=True)
    except OSError as error:
        raise UsageError(f"cannot write the log {target}: {error.strerror}") from error
