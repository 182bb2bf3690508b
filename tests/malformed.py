"""What a malformed server sends in each case of ``golden/malformed.json``, and what is right to make of it.

The verdicts are those of a real QEMU where it decided at all; where it crashed or hung, they say what a client
that does neither should do. ``Verdict.error`` is a pattern of the error, ``ignored`` how many things were odd.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from pathlib import Path

from nodes.qemu_versions import NEWEST, QemuVersion

FILES = {QemuVersion(7, 2): "malformed.json", QemuVersion(10, 0): "malformed_10.json", NEWEST: "malformed_11.json"}
GOLDEN = Path(__file__).parent / "golden"
OBSERVED = {version: json.loads((GOLDEN / name).read_text()) for version, name in FILES.items()}
"""What each of these QEMUs did in each case."""
CASES = OBSERVED[QemuVersion(7, 2)]

EVENTFD, MEMORY = "eventfd", "memory 1048576"
INT64_MIN = -(1 << 63)


@dataclass(frozen=True)
class Send:
    """One ``sendmsg``: bytes, and what kinds of descriptors go with them."""

    data: bytes
    files: tuple[str, ...] = ()


@dataclass(frozen=True)
class Case:
    """``error`` comes from the client, ``memory_error`` from the code that maps the memory, ``eventfd_error`` likewise.

    ``up``: the memory has come in the end. ``left``: whether peers 1 and up were told to have left, how often.
    """

    sends: tuple[Send, ...]
    vectors: int = 1
    error: str = ""
    memory_error: str = ""
    eventfd_error: str = ""
    ignored: int = 0
    left: int = 0
    up: bool = True
    close: bool = False


def number(value: int, *files: str) -> Send:
    return Send(struct.pack("<q", value), files)


def eventfd(peer: int, count: int = 1) -> tuple[Send, ...]:
    return (number(peer, EVENTFD),) * count


VERSION, ID, SHM = number(0), number(0), number(-1, MEMORY)
SETUP = (VERSION, ID, SHM)
BOTH = (*SETUP, *eventfd(0, 2))  # a device with two vectors, complete


def setup(*sends: Send, **verdict: object) -> Case:
    return Case(sends, **verdict)  # type: ignore[arg-type]


def refused(error: str, *sends: Send) -> Case:
    return Case(sends, error=error, up=False)


def memory(kind: str, error: str = "") -> Case:
    return Case((VERSION, ID, number(-1, kind), *eventfd(0)), memory_error=error)


def later(*sends: Send, **verdict: object) -> Case:
    return Case((*BOTH, *sends), vectors=2, **verdict)  # type: ignore[arg-type]


def cut(send: Send, at: int, holder: int = 0) -> tuple[Send, Send]:
    """One message in two pieces, its descriptors on the first or the second."""
    pieces = send.data[:at], send.data[at:]
    return (
        Send(pieces[0], send.files if holder == 0 else ()),
        Send(pieces[1], send.files if holder == 1 else ()),
    )


def joined(*sends: Send) -> Send:
    """Several messages in one ``sendmsg``; the kernel hands the descriptors to the first read."""
    return Send(b"".join(send.data for send in sends), tuple(name for send in sends for name in send.files))


ID_ERROR = "invalid ID message"
SIZE_ERROR = "must be equal to or larger than page size"

SCRIPTS: dict[str, Case] = {
    "version 1": refused("version 1, expecting 0", number(1)),
    "version -1": refused("version -1, expecting 0", number(-1)),
    "version 2^32 (low word zero)": refused("version 4294967296, expecting 0", number(1 << 32)),
    "version 0 with an fd": refused("invalid version message", number(0, EVENTFD)),
    "version big-endian-ish 0x0100..": refused("version 1, expecting 0", Send(b"\1" + bytes(7))),
    "own id -1": refused(ID_ERROR, VERSION, number(-1)),
    "own id -2": refused(ID_ERROR, VERSION, number(-2)),
    "own id 65536": refused(ID_ERROR, VERSION, number(65536)),
    "own id 4294967296": refused(ID_ERROR, VERSION, number(1 << 32)),
    "own id 65535": setup(VERSION, number(65535), SHM, *eventfd(65535)),
    "own id with an fd": refused(ID_ERROR, VERSION, number(0, EVENTFD), SHM),
    "shm message without fd": refused("shared memory message without a descriptor", VERSION, ID, number(-1)),
    "eventfd passed as shm": memory(EVENTFD, SIZE_ERROR),
    "/dev/null passed as shm": memory("null", SIZE_ERROR),
    "read-only file as shm": memory("read-only 1048576", "cannot be mapped"),
    "shm size 0": memory("memory 0", SIZE_ERROR),
    "shm size 1": memory("memory 1", SIZE_ERROR),
    "shm size 4095": memory("memory 4095", SIZE_ERROR),
    "shm size 4096": memory("memory 4096"),
    "shm size 6000": memory("memory 6000", "not a power of two"),
    "shm size 8192": memory("memory 8192"),
    "shm size 3145728": memory("memory 3145728", "not a power of two"),
    "shm size 1048576": memory("memory 1048576"),
    "second shm message during setup": setup(*SETUP, SHM, *eventfd(0), ignored=1),
    "no shm: connects only, then silence": setup(VERSION, ID, *eventfd(0), up=False),
    "peers before shm (out of order)": setup(VERSION, ID, *eventfd(0), SHM),
    "other peer before shm (out of order)": setup(VERSION, ID, *eventfd(1), SHM, *eventfd(0)),
    "shm before id": refused(ID_ERROR, VERSION, SHM, ID),
    "invalid message -2 during setup": refused("invalid message -2", VERSION, ID, number(-2)),
    "invalid message 65536 during setup": refused("invalid message 65536", VERSION, ID, number(65536)),
    "disconnect of unknown peer during setup": setup(VERSION, ID, number(5), SHM, ignored=1),
    "disconnect of peer beyond 16 during setup": setup(VERSION, ID, number(40), SHM, ignored=1),
    "disconnect of own id during setup": refused("invalid peer 0", VERSION, ID, number(0)),
    "version split 3+5 bytes": setup(*cut(VERSION, 3), ID, SHM, *eventfd(0)),
    "two messages in one 16 byte write": setup(joined(VERSION, ID), SHM, *eventfd(0)),
    "version+id+shm in one 24 byte write with fd": refused("invalid version message", joined(VERSION, ID, SHM)),
    "4-byte messages (native int)": setup(Send(bytes(4)), Send(bytes(4)), Send(b"\xff" * 4, (MEMORY,)), up=False),
    "pre-2.5 protocol (no version: id, shm, efd)": refused(ID_ERROR, ID, SHM, *eventfd(0)),
    "shm message: fd on first 4 bytes, rest later": setup(VERSION, ID, *cut(SHM, 4), *eventfd(0)),
    "shm message: fd on last 4 bytes": setup(VERSION, ID, *cut(SHM, 4, holder=1), *eventfd(0)),
    "two fds in one connect message": setup(*SETUP, number(0, EVENTFD, EVENTFD), ignored=1),
    "close: before version": Case((), error="before it sent a version", up=False, close=True),
    "close: after 3 bytes of version": Case((Send(bytes(3)),), error="before it sent a version", up=False, close=True),
    "close: after version": Case((VERSION,), error="before it sent its ID", up=False, close=True),
    "close: after id": Case((VERSION, ID), error="before it sent the shared memory", up=False, close=True),
    "close: after shm (no eventfds)": Case(SETUP, close=True),
    "close: after complete setup": Case((*SETUP, *eventfd(0)), close=True),
    "silent: nothing sent": Case((), up=False),
    "silent after version": Case((VERSION,), up=False),
    "rt: third eventfd for own id (2 vectors)": later(*eventfd(0), ignored=1),
    "rt: too many vectors for a peer (2 + 3)": later(*eventfd(1, 5), ignored=3),
    "rt: fewer vectors for a peer": later(*eventfd(1)),
    "rt: own id again, no fd (= disconnect self)": later(number(0), ignored=1),
    "rt: disconnect unknown id 7": later(number(7), ignored=1),
    "rt: disconnect unknown id 60000": later(number(60000), ignored=1),
    "rt: disconnect twice": later(*eventfd(1, 2), number(1), number(1), left=1, ignored=1),
    "rt: connect, disconnect, reconnect same id": later(*eventfd(1, 2), number(1), *eventfd(1, 2), left=1),
    "rt: x50 connect/disconnect same id": later(*(*eventfd(1, 2), number(1)) * 50, left=50),
    "rt: connect same id twice without disconnect": later(*eventfd(1, 4), ignored=2),
    "rt: invalid message -2": later(number(-2), ignored=1),
    "rt: invalid message -2 with fd": later(number(-2, EVENTFD), ignored=1),
    "rt: invalid message 65536": later(number(65536, EVENTFD), ignored=1),
    "rt: id 65535 connect": later(*eventfd(65535, 2)),
    "rt: id INT64_MIN": later(number(INT64_MIN), ignored=1),
    "rt: second shm message": later(SHM, ignored=1),
    "rt: second shm message without fd": later(number(-1), ignored=1),
    "rt: memfd passed as eventfd": later(number(1, MEMORY), eventfd_error="where an eventfd belongs"),
    "rt: same eventfd for both vectors": later(*eventfd(1, 2)),
    "rt: short 3-byte message then 5 more": later(*cut(number(7), 3), ignored=1),
    "rt: short 3-byte message then close": later(Send(bytes(3)), close=True),
    "rt: two fds in one connect message": later(number(1, EVENTFD, EVENTFD), ignored=1),
    "rt: 17 fds in one message": later(number(1, *[EVENTFD] * 17), ignored=1),
    "rt: two connects in one 16-byte write, 2 fds": later(joined(*eventfd(1, 2)), ignored=1, left=1),
    "rt: fd attached to a split message (first half)": later(*cut(*eventfd(1), 4)),
    "rt: server closes": later(close=True),
    "rt: server closes after peer 1 joined": later(*eventfd(1, 2), close=True),
    "rt: shm truncated to 0 under QEMU, then guest read": later(),
}
