"""Named segments of shared memory in /dev/shm: making them, proving that an owner has ended, finding who uses them."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import stat
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from nodes.errors import HostError, UsageError
from sim.kernel.closeable import closing
from sim.kernel.locks import is_locked, lock_holder
from sim.kernel.shortage import explained, why_no_room

SHM_DIRECTORY = "/dev/shm"
PRIVATE = 0o600
OURS = stat.S_ISVTX
"""Marks a segment whose owner holds a lock on it while it runs. The bit has no meaning on a file, inode(7)."""
_GENERATED = re.compile(r"ivsim-[0-9]+-[0-9a-f]{8}")
OPENING = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_LOCK = struct.Struct("@hhqqi0q")  # struct flock, fcntl(2): type, whence, start, length, pid


def make_segment(name: str, size_bytes: int, mode: int, group: int | None) -> int:
    """Make a segment. Returns a descriptor with the owner's lock, or -1 when a clean-up has just removed the segment.

    The segment gets its name when it is complete. It is then opened by that name, so that /proc shows it; until the
    lock has moved to that description, a clean-up takes the segment for left behind.
    """
    first = _tmpfile(size_bytes)
    give_or_close(first, mode, group)
    try:
        _link(first, name)
        lock = os.open(path := f"{SHM_DIRECTORY}/{name}", OPENING)
    except FileNotFoundError:
        return -1
    finally:
        os.close(first)
    fcntl.flock(lock, fcntl.LOCK_EX)
    with contextlib.suppress(FileNotFoundError):
        if os.path.samestat(os.lstat(path), os.fstat(lock)):
            return lock
    os.close(lock)
    return -1


def give_or_close(descriptor: int, mode: int, group: int | None) -> None:
    try:
        _give(descriptor, mode, group)
    except BaseException:
        os.close(descriptor)
        raise


def _tmpfile(size_bytes: int) -> int:
    """A segment that has no name yet, with its blocks and the owner's lock: whatever fails, nothing is left."""
    descriptor = -1
    try:
        descriptor = os.open(SHM_DIRECTORY, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, PRIVATE)
        os.ftruncate(descriptor, size_bytes)
        os.posix_fallocate(descriptor, 0, size_bytes)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if descriptor >= 0:
            os.close(descriptor)
        raise HostError(why_no_room(error, SHM_DIRECTORY, size_bytes)) from error
    return descriptor


def _give(descriptor: int, mode: int, group: int | None) -> None:
    try:
        if group is not None:
            os.fchown(descriptor, -1, group)
        os.fchmod(descriptor, mode | OURS)
    except OSError as error:
        text = f"the shared memory cannot be given group {group} and mode {mode:o}: {error.strerror}"
        raise UsageError(text) from error


def _link(descriptor: int, name: str) -> None:
    """Give a file without a name its name: linkat(2), AT_SYMLINK_FOLLOW, which Python uses with a directory only."""
    try:
        os.link(f"/proc/self/fd/{descriptor}", f"{SHM_DIRECTORY}/{name}", src_dir_fd=descriptor, follow_symlinks=True)
    except FileExistsError as error:
        raise UsageError(f"shared memory {name!r} exists already: another server has just made it") from error
    except OSError as error:
        if isinstance(why := explained(error), HostError):
            raise why from error
        raise HostError(f"shared memory {name!r} cannot be made: {error.strerror}") from error


def take_over(name: str, size_bytes: int, *, adopt: bool) -> int:
    """Look at a segment of that name. Remove it when its owner was killed and no process uses it.

    Returns:
        A descriptor with the owner's lock, when clients of a killed owner use the segment and it is to be adopted;
        otherwise -1: the name is free.

    Raises:
        UsageError: the segment has an owner that runs, or it is not known who made it, or it cannot be adopted.
    """
    path = f"{SHM_DIRECTORY}/{name}"
    try:
        descriptor = os.open(path, OPENING)
    except FileNotFoundError:
        return -1
    except OSError as error:
        raise UsageError(f"{path} exists already, and cannot be opened: {error.strerror}") from error
    try:
        found = os.fstat(descriptor)
        if not (stat.S_ISREG(found.st_mode) and found.st_mode & OURS):
            raise UsageError(
                f"shared memory {name!r} exists already, and it is not known who made it: use another name, "
                f"remove {path}, or share it with `serve --reuse-memory`"
            )
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"shared memory {name!r} exists already: another server uses it") from None
        if not _is_used(descriptor):
            unlink(path, descriptor)
        elif not adopt:
            raise UsageError(
                f"shared memory {name!r} exists already: clients of a server that was killed still use it "
                f"({_users(name)}); end them, or use another name"
            )
        elif found.st_size != size_bytes:
            raise UsageError(
                f"shared memory {name!r} has {found.st_size} bytes, and clients of a server that was killed still use "
                f"it ({_users(name)}): share it with -l {found.st_size}, end them, or use another name"
            )
        else:
            adopted, descriptor = descriptor, -1
            return adopted
    finally:
        if descriptor >= 0:
            os.close(descriptor)
    return -1


