"""The process from which workers are forked."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import sys
import types
from collections.abc import Iterator
from multiprocessing import forkserver, resource_tracker, util
from pathlib import Path
from typing import Any

from sim.kernel.signals import signals_held

__all__ = ["ForkServer", "without_main"]


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
        server.set_forkserver_preload(["sim.engines.process.zygote"])
        try:
            with signals_held(), _safe_path():
                resource_tracker.ensure_running()  # alone: it lets signals through again when it has started
            with signals_held(), _safe_path(), _importable(), without_main(), _temporary_files_in(self._runtime):
                server.ensure_running()
        finally:
            server.set_forkserver_preload(preloaded)
        return self

    def __exit__(self, *_: object) -> None:
        if self._ours:
            self._server._stop()


@contextlib.contextmanager
def without_main() -> Iterator[None]:
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
def _safe_path() -> Iterator[None]:
    """Start helpers with ``-P``: ``python -c``, which they are, otherwise imports from the current directory first."""
    name = "_args_from_interpreter_flags"
    flags = getattr(util, name)
    setattr(util, name, lambda: [*flags(), "-P"])
    try:
        yield
    finally:
        setattr(util, name, flags)


@contextlib.contextmanager
def _importable() -> Iterator[None]:
    """Let the fork server find what this process finds, except in the current directory.

    It looks only at PYTHONPATH. A worker gets the whole path of this process, current directory included, after the
    fork (``multiprocessing.spawn.prepare``): a program that only the caller's script can import is found there.
    """
    root = Path(__file__).parents[3]
    first, *others = sys.path or [""]  # the first entry is where the script lies, or the current directory
    entries = [first] if first and not _is_one_of(first, Path(), root) else []
    entries += [entry for entry in others if entry and (_is_one_of(entry, root) or not _is_one_of(entry, Path()))]
    if not any(_is_one_of(entry, root) for entry in entries):
        entries.append(str(root))  # a checkout that is not installed
    previous = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(entries)
    try:
        yield
    finally:
        if previous is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = previous


def _is_one_of(entry: str, *folders: Path) -> bool:
    """Whether a path names one of these folders; one that does not exist (any more) names none."""
    with contextlib.suppress(OSError):
        return any(os.path.samefile(entry, folder) for folder in folders)
    return False
