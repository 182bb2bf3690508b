"""Locks that prove an owner: the kernel releases flock(2) when the process ends, in any way."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path


def is_locked(descriptor: int) -> bool:
    """Whether another description of this file has an exclusive lock. For a moment, this takes a shared one."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    return False


def lock_holder(descriptor: int) -> int | None:
    """Return the ID of the process that has locked this file (proc_locks(5)); None when it is not known."""
    found = os.fstat(descriptor)
    wanted = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
    try:
        lines = Path("/proc/locks").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        # 1: FLOCK  ADVISORY  WRITE 1234 00:19:701 0 EOF
        fields = line.split()
        if len(fields) >= 6 and fields[1] == "FLOCK" and fields[5] == wanted and fields[4].isdecimal():
            return int(fields[4]) or None
    return None
