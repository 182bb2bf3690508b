"""A QMP connection to an external QEMU, on the socket that its `-qmp` or `-mon` option names."""

from __future__ import annotations

import json
import os
import socket
from types import TracebackType
from typing import Any

from nodes.errors import QemuError, UsageError
from sim.engines.qemu.qtest import LineConnection


class Qmp:
    """A blocking connection; a context manager.

    Raises:
        UsageError: nothing listens on the path.
        QemuError: it is no QMP monitor, or another client has it.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            sock.connect(os.fspath(path))
        except OSError as error:
            sock.close()
            raise UsageError(f"no QMP monitor listens on {path}: {error.strerror}") from error
        self._lines = LineConnection(sock, "QMP")
        try:
            if "QMP" not in json.loads(self._lines.line()):
                raise QemuError(f"what listens on {path} is no QMP monitor")
            self.execute("qmp_capabilities")
        except BaseException:
            self.close()
            raise

    def execute(self, name: str, **arguments: Any) -> Any:
        """Run a command; returns its result. Events are ignored.

        Raises:
            QemuError: QEMU refused it, in its words.
        """
        self._lines.send(json.dumps({"execute": name, "arguments": arguments}) + "\n")
        while True:
            answer = json.loads(self._lines.line())
            if "error" in answer:
                raise QemuError(f"QMP {name}: {answer['error'].get('desc', answer['error'])}")
            if "return" in answer:
                return answer["return"]

    def close(self) -> None:
        self._lines.close()

    def __enter__(self) -> Qmp:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
