"""The meaning of a recorded session, message by message, and what a real QEMU does with it.

`explain` follows a connection as a device does, by the rules of `nodes.wire.rules`, and stops judging where that device
ends. A note tells what is worth knowing and no violation.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence

from nodes.errors import RemoteProtocolError
from nodes.wire.capture import SIZED, Bytes, Closes, Connects, Entry, Kind, SentMessage, Session
from nodes.wire.client import REFUSED, Client, is_framed
from nodes.wire.explanation import Analysis, ExplainedEntry, problems_of
from nodes.wire.protocol import MEMORY, PEERS_MAX, V0, VERSION, Dialect, Message, Step
from nodes.wire.rules import PAGE_BYTES
from nodes.wire.v2.analyzer import explain_framed
from nodes.wire.v2.protocol import V2


def recognise(entries: Iterable[Entry]) -> tuple[Dialect | None, str]:
    """The dialect of a server, as a client recognises it by the first messages, and the same in words."""
    said = [entry.act for entry in entries if isinstance(entry.act, SentMessage)]
    if not said:
        return None, "unknown: the server has said nothing"
    first, kinds = said[0].number, said[0].kinds
    if is_framed(first):
        return V2, f"v2 ({V2.source})"
    if first == REFUSED and not kinds:
        return None, f"unknown: {first} where a version belongs is how this server refuses a client"
    client: Client[Kind] = Client(0)
    with contextlib.suppress(RemoteProtocolError):
        for act in said:
            if client.dialect is not None:
                break
            list(client.receive(Message(act.number).encode(), act.kinds))
    dialect = client.dialect
    if dialect is None:
        if first != VERSION or kinds:
            return None, f"unknown: it begins with neither version {VERSION} nor an ID and the memory"
        dialect = V0
    return dialect, f"{dialect.name} ({dialect.source})"


class _Device:
    """Follows a server's messages: what each means in ``dialect``, and which rules it violates."""

    def __init__(self, dialect: Dialect, vectors: int | None) -> None:
        steps = dialect.steps
        self._vectors = vectors
        own = Step.OWN if Step.OWN in steps else Step.PEERS_AND_OWN
        self._memory_last = steps.index(Step.MEMORY) > steps.index(own)
        self._first = [*steps[: steps.index(Step.ID) + 1]]  # what is still to come before any vector
        self.peer: int | None = None
        self.memory: Kind | None = None
        self.peers: dict[int, int] = {}
        self._left: set[int] = set()
        self._eventfds: dict[int, set[int]] = {}  # peer -> the kernel's numbers; free again when it has left
        self.shared_eventfds = False

    def take(self, number: int, kinds: tuple[Kind, ...]) -> tuple[str, list[str]]:
        """Return the meaning of a message and the names of the rules that it violates."""
        broken = ["two-descriptors"] if len(kinds) > 1 else []
        step = self._first.pop(0) if self._first else None
        if step is Step.VERSION:
            if number == REFUSED and not kinds:
                return "the client is not let in: -EUSERS, too many users", ["refused"]
            wrong = "version" if number != VERSION else "version-with-descriptor" if kinds else ""
            return f"protocol version {number}", [wrong] if wrong else []
        if step is Step.ID:
            if kinds or not 0 <= number < PEERS_MAX:
                return "what should be the client's own ID", ["id"]
            self.peer = number
            return f"the client's own ID: {number}", []
        if step is Step.MEMORY or number == MEMORY:
            meaning, more = self._take_memory(kinds)
        elif not 0 <= number < PEERS_MAX:
            meaning, more = "nothing", ["number" if self.memory else "number-in-greeting"]
        elif kinds:
            meaning, more = self._connect(number, kinds[0])
        else:
            meaning, more = self._leave(number)
        return meaning, more + broken

    def _take_memory(self, kinds: tuple[Kind, ...]) -> tuple[str, list[str]]:
        if self.memory:
            return "the shared memory again", ["memory-again" if kinds else "memory-again-without-descriptor"]
        if not kinds:
            return "the shared memory, but nothing came with it", ["memory-without-descriptor"]
        self.memory = kind = kinds[0]
        size_bytes = kind.size_bytes
        wrong = ""
        if kind.name not in SIZED:
            wrong = "not-memory"
        elif size_bytes == 0:
            wrong = "memory-empty"
        elif size_bytes % PAGE_BYTES:
            wrong = "memory-not-pages"
        elif kind.read_only:
            wrong = "memory-read-only"
        elif size_bytes & (size_bytes - 1):
            wrong = "memory-not-power-of-two"
        return f"the shared memory: {size_bytes} bytes ({kind.name})", [wrong] if wrong else []

    def _connect(self, peer: int, kind: Kind) -> tuple[str, list[str]]:
        vector = self.peers.get(peer, 0)
        self.peers[peer] = vector + 1
        broken = []
        if peer in self._left:
            self._left.discard(peer)
            broken.append("id-again")
        if peer == self.peer and not (self.memory or self._memory_last):
            broken.append("own-vector-before-memory")
        if self._vectors is not None and vector >= self._vectors:
            broken.append("too-many-vectors")
        if kind.name != "eventfd":
            broken.append("not-an-eventfd")
        elif kind.number is not None:
            self.shared_eventfds |= any(kind.number in numbers for numbers in self._eventfds.values())
            self._eventfds.setdefault(peer, set()).add(kind.number)
        if peer == self.peer:
            return f"the client's own vector {vector}: to be waited for", broken
        return f"peer {peer} vector {vector}: to be rung", broken

    def _leave(self, peer: int) -> tuple[str, list[str]]:
        meaning = f"peer {peer} has left"
        if peer == self.peer:
            return "the client itself has left", ["own-leave" if self.memory else "own-leave-in-greeting"]
        if peer in self._left:
            return f"{meaning}, again", ["leave-twice"]
        self._left.add(peer)
        self._eventfds.pop(peer, None)
        if self.peers.pop(peer, None) is None:
            return f"{meaning}, which was never announced", ["leave-unknown"]
        return meaning, []


