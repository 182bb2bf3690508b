"""A recorded session between an ivshmem server and its clients: a text file with one line for each event.

    ivshmem-session 1
    # a comment
    0.000000000 1 client connects
    0.000104211 1 server 0
    0.000105300 1 server 3
    0.000110000 1 server -1 memfd:4194304
    0.000120000 1 server 3 eventfd:71
    2.500000000 1 client closes  # a comment

Each line has: seconds since the recording began, the number of the connection, the side, and what it does:
``connects``, ``closes``, a number with the descriptors that came with it (a message), or ``bytes`` in hexadecimal with
their descriptors (what is no message: anything from a client, or an incomplete message of a server). A descriptor has
its kind and what is known about it: ``eventfd:71`` is the kernel's number of that eventfd, the same wherever it is
sent; ``memfd:4096`` and the like have their size in bytes; ``:ro`` was opened for reading only.

A message of ivshmem v2 is its header as a number, and the bytes after it behind a plus sign in hexadecimal:
``51539607554+01000000`` is PEER_GONE of peer 1.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from msgspec import Struct

from nodes.errors import UsageError
from nodes.wire.protocol import Message

HEADER = "ivshmem-session 1"
LINE_CHARS_MAX = 32768  # room for 4096 bytes in hexadecimal and 253 descriptors
NANOSECONDS = 1_000_000_000
INT64_MIN, INT64_MAX = -(1 << 63), (1 << 63) - 1

SIZED = ("memfd", "shm", "file")
KINDS = ("eventfd", *SIZED, "socket", "pipe", "char", "block", "directory", "other")
SIDES = ("server", "client")


class Kind(Struct, frozen=True):
    """The kind of a descriptor. ``number``: the bytes of memory and files, the kernel's number of an eventfd."""

    name: str
    number: int | None = None
    read_only: bool = False

    def __str__(self) -> str:
        number = "" if self.number is None else f":{self.number}"
        return f"{self.name}{number}{':ro' if self.read_only else ''}"

    @property
    def size_bytes(self) -> int:
        """The size that fstat(2) reports: 0 for what is neither memory nor a file."""
        return self.number or 0 if self.name in SIZED else 0


class Connects(Struct, frozen=True):
    """A client's connection begins."""


class Closes(Struct, frozen=True):
    """One side ends the connection."""


class SentMessage(Struct, frozen=True):
    """A message; only servers send messages. ``body`` follows the number in a message of ivshmem v2."""

    number: int
    kinds: tuple[Kind, ...] = ()
    body: bytes = b""

    def encode(self) -> bytes:
        """The bytes of the message."""
        return Message(self.number).encode() + self.body


