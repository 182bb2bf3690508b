"""What the fault tests share: `ivsim` as a process group of its own, and checks that nothing of it is left."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil

from sim.kernel.signals import signals_held

PATIENCE_S = 60.0
"""For anything that makes progress; no test waits it out when all is well."""
GONE_S = 2.0
"""How long after the death of a coordinator its machines may live (README)."""


AT_FIRST_LINE = """
import signal
signal.signal(signal.SIGINT, signal.SIG_DFL)
signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
from sim.__main__ import main
main()
"""
"""`ivsim` from its first line. An interpreter that has not reached a line of a program loses signals or shows them in
its own way; when it is started with these signals blocked, they wait until here."""


def ivsim_command(*arguments: str | os.PathLike[str]) -> list[str]:
    return [sys.executable, "-m", "sim", *map(os.fspath, arguments)]


@contextlib.contextmanager
def ivsim(*arguments: str | os.PathLike[str], **options: object) -> Iterator[subprocess.Popen[str]]:
    """`ivsim` in a session of its own; whatever the test does, its group is killed at the end.

    Signals that end a program have no effect before its first line.
    """
    command = [sys.executable, "-P", "-c", AT_FIRST_LINE, *map(os.fspath, arguments)]
    with signals_held():
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            **options,  # type: ignore[call-overload]
        )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def run_ivsim(
    *arguments: str | os.PathLike[str],
    prefix: tuple[str, ...] = (),
    env: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run `ivsim` to its end."""
    return subprocess.run(
        [*prefix, *ivsim_command(*arguments)],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
        env=None if env is None else {**os.environ, **env},
    )


def family_of(pid: int) -> list[psutil.Process]:
    """Every descendant of a process, the helpers and machines of a run."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).children(recursive=True)
    return []


def wait_until(condition: object, what: str) -> None:
    """Wait for what is about to happen; fail with ``what`` when it does not."""
    deadline_s = time.monotonic() + PATIENCE_S
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline_s, what
        threading.Event().wait(0.005)


def only_directory(runs: Path) -> Path:
    (path,) = runs.iterdir()
    return path


def left_alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Return those that still run ``GONE_S`` later. A zombie has ended.

    The time for which they wait for a CPU does not count: on a busy host, that is not theirs.
    """
    began_s, before = time.monotonic(), {each.pid: waited_s(each.pid) for each in processes}
    waited = dict(before)
    while alive := [each for each in processes if is_alive(each)]:
        waited |= {each.pid: max(waited_s(each.pid), waited[each.pid]) for each in alive}
        if time.monotonic() - began_s > GONE_S + sum(waited.values()) - sum(before.values()):
            break
        threading.Event().wait(0.005)
    return alive


def is_alive(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def waited_s(pid: int) -> float:
    """How long a process has been waiting for a CPU so far (proc_pid_schedstat(5)); 0 where that is not known."""
    with contextlib.suppress(OSError, IndexError):
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9
    return 0.0