def explain_all(session: Session, *, dialect: Dialect | None = None, vectors: int | None = None) -> list[Analysis]:
    """Explain every connection of a session, as `explain` does.

    A server that closes a connection without a word, as one of ivshmem v2 refuses a client, is judged by what it speaks
    to others.
    """
    framed = any(recognise(entries)[0] is V2 for entries in session.connections.values())
    return [
        explain(
            number,
            entries,
            dialect=V2 if framed and dialect is None and not _says_something(entries) else dialect,
            vectors=vectors,
        )
        for number, entries in session.connections.items()
    ]


def _says_something(entries: Iterable[Entry]) -> bool:
    return any(isinstance(entry.act, SentMessage | Bytes) and entry.side == "server" for entry in entries)


def explain(
    connection: int, entries: Sequence[Entry], *, dialect: Dialect | None = None, vectors: int | None = None
) -> Analysis:
    """Explain one connection, and judge it as a device does.

    The meaning follows the dialect that the server speaks. The judgement ends at the first violation that ends the
    device.

    Args:
        connection: its number in the session.
        entries: all entries of the connection, in order.
        dialect: what the judging device speaks; None: v2 where the server speaks it, else v0.
        vectors: how many vectors it has; None: any number.
    """
    recognised, named = recognise(entries)
    if dialect is V2 or (recognised is V2 and dialect is None):
        return explain_framed(connection, entries)
    dialect = dialect or V0
    spoken = dialect if recognised in (None, V2) else recognised  # to a device of version 1, V2 is no dialect
    reader, judge = _Device(spoken, vectors), _Device(dialect, vectors)
    explained = []
    judging = True
    for entry in entries:
        meaning, broken = _explain_entry(entry, reader, judge)
        if entry is entries[-1] and not judge.memory and not isinstance(entry.act, Closes):
            broken.append("rest-in-greeting" if _is_rest(entry) else "silence-in-greeting")
        problems = problems_of(broken if judging else (), entry.line, _got(entry))
        judging = judging and not any(problem.rule.ends for problem in problems)
        explained.append(ExplainedEntry(entry, meaning, problems))
    return Analysis(
        connection,
        recognised,
        named,
        dialect,
        reader.peer,
        reader.memory.size_bytes if reader.memory else None,
        tuple(explained),
        tuple(_notes(entries, reader, judge, recognised, dialect)),
    )


def _explain_entry(entry: Entry, reader: _Device, judge: _Device) -> tuple[str, list[str]]:
    match entry.act:
        case SentMessage(number, kinds):
            meaning, _ = reader.take(number, kinds)
            return meaning, judge.take(number, kinds)[1]
        case Bytes(data) if _is_rest(entry):
            return f"{len(data)} bytes of a message that was never finished", ["rest"] if judge.memory else []
        case Bytes(data, kinds):
            brought = f" and {len(kinds)} descriptors" if kinds else ""
            return f"the client sends {len(data)} bytes{brought}", ["client-speaks"]
        case Closes() if entry.side == "client":
            return "the client leaves", []
        case Closes():
            kept = "; the eventfds it gave go on working" if judge.memory else ""
            return f"the server ends the connection{kept}", [] if judge.memory else ["close-in-greeting"]
        case Connects():
            return "a client connects", []


def _is_rest(entry: Entry) -> bool:
    return isinstance(entry.act, Bytes) and entry.side == "server"


def _got(entry: Entry) -> str:
    match entry.act:
        case SentMessage(number, kinds):
            return f"{number} with {' '.join(map(str, kinds))}" if kinds else f"{number} alone"
        case Bytes(data):
            return f"{len(data)} bytes"
        case _:
            return "the end"


def _notes(
    entries: Sequence[Entry], reader: _Device, judge: _Device, recognised: Dialect | None, judged_by: Dialect
) -> Iterable[str]:
    acts = [(entry.side, entry.act) for entry in entries]
    if acts[-1] == ("client", Closes()) and not judge.memory:
        yield (
            "the client left within its greeting: QEMU 7.2's own ivshmem-server ends then, for all clients "
            "(ivshmem_server_handle_fds() failed)"
        )
    elif reader.memory and reader.peer is not None and not reader.peers.get(reader.peer):
        yield (
            "the client never got an eventfd of its own and cannot be interrupted: a server that ignores failed "
            "sends loses them, as QEMU's does beyond some 275 messages"
        )
    if recognised is not None and recognised is not judged_by:
        yield (
            f"the server speaks {recognised.name} and is judged by {judged_by.name}: "
            f"--dialect {recognised.name} judges it by its own rules"
        )
    if reader.shared_eventfds:
        yield "one eventfd was sent for several vectors: a doorbell to one of them rings the others too"