class Bytes(Struct, frozen=True):
    """Bytes that are no message."""

    data: bytes
    kinds: tuple[Kind, ...] = ()


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of a session. ``line`` is its number in the file; ``remark`` follows it as a comment."""

    time_ns: int
    connection: int
    side: str
    act: Connects | Closes | SentMessage | Bytes
    remark: str = field(default="", compare=False)
    line: int = field(default=0, compare=False)


@dataclass(frozen=True)
class Session:
    """Everything that was recorded, in order."""

    entries: tuple[Entry, ...]

    @property
    def connections(self) -> dict[int, tuple[Entry, ...]]:
        """The entries of each connection, in the order in which they began."""
        found: dict[int, list[Entry]] = {}
        for entry in self.entries:
            found.setdefault(entry.connection, []).append(entry)
        return {connection: tuple(entries) for connection, entries in found.items()}


class SessionError(UsageError):
    """A line of a session file is not valid."""

    def __init__(self, line: int, expected: str, got: str) -> None:
        shown = got if len(got) <= 80 else got[:80] + "..."
        super().__init__(f"line {line}: expected {expected}, got {shown!r}")
        self.line = line


def format_entry(entry: Entry) -> str:
    """The line that `parse_entry` reads back, without the end of line."""
    match entry.act:
        case Connects():
            act = "connects"
        case Closes():
            act = "closes"
        case SentMessage(number, kinds, body):
            act = " ".join((f"{number}+{body.hex()}" if body else str(number), *map(str, kinds)))
        case Bytes(data, kinds):
            act = " ".join(("bytes", data.hex(), *map(str, kinds)))
    seconds, rest_ns = divmod(entry.time_ns, NANOSECONDS)
    # A remark may quote text with line ends.
    remark = f"  # {' '.join(entry.remark.split())}" if entry.remark else ""
    return f"{seconds}.{rest_ns:09} {entry.connection} {entry.side} {act}{remark}"


_TIME = re.compile(r"([0-9]{1,9})(?:\.([0-9]{1,9}))?")
_CONNECTION = re.compile(r"[1-9][0-9]{0,9}")
_NUMBER = re.compile(r"(-?[0-9]{1,19})(?:\+((?:[0-9a-f]{2}){1,4088}))?")
_BYTES = re.compile(r"(?:[0-9a-f]{2}){1,4096}")
_KIND = re.compile(rf"({'|'.join(KINDS)})(?::([0-9]{{1,19}}))?(:ro)?")
_COMMENT = re.compile(r"(?:^|\s)#.*")


def parse_entry(text: str, line: int = 0) -> Entry | None:
    """Read one line; returns None if it is empty or a comment.

    Raises:
        SessionError: the line is not valid.
    """
    words = _COMMENT.sub("", text).split()
    if not words:
        return None
    if len(words) < 4:
        raise SessionError(line, "a time, a connection, server or client, and what it did", text.strip())
    time, connection, side, act, *rest = words
    at = _TIME.fullmatch(time)
    if at is None:
        raise SessionError(line, "seconds since the start, as in 0.000104211", time)
    if not _CONNECTION.fullmatch(connection):
        raise SessionError(line, "the number of a connection, from 1", connection)
    if side not in SIDES:
        raise SessionError(line, "server or client", side)
    time_ns = int(at[1]) * NANOSECONDS + int((at[2] or "0").ljust(9, "0"))
    return Entry(time_ns, int(connection), side, _parse_act(side, act, rest, line), line=line)


def _parse_act(side: str, act: str, rest: list[str], line: int) -> Connects | Closes | SentMessage | Bytes:
    if act in ("connects", "closes"):
        if rest:
            raise SessionError(line, f"nothing after {act} but a comment (#)", " ".join(rest))
        if act == "closes":
            return Closes()
        if side != "client":
            raise SessionError(line, "client before connects: servers only listen", side)
        return Connects()
    if act == "bytes":
        data, *rest = rest or [""]
        if not _BYTES.fullmatch(data):
            raise SessionError(line, "bytes in hexadecimal, as in 00ff, at most 4096", data)
        return Bytes(bytes.fromhex(data), _parse_kinds(rest, line))
    if side == "client":
        raise SessionError(line, "connects, closes or bytes: clients send no messages", act)
    message = _NUMBER.fullmatch(act)
    if message is None or not INT64_MIN <= int(message[1]) <= INT64_MAX:
        raise SessionError(line, "closes, bytes, or a number of 64 bits", act)
    return SentMessage(int(message[1]), _parse_kinds(rest, line), bytes.fromhex(message[2] or ""))


def _parse_kinds(words: list[str], line: int) -> tuple[Kind, ...]:
    kinds = []
    for word in words:
        match = _KIND.fullmatch(word)
        number = int(match[2]) if match and match[2] else None
        if match is None or (number or 0) > INT64_MAX:
            raise SessionError(line, f"a descriptor's kind ({', '.join(KINDS)}), as in eventfd or memfd:4096", word)
        name = match[1]
        if name in SIZED and number is None:
            raise SessionError(line, f"the size of the {name} in bytes, as in {name}:4096", word)
        if name not in SIZED and name != "eventfd" and number is not None:
            raise SessionError(line, f"{name} without a number", word)
        kinds.append(Kind(name, number, bool(match[3])))
    return tuple(kinds)


def parse(lines: Iterable[str]) -> Session:
    """Read a whole file.

    Raises:
        SessionError: names the first line that is not valid.
    """
    entries: list[Entry] = []
    time_ns = 0
    ended: dict[int, bool] = {}  # connection -> nothing more can come
    line = 0
    for line, text in enumerate(lines, 1):
        if len(text) > LINE_CHARS_MAX:
            raise SessionError(line, f"a line of at most {LINE_CHARS_MAX} characters", text)
        if line == 1:
            if text.strip() != HEADER:
                raise SessionError(1, f"{HEADER!r}, as `ivsim record` writes it", text.rstrip("\n"))
            continue
        entry = parse_entry(text, line)
        if entry is None:
            continue
        if entry.time_ns < time_ns:
            raise SessionError(line, "a time not before that of the line above", text.split()[0])
        time_ns = entry.time_ns
        _check_order(entry, ended)
        entries.append(entry)
    if line == 0:
        raise SessionError(1, f"{HEADER!r}, as `ivsim record` writes it", "")
    return Session(tuple(entries))


def _check_order(entry: Entry, ended: dict[int, bool]) -> None:
    connection = entry.connection
    began = connection in ended
    match entry.act:
        case Connects():
            if began:
                raise SessionError(entry.line, f"connection {connection} to connect once", "connects")
            ended[connection] = False
        case _ if not began:
            raise SessionError(
                entry.line, f"connection {connection} to begin with 'client connects'", format_entry(entry)
            )
        case _ if ended[connection]:
            raise SessionError(
                entry.line, f"nothing more of connection {connection}, which has closed", format_entry(entry)
            )
        case Closes():
            ended[connection] = True
