"""The meaning of a recorded session of ivshmem v2, and where a device of version 2 stops."""

from __future__ import annotations

from collections.abc import Sequence

from nodes.errors import RemoteProtocolError
from nodes.wire.capture import Bytes, Closes, Connects, Entry, Kind, SentMessage
from nodes.wire.client import Event, Ignored, PeerLeft, VectorConnected
from nodes.wire.explanation import Analysis, ExplainedEntry, problems_of
from nodes.wire.v2.client import FramedClient, Initialized
from nodes.wire.v2.protocol import HEADER_BYTES, V2, Frame, FrameKind


def explain_framed(connection: int, entries: Sequence[Entry]) -> Analysis:
    """Explain one connection to a server of ivshmem v2, judged by the device of the QEMU fork."""
    reader = _Reader()
    explained = tuple(reader.explain(entry) for entry in entries)
    memory = reader.memory
    return Analysis(
        connection,
        V2,
        f"v2 ({V2.source})",
        V2,
        reader.client.peer,
        memory.size_bytes if memory else None,
        explained,
        (),
    )


class _Reader:
    """Follows a connection, and judges it up to the message that ends the device."""

    def __init__(self) -> None:
        self.client: FramedClient[Kind] = FramedClient()
        self.memory: Kind | None = None
        self._gone: set[int] = set()  # IDs that have left and not come back
        self._ended = self._unreadable = False

    def explain(self, entry: Entry) -> ExplainedEntry:
        match entry.act:
            case SentMessage():
                return self._said(entry, entry.act)
            case Bytes(data) if entry.side == "server":
                length = int.from_bytes(data[4:HEADER_BYTES], "little")
                rule = "v2-rest" if len(data) < HEADER_BYTES or length >= HEADER_BYTES else "v2-length"
                rule = rule if self.client.numbers is not None else "v2-greeting"
                return self._judged(entry, "bytes of a message that was never finished", [rule], f"{len(data)} bytes")
            case Closes() if entry.side == "server" and self.client.numbers is None:
                words = "the server ends the connection"
                return self._judged(entry, words, ["v2-close-in-greeting"], "the end before INIT")
            case Bytes(data):
                meaning = f"the client sends {len(data)} bytes: for the server it has left"
            case Closes() if entry.side == "server":
                meaning = "the server ends the connection; the eventfds it gave go on working"
            case Closes():
                meaning = "the client leaves"
            case Connects():
                meaning = "a client connects"
        return ExplainedEntry(entry, meaning)

    def _said(self, entry: Entry, act: SentMessage) -> ExplainedEntry:
        if self._unreadable:
            return ExplainedEntry(entry, "after the end of the device")
        data = act.encode()
        frame = Frame(act.number & 0xFFFF_FFFF, data[HEADER_BYTES:], act.kinds)
        is_vector, is_leave = frame.kind == FrameKind.EVENT_FD, frame.kind == FrameKind.PEER_GONE
        broken = []
        if self.client.numbers is not None and (is_vector or is_leave) and frame.is_whole:
            broken += [self._leave(*frame.fields())] if is_leave else []
            broken += ["v2-two-descriptors"] if len(frame.descriptors) > is_vector else []
        try:
            events = list(self.client.receive(data, act.kinds))
        except RemoteProtocolError as error:
            self._unreadable = True
            is_short = (act.number >> 32 & 0xFFFF_FFFF) < HEADER_BYTES
            rule = "v2-length" if is_short else "v2-long-message"
            rule = rule if self.client.numbers is not None else "v2-greeting"
            return self._judged(entry, "what a device does not take", [rule], str(error))
        if not events and self.client.numbers is not None:  # its header says that there is more of it
            return self._judged(entry, "bytes of a message that is not finished", ["v2-rest"], f"{len(data)} bytes")
        self._gone.difference_update(event.peer for event in events if isinstance(event, VectorConnected))
        broken[:0] = [event.rule for event in events if isinstance(event, Ignored)]
        said = "; ".join(self._meaning(event) for event in events)
        return self._judged(entry, said, [rule for rule in broken if rule], said)

    def _leave(self, peer: int) -> str:
        client = self.client
        if peer == client.peer:
            return "v2-own-leave"
        if peer in self._gone:
            return "v2-leave-twice"
        if client.peer not in client.peers:
            return "v2-leave-before-own"
        if peer not in client.peers:
            return "v2-leave-unknown"
        self._gone.add(peer)
        return ""

    def _judged(self, entry: Entry, meaning: str, broken: list[str], got: str) -> ExplainedEntry:
        """The entry with its violations, if the device is still there to see them."""
        problems = problems_of(() if self._ended else broken, entry.line, got)
        self._ended = self._ended or any(problem.rule.ends for problem in problems)
        return ExplainedEntry(entry, meaning, problems)

    def _meaning(self, event: Event[Kind]) -> str:
        match event:
            case Initialized(memory, peer, numbers):
                self.memory = memory
                return (
                    f"INIT: the client's own ID {peer} of {numbers.max_peers}, {numbers.vectors} vectors, protocol "
                    f"{numbers.protocol:#06x}, output sections of {numbers.output_bytes} bytes; {memory.size_bytes} "
                    f"bytes of memory ({memory.name})"
                )
            case VectorConnected(peer, vector):
                if peer == self.client.peer:
                    return f"the own vector {vector}: to be waited for"
                return f"peer {peer} vector {vector}: to be rung"
            case PeerLeft(peer):
                return f"peer {peer} has left: its State is 0, and the device interrupts its guest by vector 0"
            case _:
                assert isinstance(event, Ignored)
                return event.reason
