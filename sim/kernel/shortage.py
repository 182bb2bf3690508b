"""The errors of the kernel that mean a shortage: this host is too small, and nothing is wrong."""

from __future__ import annotations

import errno

from nodes.errors import HostError, UsageError

__all__ = ["error_of_path", "is_shortage"]

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


def error_of_path(error: OSError, text: str) -> HostError | UsageError:
    """The error to raise for a path that the user has named: ``text`` and the kernel's reason.

    A lack of rights is the user's error: another path can be named.
    """
    made = HostError if is_shortage(error) and error.errno not in _RIGHTS else UsageError
    return made(f"{text}: {error.strerror or error}")


def is_shortage(error: OSError) -> bool:
    """Whether this host lacks room, descriptors, processes, memory or rights."""
    return error.errno in _SHORTAGES
