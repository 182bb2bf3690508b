"""An ivshmem server as a child process: `serve_process`, a context manager."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from nodes.errors import HostError, UsageError
from nodes.wire.protocol import V0
from nodes.wire.v2.protocol import ALL_DIALECTS, V2
from sim.client import Peer
from sim.exit_codes import HOST_TOO_SMALL
from sim.host.runtime_directory import runtime_directory
from sim.kernel.closeable import Closeable
from sim.kernel.processes import describe_exit
from sim.wire.qemu_options import qemu_options

SOCKET_NAME = "ivshmem.sock"
END_PATIENCE_S = 30.0
# The kernel ends the server when the thread that has started it ends: the server removes what it has made.
CHILD = """
import os, signal, sys
sys.path[:] = {path!r}
from sim.kernel.processes import end_with_parent
end_with_parent(signal.SIGTERM)
if os.getppid() == {parent}:
    from sim.__main__ import main
    main()
"""


class ServerProcess(Closeable):
    """A server in a process of its own, see `serve_process`. A context manager.

    Attributes:
        path: the socket that clients connect to.
        vectors: how many eventfds each client gets.
        pid: the ID of the process.
    """

    def __init__(
        self, path: Path | None, options: list[str], *, vectors: int, dialect: str, timeout: float | None
    ) -> None:
        self.vectors, self._dialect, self._timeout = vectors, dialect, timeout
        with contextlib.ExitStack() as stack:
            self.path = path if path is not None else stack.enter_context(runtime_directory()) / SOCKET_NAME
            self._printed = stack.enter_context(tempfile.TemporaryFile())
            code = CHILD.format(path=sys.path, parent=os.getpid())
            command = [sys.executable, "-P", "-c", code, "serve", "-F", "-S", str(self.path), *options]
            read_end, write_end = os.pipe()
            with open(read_end, "rb") as ready:
                try:
                    self._process = subprocess.Popen(
                        [*command, "--ready-fd", str(write_end)],
                        stdin=subprocess.DEVNULL,
                        stdout=subprocess.DEVNULL,
                        stderr=self._printed,
                        pass_fds=(write_end,),
                        start_new_session=True,  # the signals of a terminal are for its user
                    )
                finally:
                    os.close(write_end)
                stack.callback(self._end)
                if not ready.read():
                    raise self._refusal()
            self._stack = stack.pop_all()

    def _refusal(self) -> HostError | UsageError:
        """Why the server has ended, in its own words."""
        code = self._process.wait()
        self._printed.seek(0)
        *_, words = ["", *self._printed.read().decode(errors="replace").strip().splitlines()]
        kind = HostError if code == HOST_TOO_SMALL else UsageError
        return kind(re.sub("^(ivsim|Error): ", "", words) or f"the server ended ({describe_exit(code)})")

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def qemu_options(self) -> str:
        """The options with which a real QEMU joins (of dialect v2, the QEMU fork): ``-chardev ... -device ...``."""
        return qemu_options(self.path, self.vectors, ALL_DIALECTS[self._dialect])

    def connect(self, *, vectors: int | None = None, timeout: float | None = None) -> Peer:
        """A peer of this server, as `sim.connect`; by default with as many vectors as the server gives."""
        return Peer(self.path, vectors=vectors or self.vectors, timeout=self._timeout if timeout is None else timeout)

    def _end(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(END_PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def close(self) -> None:
        """End the process, which removes its socket and its memory. Closing twice is no error."""
        self._stack.close()


def serve_process(
    path: str | os.PathLike[str] | None = None,
    size: int | str = "4M",
    vectors: int = 2,
    dialect: str = V0.name,
    *,
    memory_name: str | None = None,
    reuse_ids: bool = False,
    timeout: float | None = None,
    max_peers: int | None = None,
    output_size: int | str = 0,
    protocol: int = 0,
) -> ServerProcess:
    """Serve as `sim.serve` does, in a child process: the server has an interpreter of its own, and can be killed alone.

    The arguments are those of `sim.serve`. The process ends with the thread that has started it.

    Returns:
        The server, once clients can connect: a context manager that leaves nothing behind.

    Raises:
        UsageError: the path is in use, or an argument is wrong.
        HostError: there is no room for the memory.
    """
    if dialect != V2.name and (max_peers is not None or output_size or protocol):
        raise UsageError("max_peers, output_size and protocol go with dialect v2")
    options = ["-l", str(size), "-V", str(vectors), "--dialect", dialect, "-o", str(output_size), "-P", str(protocol)]
    options += [] if max_peers is None else ["-n", str(max_peers)]
    options += ["--memfd"] if memory_name is None else ["-M", memory_name]
    options += ["--reuse-ids"] * reuse_ids
    return ServerProcess(
        None if path is None else Path(path), options, vectors=vectors, dialect=dialect, timeout=timeout
    )
