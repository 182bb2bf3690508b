"""The process that workers are forked from, as the coordinator holds it.

It is an interpreter with all that a worker needs loaded and frozen (`sim.engines.process.zygote`). A request is one
message with two descriptors: the worker's configuration in a memfd, and its end of the control socket; it names the
template that the worker is forked from. A message with the first descriptor alone comes before, to make a template:
what machines of a kind have in common is made once. Nothing here waits: requests that do not fit into the socket are
sent when it is writable, and the worker itself reports its process ID on its control socket.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Callable
from multiprocessing import util
from pathlib import Path

import msgspec

from sim.engines.shared.configuration import WorkerConfiguration, common_part
from sim.kernel.channel import send_descriptors
from sim.kernel.loop import Loop
from sim.kernel.processes import RUN_VARIABLE, describe_exit, has_stopped, work_ticks
from sim.kernel.shortage import is_shortage
from sim.kernel.signals import signals_held

RETRY_NS = 2_000_000
END_PATIENCE_S = 5.0
LAST_WORDS_BYTES = 2000
TEMPLATES_MAX = 16
"""Machines of further kinds make for themselves what a template has."""
REHEARSED_FROM = 16
"""So many machines save the time of the rehearsals, 10 ms."""
STANDARD_ERROR = 2

_encode = msgspec.msgpack.Encoder().encode


class ForkServer:
    """Starts the process, hands it requests, ends it. ``on_end`` is called when it ends by itself."""

    def __init__(self, loop: Loop, runtime: Path, on_end: Callable[[], None], *, machines: int = 0) -> None:
        """Start the process.

        Args:
            runtime: the run's private directory, which it removes should the coordinator die first.
            machines: how many there will be at least. Many are worth a rehearsal (`sim.engines.process.rehearsal`).
        """
        self._rehearses = machines >= REHEARSED_FROM
        self._loop, self._on_end = loop, on_end
        self._waiting: deque[tuple[bytes, bytes, socket.socket | None]] = deque()
        """The text of each request, the configuration, and the control socket: none for a template."""
        self._templates: dict[bytes, int] = {}
        """Their numbers, by the common part of the configurations."""
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.setblocking(False)
        self.name = f"ivsim-{secrets.token_hex(4)}"
        """The name of the process and of its descendants, as long as they do not execute another program."""
        self._words = os.memfd_create("last words", os.MFD_CLOEXEC)
        self._life = -1
        try:
            with theirs:
                self._process = self._spawn(theirs, runtime)
            self._life = os.pidfd_open(self._process.pid)
        except BaseException:
            self._socket.close()
            os.close(self._words)
            raise
        loop.add(self._life, self._ended)

    def _spawn(self, theirs: socket.socket, runtime: Path) -> subprocess.Popen[bytes]:
        with contextlib.ExitStack() as stack:
            try:
                stderr = os.dup(STANDARD_ERROR)
            except OSError:  # it is closed
                stderr = os.open(os.devnull, os.O_WRONLY)
            stack.callback(os.close, stderr)
            arguments = f"{theirs.fileno()}, {stderr}, {str(runtime)!r}, {sys.path!r}, {self.name!r}"
            code = (
                f"import sys; sys.path[:] = {_safe_path()!r}; "
                f"from sim.engines.process import zygote; zygote.serve({arguments})"
            )
            # A terminal or a supervisor sends signals to the whole group; they are the coordinator's to handle.
            stack.enter_context(signals_held())
            return subprocess.Popen(
                [sys.executable, *_interpreter_flags(), "-P", "-c", code, "ivsim-forkserver"],
                stdin=subprocess.DEVNULL,
                stderr=self._words,
                pass_fds=(theirs.fileno(), stderr),
                env={**os.environ, RUN_VARIABLE: str(runtime)},
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def has_ended(self) -> bool:
        return self._process.poll() is not None

    def fork(self, configuration: WorkerConfiguration, control: socket.socket) -> None:
        """Have a worker forked that has this end of a control socket, which is closed here once it is sent.

        When no worker comes of it, the control socket ends.
        """
        if self.has_ended:
            control.close()
            return
        is_idle = not self._waiting
        template = self._template(configuration) if configuration.kind == "simulated" else None
        text = "none" if template is None else str(template)
        self._waiting.append((text.encode(), _encode(configuration), control))
        if is_idle:
            self._send()

    def state(self) -> str:
        """Its state in words, with its last output when it has ended."""
        if (code := self._process.poll()) is None:
            return f"the fork server (process {self.pid}) is {'stopped' if has_stopped(self.pid) else 'busy'}"
        words = os.pread(self._words, LAST_WORDS_BYTES, max(0, os.fstat(self._words).st_size - LAST_WORDS_BYTES))
        *_, last = [line.strip() for line in words.decode(errors="replace").splitlines() if line.strip()] or [""]
        return f"the fork server ended ({describe_exit(code)})" + (f": {last}" if last else "")

    def work(self) -> int:
        """How much it has worked, in clock ticks of CPU time."""
        return work_ticks(self.pid)

    def close(self) -> None:
        self._drop_requests()
        if self._life >= 0:
            self._loop.remove(self._life)
            self._loop.remove(self._socket)
            self._process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(END_PATIENCE_S)
            os.close(self._life)
            self._life = -1
            self._socket.close()
            os.close(self._words)

    def _template(self, configuration: WorkerConfiguration) -> int | None:
        """The number of the template for this configuration, which is requested before its first machine."""
        common = _encode(common_part(configuration))
        number = self._templates.get(common)
        if number is None and len(self._templates) < TEMPLATES_MAX:
            number = self._templates[common] = len(self._templates)
            # What machines of the first kind have rehearsed, those of other kinds execute, too, by far the most of it.
            self._waiting.append((b"rehearsed" if self._rehearses and not number else b"template", common, None))
        return number

    def _send(self) -> None:
        while self._waiting:
            text, configuration, control = self._waiting[0]
            try:
                self._send_one(text, configuration, control)
            except BlockingIOError:
                self._loop.add(self._socket, lambda: None, writable=self._send)
                return
            except OSError as error:
                if is_shortage(error):  # for now: too many descriptors are open, or under way (unix(7))
                    self._loop.remove(self._socket)
                    self._loop.at(self._loop.clock.now_ns() + RETRY_NS, self._send)
                    return
                self._drop_requests()  # its end is closed: it is about to end, or has ended
                return
            self._waiting.popleft()
            if control is not None:
                control.close()
        self._loop.remove(self._socket)

    def _send_one(self, text: bytes, configuration: bytes, control: socket.socket | None) -> None:
        memory = os.memfd_create("worker configuration", os.MFD_CLOEXEC)
        try:
            data = memoryview(configuration)
            while data:
                data = data[os.write(memory, data) :]
            os.lseek(memory, 0, os.SEEK_SET)  # the worker reads from there
            send_descriptors(self._socket, text, (memory,) if control is None else (memory, control.fileno()))
        finally:
            os.close(memory)

    def _drop_requests(self) -> None:
        while self._waiting:
            *_, control = self._waiting.popleft()
            if control is not None:
                control.close()

    def _ended(self) -> None:
        self._loop.remove(self._life)
        self._loop.remove(self._socket)
        self._drop_requests()
        self._on_end()


def _interpreter_flags() -> list[str]:
    """The options that this interpreter was started with, which the standard library has no public name for."""
    flags: list[str] = getattr(util, "_args_from_interpreter_flags")()  # noqa: B009
    return flags


def _safe_path() -> list[str]:
    """Where the fork server finds modules: as this process does, except in the current directory.

    A worker gets the whole path of this process after the fork, for programs that only the caller's script can import.
    """
    root = Path(__file__).parents[3]
    first, *others = sys.path or [""]  # the first entry is where the script lies, or the current directory
    entries = [first] if first and not _is_one_of(first, Path(), root) else []
    entries += [entry for entry in others if entry and (_is_one_of(entry, root) or not _is_one_of(entry, Path()))]
    if not any(_is_one_of(entry, root) for entry in entries):
        entries.append(str(root))  # a checkout that is not installed
    return entries


def _is_one_of(entry: str, *folders: Path) -> bool:
    """Whether a path names one of these folders; one that does not exist (any more) names none."""
    with contextlib.suppress(OSError):
        return any(os.path.samefile(entry, folder) for folder in folders)
    return False
