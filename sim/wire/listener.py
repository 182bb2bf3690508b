"""The socket that a server listens on: private from its first moment, replaced when stale, never taken from a server.

This process makes it, or systemd does (sd_listen_fds(3)).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import grp
import os
import re
import socket
import stat
import time
from collections.abc import Callable, Iterator, MutableMapping
from pathlib import Path

from nodes.errors import UsageError
from nodes.spelling import did_you_mean
from sim.kernel.closeable import Closeable, closing
from sim.kernel.loop import Loop
from sim.kernel.shortage import path_reason

PATH_BYTES_MAX = 107  # sun_path less its end, unix(7)
PRIVATE = 0o600
GROUP_MAX = (1 << 32) - 2  # gid_t; the last number leaves the group as it is, chown(2)
ACTIVATED = 3  # SD_LISTEN_FDS_START
FLAGS = socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
LOCK_PATIENCE_S = 2.0
PAUSE_NS = 100_000_000
LISTENING = (0, errno.EPROTOTYPE)


class Listener(Closeable):
    """Owns a listening socket and, if it was made here, its name in the file system. A context manager.

    ``mode`` and ``group`` are set before any client can connect. A socket on which no process listens any more is
    replaced. Raises ``UsageError`` for a path that is too long, is not a socket, is in use, or cannot be made.
    """

    _identity: tuple[int, int] | None = None

    def __init__(self, path: Path, *, mode: int = PRIVATE, group: int | None = None) -> None:
        check_path(path)
        self.path = path
        self.activated = False
        self.socket = socket.socket(socket.AF_UNIX, FLAGS)
        try:
            os.fchmod(self.socket.fileno(), PRIVATE)  # before bind: other users can connect at no moment
            with _locked(path.parent):
                _remove_stale(path)
                self.socket.bind(os.fspath(path))
                self._identity = _give(path, mode, group)
                self.socket.listen(socket.SOMAXCONN)
        except OSError as error:
            self.close()
            if error.errno == errno.EADDRINUSE:
                raise UsageError(f"{path} is in use by another server, or is not a socket of ours") from error
            raise UsageError(f"cannot listen on {path}: {path_reason(error, os.fspath(path))}") from error
        except BaseException:
            self.close()
            raise

    @classmethod
    def from_systemd(cls, environment: MutableMapping[str, str] = os.environ) -> Listener | None:
        """The socket that systemd passed to this process, if any; systemd owns its file.

        Removes the variables, so that no child process takes the socket for its own. Raises ``UsageError`` for more
        than one socket, and for anything but a listening unix stream socket.
        """
        pid, count = environment.get("LISTEN_PID"), environment.get("LISTEN_FDS")
        if pid != str(os.getpid()) or count in (None, "0"):
            return None
        for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"):
            environment.pop(name, None)
        if count != "1":
            raise UsageError(f"expected one socket from systemd, got LISTEN_FDS={count}")
        try:
            passed = socket.socket(fileno=ACTIVATED)
        except OSError as error:
            raise UsageError(f"what systemd passed is not a socket: {error.strerror}") from error
        listens = passed.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        if passed.family != socket.AF_UNIX or passed.type != socket.SOCK_STREAM or not listens:
            passed.close()
            raise UsageError("what systemd passed is not a listening unix stream socket (ListenStream=/a/path)")
        listener = cls.__new__(cls)
        listener.path = Path(os.fsdecode(passed.getsockname()))
        listener.activated = True
        listener.socket = passed
        passed.setblocking(False)
        passed.set_inheritable(False)
        return listener

    def fileno(self) -> int:
        return self.socket.fileno()

    def accept(self) -> socket.socket | None:
        """The next client that waits, if any. Raises ``OSError`` (EMFILE and the like) when there is no room."""
        try:
            sock = self.socket.accept()[0]
        except (BlockingIOError, ConnectionAbortedError):
            return None
        sock.setblocking(False)
        return sock

    def pause(self, loop: Loop, accept: Callable[[], None], error: OSError) -> None:
        """Accept no more for a moment: no descriptor is left, and the loop would spin. Raises any other ``error``."""

        def resume() -> None:
            if self.fileno() >= 0:
                loop.add(self, accept)

        if error.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS):
            raise error
        loop.remove(self)
        loop.at(time.monotonic_ns() + PAUSE_NS, resume)

    def close(self) -> None:
        self.socket.close()
        if self._identity is None:
            return
        with contextlib.suppress(OSError):
            found = os.lstat(self.path)
            if (found.st_dev, found.st_ino) == self._identity:  # not another server's
                self.path.unlink()


def check_path(path: Path) -> None:
    """Raises ``UsageError`` for a path that no unix socket can have."""
    if (length_bytes := len(os.fsencode(path))) > PATH_BYTES_MAX:
        raise UsageError(f"the socket's path may have {PATH_BYTES_MAX} bytes, {path} has {length_bytes}")


def group_number(name: str) -> int:
    """The number of a group, given by name or number. Raises ``UsageError`` when there is no such group."""
    if re.fullmatch(r"[0-9]{1,10}", name) and int(name) <= GROUP_MAX:
        return int(name)
    with contextlib.suppress(KeyError):
        return grp.getgrnam(name).gr_gid
    if re.fullmatch(r"-?[0-9]+", name):
        hint = f"; numbers are 0 to {GROUP_MAX}"
    else:
        hint = did_you_mean(name, (group.gr_name for group in grp.getgrall()))
    raise UsageError(f"there is no group {name!r}{hint}")


def probe(path: Path) -> int:
    """The error number of an attempt to connect to ``path``; one of ``LISTENING`` when a server has it.

    A datagram socket cannot connect to a stream: the attempt is refused when no process listens, and fails with
    EPROTOTYPE otherwise. The server does not notice it, and gives no ID for it (net/unix/af_unix.c, unix_find_bsd).
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        return sock.connect_ex(os.fspath(path))


