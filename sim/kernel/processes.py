"""Processes of this host: children that are waited for by descriptor, parents that they end with, scheduling.

A worker is an orphan that the coordinator adopts (PR_SET_CHILD_SUBREAPER, prctl(2)): the process that forks it
exits at once. So the coordinator reads each exit code itself, whatever becomes of the process that forked.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from nodes.errors import HostError
from sim.kernel.closeable import closing
from sim.kernel.waiting import readable_within

RUN_VARIABLE = "IVSIM_RUN"
"""The variable in the environment of every process of a run; its value is the run's runtime directory."""

PR_SET_PDEATHSIG, PR_SET_NAME, PR_SET_TIMERSLACK = 1, 15, 29
PR_SET_CHILD_SUBREAPER, PR_GET_CHILD_SUBREAPER = 36, 37
POLICIES = {
    "other": os.SCHED_OTHER,
    "batch": os.SCHED_BATCH,
    "idle": os.SCHED_IDLE,
    "fifo": os.SCHED_FIFO,
    "rr": os.SCHED_RR,
}
WAIT_FOR_ALL_KINDS = 0x40000000  # __WALL: also children whose end is no SIGCHLD
END_PATIENCE_S = 2.0
NAME_LENGTH_MAX = 100
NAME_BYTES_MAX = 15

_libc = ctypes.CDLL(None, use_errno=True)


class ChildProcess:
    """A child of this process, present or future: an orphan to be is still its parent's. Owns a pidfd."""

    def __init__(self, pid: int) -> None:
        """Raises ``ProcessLookupError`` when it has ended and its exit code is gone."""
        self.pid = pid
        self.descriptor = os.pidfd_open(pid)
        self._code: int | None = None

    def exit_code(self) -> int | None:
        """Its exit code, or the negative number of the signal that ended it; None while it runs."""
        if self._code is None:
            with contextlib.suppress(ChildProcessError):  # it is still the child of another process
                ended = os.waitid(os.P_PIDFD, self.descriptor, os.WEXITED | os.WNOHANG)
                if ended is not None:
                    self._code = ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status
        return self._code

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal; nothing happens when it has ended."""
        if self._code is None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.descriptor, number)

    def close(self) -> None:
        """Collect its exit if it has ended, and close the descriptor. Never waits: `end_children` does, for all."""
        if self.descriptor >= 0:
            self.exit_code()
            os.close(self.descriptor)
            self.descriptor = -1


def tie_to(parent: int, adopter: int) -> bool:
    """Once ``parent`` has ended: end with ``adopter``, the process that adopts orphans. False: it has ended.

    The order matters: what is tied to its parent before would end with that parent.
    """
    while os.getppid() == parent:
        # One that has ended is not found, and getppid() will say so.
        with contextlib.suppress(ProcessLookupError), closing(os.pidfd_open(parent)) as descriptor:
            readable_within(descriptor, None)
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    _libc.prctl(PR_SET_TIMERSLACK, 1, 0, 0, 0)
    return os.getppid() == adopter


def end_with_parent(number: signal.Signals = signal.SIGKILL) -> None:
    """The kernel sends this process a signal when the thread that forked it ends (PR_SET_PDEATHSIG, prctl(2)).

    For the time between fork and exec, or for a program that then looks whether its parent is still there.
    """
    _libc.prctl(PR_SET_PDEATHSIG, number, 0, 0, 0)


def keep_orphans() -> None:
    """Adopt the orphans among this process's descendants from now on."""
    _libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


@contextlib.contextmanager
def adopting_orphans() -> Iterator[None]:
    """Adopt the orphans among this process's descendants: their exits can then be waited for (``os.P_PIDFD``)."""
    before = ctypes.c_int()
    _libc.prctl(PR_GET_CHILD_SUBREAPER, ctypes.byref(before), 0, 0, 0)
    keep_orphans()
    try:
        yield
    finally:
        _libc.prctl(PR_SET_CHILD_SUBREAPER, before.value, 0, 0, 0)


def descriptors(pid: int) -> Iterator[tuple[int, str]]:
    """The descriptors of a process, and the link of each (proc(5)); none of a process of another user."""
    with contextlib.suppress(OSError):
        for name in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):  # closed meanwhile
                yield int(name), os.readlink(f"/proc/{pid}/fd/{name}")