class Segment(NamedTuple):
    """A named segment of this user that a server has made, or that has a name such as runs generate."""

    name: str
    size_bytes: int
    state: Literal["owned", "used", "orphaned", "unknown"]
    """``used``: the owner was killed, but clients still use it; ``unknown``: it is not known who made it."""
    pid: int | None
    """The process ID of the owner, where it runs and is known."""


def segments() -> list[Segment]:
    """Return the segments of this user, by name."""
    found = []
    for name in sorted(_names()):
        # One of another user, or that has just gone, is left out.
        with contextlib.suppress(OSError), closing(os.open(f"{SHM_DIRECTORY}/{name}", OPENING)) as descriptor:
            status = os.fstat(descriptor)
            ours = bool(status.st_mode & OURS)
            if stat.S_ISREG(status.st_mode) and status.st_uid == os.getuid():
                if ours and is_locked(descriptor):
                    found.append(Segment(name, status.st_size, "owned", lock_holder(descriptor)))
                elif ours:
                    state: Literal["used", "orphaned"] = "used" if _is_used(descriptor) else "orphaned"
                    found.append(Segment(name, status.st_size, state, None))
                elif _GENERATED.fullmatch(name):
                    found.append(Segment(name, status.st_size, "unknown", None))
    return found


def _names() -> list[str]:
    try:
        return os.listdir(SHM_DIRECTORY)
    except OSError:  # a host without it has no segments
        return []


def remove_segment(name: str) -> bool:
    """Remove a segment whose owner was killed, if no process uses it. Returns whether the name is gone now."""
    with contextlib.suppress(OSError):
        _remove(name, even_used=False)
    return not os.path.lexists(f"{SHM_DIRECTORY}/{name}")


def remove_orphaned() -> list[str]:
    """Remove segments with generated names whose owner was killed; the names. Those of other users are left alone."""
    removed = []
    for name in filter(_GENERATED.fullmatch, _names()):
        with contextlib.suppress(OSError):  # it has an owner, is another user's, or has just gone
            if _remove(name, even_used=True):
                removed.append(name)
    return removed


def _remove(name: str, *, even_used: bool) -> bool:
    """Remove a segment whose owner was killed; returns whether it is one. Raises ``OSError`` while it has an owner."""
    with closing(os.open(path := f"{SHM_DIRECTORY}/{name}", OPENING)) as descriptor:
        if not os.fstat(descriptor).st_mode & OURS:
            return False
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if even_used or not _is_used(descriptor):
            unlink(path, descriptor)
        return True


def unlink(path: str, descriptor: int) -> None:
    """Remove the name, if it still is the name of this file: another process may have removed or replaced it."""
    with contextlib.suppress(OSError):
        if os.path.samestat(os.lstat(path), os.fstat(descriptor)):
            os.unlink(path)


def mark_used(descriptor: int) -> None:
    with contextlib.suppress(OSError):  # a file system without such locks: its clients are not recognised later
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _LOCK.pack(fcntl.F_RDLCK, os.SEEK_SET, 0, 0, 0))


def _is_used(descriptor: int) -> bool:
    """Whether any process has a descriptor or a mapping that a server sent it."""
    asked = _LOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    return bool(_LOCK.unpack(fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, asked))[0] != fcntl.F_UNLCK)


class Mapping(NamedTuple):
    """A process that maps memory of some name; ``current``: the memory that has this name now, not an earlier one."""

    pid: int
    command: str
    current: bool

    def __str__(self) -> str:
        return f"{self.command}[{self.pid}]"


def mappings(name: str) -> Iterator[Mapping]:
    """The processes that map memory which has this name, or had it; only those that this user may look into."""
    path = f"{SHM_DIRECTORY}/{name}"
    try:
        inode = os.lstat(path).st_ino
    except OSError:
        inode = -1
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        with contextlib.suppress(OSError):  # another user's, or it has ended
            found = set()
            for line in Path(f"/proc/{pid}/maps").read_text(errors="replace").splitlines():
                fields = line.split(None, 5)  # proc_pid_maps(5)
                if len(fields) == 6 and fields[5] in (path, f"{path} (deleted)"):
                    found.add(int(fields[4]) == inode)
            command = Path(f"/proc/{pid}/comm").read_text(errors="replace").strip() if found else ""
            yield from (Mapping(int(pid), command, current) for current in sorted(found))


def _users(name: str) -> str:
    return ", ".join(str(mapping) for mapping in mappings(name) if mapping.current) or "processes of another user"
