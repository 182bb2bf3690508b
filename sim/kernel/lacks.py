"""Which errors of the kernel say that this host is too small, and not that something is wrong."""

from __future__ import annotations

import errno

__all__ = ["has_no_room", "is_lack"]

_LACKS = frozenset(
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


def has_no_room(error: OSError) -> bool:
    """Whether this host lacks anything but rights: of a path that the user has named, another one can be named."""
    return is_lack(error) and error.errno not in _RIGHTS


def is_lack(error: OSError) -> bool:
    """Whether this host lacks room, descriptors, processes, memory or rights."""
    return error.errno in _LACKS
