"""Which errors of the kernel say that this host is too small, and not that something is wrong."""

from __future__ import annotations

import errno

__all__ = ["is_lack"]

_LACKS = frozenset(
    {
        errno.EACCES,
        errno.EAGAIN,
        errno.EDQUOT,
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


def is_lack(error: OSError) -> bool:
    """Whether this host lacks room, descriptors, processes, memory or rights."""
    return error.errno in _LACKS
