"""The workers as their parent holds them: started from the fork server, watched, ended."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import types
from collections.abc import Iterator
from multiprocessing import forkserver
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from sim import recording, worker
from sim.control import Control
from sim.kernel.signals import signals_ignored
from sim.recording import Recording, State
from sim.worker import WorkerPlan

__all__ = ["ForkServer", "Hand", "describe_exit"]


class Hand:
    """One worker: its process, its control socket, its recording. Owns all three."""

    def __init__(self, plan: WorkerPlan, book: Recording) -> None:
        self.plan = plan
        self.machine = plan.machine
        self.name = plan.name
        self.book = book
        self.control, self._theirs = Control.pair()
        self.process: ForkServerProcess | None = None
        self.ready = False
        self.stopped = False
        self.failure: str | None = None
        self.exit: str | None = None

    @property
    def state(self) -> int:
        return self.book.words[recording.STATE]

    @property
    def lives(self) -> bool:
        return self.process is not None and self.exit is None

    @property
    def pid(self) -> int:
        assert self.process is not None
        assert self.process.pid is not None
        return self.process.pid

    def start(self) -> None:
        context = multiprocessing.get_context("forkserver")
        self.process = context.Process(
            target=worker.main, args=(self.plan, self._theirs), name=f"ivsim {self.name}", daemon=True
        )
        with _without_main():
            self.process.start()
        self._theirs.close()

    def reap(self) -> str | None:
        """If it has ended: how, in words; "" when it ended as it should. None while it lives."""
        assert self.process is not None
        self.process.join(0)
        if self.process.exitcode is None:
            return None
        code = self.process.exitcode
        self.exit = "" if code == 0 and self.state == State.STOPPED else describe_exit(code)
        return self.exit

    def kill(self) -> None:
        if self.lives and self.process is not None:
            self.process.kill()

    def close(self) -> None:
        """End the process if it has not ended, and let go of everything."""
        self.kill()
        self.control.close()
        self._theirs.close()
        if self.process is not None:
            self.process.join()
            self.process.close()
        self.book.close()


def describe_exit(code: int) -> str:
    """An exit code in words: "SIGKILL", "exit 1"."""
    if code >= 0:
        return f"exit {code}"
    with contextlib.suppress(ValueError):
        return signal.Signals(-code).name
    return f"signal {-code}"


class ForkServer:
    """The process from which workers are forked, with all they need loaded and frozen. Ends with the run.

    It is the standard library's, of which a process has one. If somebody in this process has started it before,
    with other modules, it is left to them: workers are then slower to start, and otherwise the same. Its socket
    lies in ``runtime``, with those of the run.
    """

    def __init__(self, runtime: Path) -> None:
        self._runtime = runtime

    def __enter__(self) -> ForkServer:
        # The standard library has no public name for what it runs, nor a way to end it before the interpreter ends.
        server: Any = getattr(forkserver, "_forkserver")  # noqa: B009
        self._server, self._ours = server, server._forkserver_pid is None
        preloaded = server._preload_modules
        server.set_forkserver_preload(["sim.zygote"])
        try:
            with signals_ignored(), _importable(), _without_main(), _temporary_files_in(self._runtime):
                server.ensure_running()
        finally:
            server.set_forkserver_preload(preloaded)
        return self

    def __exit__(self, *_: object) -> None:
        if self._ours:
            self._server._stop()


@contextlib.contextmanager
def _without_main() -> Iterator[None]:
    """Hide the ``__main__`` module: a worker would run the user's script again to have it, and needs nothing of it."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


@contextlib.contextmanager
def _temporary_files_in(directory: Path) -> Iterator[None]:
    """Let ``multiprocessing`` make its sockets here, where orphans clean up, and not in a directory of its own."""
    config: dict[str, Any] = getattr(multiprocessing.current_process(), "_config")  # noqa: B009
    previous = config.get("tempdir")
    config["tempdir"] = str(directory)
    try:
        yield
    finally:
        config["tempdir"] = previous


@contextlib.contextmanager
def _importable() -> Iterator[None]:
    """Let the fork server find what this process can import: it looks only at PYTHONPATH."""
    previous = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    try:
        yield
    finally:
        if previous is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = previous
