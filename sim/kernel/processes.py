"""What the kernel can be told about a worker's process: when it must end, and where and how it is run."""

from __future__ import annotations

import ctypes
import os
import signal
from multiprocessing import forkserver

from nodes.errors import HostError

__all__ = ["schedule", "tie_to_fork_server"]

PR_SET_PDEATHSIG = 1
PR_SET_TIMERSLACK = 29
POLICIES = {
    "other": os.SCHED_OTHER,
    "batch": os.SCHED_BATCH,
    "idle": os.SCHED_IDLE,
    "fifo": os.SCHED_FIFO,
    "rr": os.SCHED_RR,
}


def tie_to_fork_server() -> None:
    """Die with the fork server, and let it die with the coordinator: it lives while anyone holds its pipe."""
    prctl = ctypes.CDLL(None).prctl
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    prctl(PR_SET_TIMERSLACK, 1)
    alive = getattr(forkserver._forkserver, "_forkserver_alive_fd", None)
    if alive is not None:
        os.close(alive)
        forkserver._forkserver._forkserver_alive_fd = None  # type: ignore[attr-defined]


def schedule(cpus: tuple[int, ...], policy: str, priority: int, nice: int) -> None:
    """Run this process on these CPUs (none: wherever it may already) under that policy.

    Raises ``HostError`` for what this host or this user may not do.
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