def _give(path: Path, mode: int, group: int | None) -> tuple[int, int]:
    """Set the rights of the socket just bound, even if its name is replaced meanwhile. Returns its identity."""
    with closing(os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)) as descriptor:
        found = os.fstat(descriptor)
        if not stat.S_ISSOCK(found.st_mode) or found.st_uid != os.geteuid():
            raise UsageError(f"{path} was replaced while it was made")
        same = f"/proc/self/fd/{descriptor}"
        try:
            if group is not None:
                os.chown(same, -1, group)
            if mode != PRIVATE:
                os.chmod(same, mode)
        except BaseException as error:
            path.unlink()
            if not isinstance(error, OSError):
                raise
            raise UsageError(f"{path} cannot be given group {group} and mode {mode:o}: {error.strerror}") from error
        return found.st_dev, found.st_ino


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Let one server at a time look for a stale socket in a directory and make its own.

    A socket that is bound and does not listen yet looks like a stale one. Any process that may read the directory can
    hold the lock; after some time this function continues without it, and then only bind refuses a path.
    """
    with closing(os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)) as descriptor:
        deadline_s = time.monotonic() + LOCK_PATIENCE_S
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if error.errno != errno.EWOULDBLOCK or time.monotonic() > deadline_s:
                    break
                time.sleep(0.005)
        yield


def _remove_stale(path: Path) -> None:
    """Remove a socket on which no process listens any more; raise ``UsageError`` for anything else."""
    if not os.path.lexists(path):
        return
    if path.is_symlink() or not path.is_socket():
        raise UsageError(f"{path} exists and is not a socket: choose another path or remove it")
    code = probe(path)
    if code == errno.ECONNREFUSED:
        path.unlink()
    elif code in LISTENING:
        raise UsageError(f"{path}: another server is listening there, or has it and does not answer")
    else:
        raise UsageError(f"{path} cannot be looked at: {os.strerror(code)}")