def children() -> set[int]:
    """The children of this process, adopted ones and zombies included (proc_pid_task(5))."""
    found: set[int] = set()
    for task in os.listdir("/proc/self/task"):
        with contextlib.suppress(OSError):  # this thread has ended meanwhile
            found.update(map(int, Path(f"/proc/self/task/{task}/children").read_text().split()))
    return found


def end_children(
    keep: Collection[int] = (), *, marked: Callable[[int], bool] = lambda _pid: True
) -> tuple[list[str], bool]:
    """Kill this process's children, and theirs as they become orphans, until none is left or 2 s have passed.

    Needs `keep_orphans`, or orphans escape. Spares the IDs in ``keep`` and those that are not ``marked``.

    Returns:
        The command line of each that ran, and whether none is left.
    """
    if not _has_children():
        return [], True
    ended: dict[int, str] = {}
    deadline_s = time.monotonic() + END_PATIENCE_S
    while True:
        left = [pid for pid in children() if pid not in keep and (pid in ended or marked(pid))]
        if not left or time.monotonic() > deadline_s:
            return [name for name in ended.values() if name], not left
        for pid in left:
            if pid not in ended:
                ended[pid] = _command(pid)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
        time.sleep(0.001)


def _has_children() -> bool:
    """Whether this process has any child, zombies included (waitid(2))."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT | WAIT_FOR_ALL_KINDS)
    except ChildProcessError:
        return False
    return True


def _command(pid: int) -> str:
    """The command line of a process in brief; "" for a zombie."""
    words = _told_of(pid, "cmdline").replace(b"\0", b" ").decode(errors="replace").strip()
    return f"{pid} ({words[:NAME_LENGTH_MAX]})" if words else ""


def name_process(name: str) -> None:
    """Set the name of this process as `ps` and `top` show it; processes that it forks inherit it (comm, proc(5))."""
    _libc.prctl(PR_SET_NAME, name.encode()[:NAME_BYTES_MAX], 0, 0, 0)


def process_name(pid: int) -> str:
    """The name of a process, a zombie included; "" when it is gone."""
    return _told_of(pid, "comm").decode(errors="replace").strip()


def run_of(pid: int) -> str:
    """The runtime directory of the run that a process belongs to; "" for none, a zombie, and a process that is gone."""
    for entry in _told_of(pid, "environ").split(b"\0"):
        name, _, value = entry.partition(b"=")
        if name == RUN_VARIABLE.encode():
            return os.fsdecode(value)
    return ""


def has_stopped(pid: int) -> bool:
    """Whether SIGSTOP has taken effect (proc_pid_stat(5))."""
    return stat_fields(pid)[:1] in (["T"], ["t"])


def wants_cpu(pid: int) -> bool:
    """Whether a process runs, waits for a CPU or for a disk; False while it sleeps, is stopped or gone."""
    return stat_fields(pid)[:1] in (["R"], ["D"])


def work_ticks(pid: int) -> int:
    """The CPU time that a process and its finished children have used, in clock ticks; 0 when it is gone."""
    return sum(map(int, stat_fields(pid)[11:15]))


def stat_fields(pid: int) -> list[str]:
    """The fields of proc_pid_stat(5) from the third, the state, on; none when the process is gone."""
    # The command, in parentheses, may contain spaces and parentheses.
    return _told_of(pid, "stat").rpartition(b")")[2].decode().split()


def _told_of(pid: int, file: str) -> bytes:
    """What the kernel tells of a process in a file of proc(5); nothing when the process is gone, or another user's."""
    try:
        return Path(f"/proc/{pid}/{file}").read_bytes()
    except OSError:
        return b""


def describe_exit(code: int) -> str:
    """An exit code in words: "SIGKILL", "exit 1"."""
    if code >= 0:
        return f"exit {code}"
    with contextlib.suppress(ValueError):
        return signal.Signals(-code).name
    return f"signal {-code}"


def schedule(cpus: tuple[int, ...], policy: str, priority: int, nice: int) -> None:
    """Run this process on these CPUs (none: any that it may use) under that policy.

    Raises:
        HostError: this host or this user does not permit it.
    """
    try:
        if cpus:
            os.sched_setaffinity(0, cpus)
        if policy != "other":
            os.sched_setscheduler(0, POLICIES[policy], os.sched_param(priority))
        if nice:
            os.setpriority(os.PRIO_PROCESS, 0, nice)
    except OSError as error:
        wanted = f"CPUs {list(cpus) or 'any'}, policy {policy}, priority {priority}, nice {nice}"
        raise HostError(f"this host does not run a process on {wanted}: {error.strerror}") from error
