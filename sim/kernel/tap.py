"""A TAP device: a network interface of this host whose frames a process reads and writes (Linux, tuntap.rst)."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import struct

from nodes.errors import HostError, UsageError

DEVICE = "/dev/net/tun"
TUNSETIFF = 0x400454CA
IFF_TAP, IFF_NO_PI = 0x0002, 0x1000
NAME = re.compile(r"[A-Za-z0-9_.-]{1,15}")
FRAME_BYTES_MAX = 1 << 16


class Tap:
    """Owns the descriptor; the interface goes with it, unless it is a persistent one.

    Args:
        name: the name of the interface, made if there is none.

    Raises:
        UsageError: a name that no interface can have.
        HostError: this process may not make it, or the host has no TAP devices.
    """

    def __init__(self, name: str) -> None:
        if not NAME.fullmatch(name):
            raise UsageError(f"expected the name of a network interface, up to 15 characters, got {name!r}")
        self.name = name
        try:
            self._descriptor = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise HostError(f"no TAP device: {DEVICE} cannot be opened: {error.strerror}") from error
        try:
            fcntl.ioctl(self._descriptor, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TAP | IFF_NO_PI))
        except OSError as error:
            os.close(self._descriptor)
            hint = " (it needs CAP_NET_ADMIN, or an interface made for this user)" if error.errno == errno.EPERM else ""
            raise HostError(f"the TAP device {name} cannot be made: {error.strerror}{hint}") from error

    def fileno(self) -> int:
        return self._descriptor

    def read(self) -> bytes | None:
        """The next frame that the host sends; None when there is none."""
        try:
            return os.read(self._descriptor, FRAME_BYTES_MAX)
        except BlockingIOError:
            return None
        except OSError as error:
            if error.errno == errno.EIO:  # the interface is down
                return None
            raise

    def write(self, frame: bytes) -> bool:
        """Give the host a frame; False when it does not take it, as while the interface is down."""
        try:
            os.write(self._descriptor, frame)
        except OSError:
            return False
        return True

    def close(self) -> None:
        if self._descriptor >= 0:
            with contextlib.suppress(OSError):
                os.close(self._descriptor)
            self._descriptor = -1
