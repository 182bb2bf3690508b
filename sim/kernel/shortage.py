"""The errors of the kernel that mean a shortage: this host is too small for a correct request."""

from __future__ import annotations

import errno
import os
import resource

from nodes.errors import HostError, UsageError

_SHORTAGES = frozenset(
    {
        errno.EACCES,
        errno.EAGAIN,
        errno.EDQUOT,
        errno.EFBIG,
        errno.EMFILE,
        errno.ENFILE,
        errno.ENOBUFS,
        errno.ENOMEM,
        errno.ENOSPC,
        errno.EPERM,
        errno.EROFS,
        errno.ETOOMANYREFS,
    }
)


_RIGHTS = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
_FULL = frozenset({errno.EDQUOT, errno.EFBIG, errno.ENOMEM, errno.ENOSPC})


def error_of_path(error: OSError, text: str) -> HostError | UsageError:
    """The error to raise for a path that the user has named: ``text`` and the kernel's reason.

    A lack of rights is the user's error: another path can be named.
    """
    made = HostError if is_shortage(error) and error.errno not in _RIGHTS else UsageError
    return made(f"{text}: {path_reason(error)}")


def path_reason(error: OSError, path: str | None = None) -> str:
    """The kernel's reason, and the directory that is missing where that is why ``path`` cannot be made.

    Args:
        error: the error.
        path: the path; if absent, the one that the error has.
    """
    reason = error.strerror or str(error)
    if path is None:
        path = error.filename if isinstance(error.filename, str) else ""
    folder = os.path.dirname(path)
    if error.errno == errno.ENOENT and folder and not os.path.isdir(folder):
        reason += f": there is no directory {folder}"
    return reason


def is_shortage(error: OSError) -> bool:
    """Whether this host lacks room, descriptors, processes, memory or rights."""
    return error.errno in _SHORTAGES


def why_no_room(error: OSError, place: str, size_bytes: int) -> str:
    """In words, why ``place`` does not hold memory of that size: only a full one has no room."""
    if error.errno in _FULL:
        return f"{place} has no room for {size_bytes} bytes of shared memory: {error.strerror}"
    return f"{place} cannot hold shared memory: {error.strerror}"


def explained(error: OSError) -> UsageError | HostError | OSError:
    """Return what is missing on this host, where the error says less; otherwise the error itself."""
    if error.errno == errno.ENOENT:
        try:
            os.getcwd()
        except OSError:
            return UsageError("the current directory has been removed: change to another one")
        if not os.path.isdir("/proc/self"):
            return HostError("this host has no /proc: mount it, see proc(5)")
    if error.errno == errno.EMFILE:
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return HostError(f"more than {limit} descriptors are needed, the limit of this process: raise it (ulimit -Hn)")
    return error
