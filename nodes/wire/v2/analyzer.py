"""The meaning of a recorded session of ivshmem v2, and where a device of version 2 stops."""

from __future__ import annotations

from collections.abc import Sequence

from nodes.errors import RemoteProtocolError
from nodes.wire.capture import Bytes, Closes, Connects, Entry, Kind, Said
from nodes.wire.client import Ignored, PeerLeft, VectorConnected
from nodes.wire.explanation import Analysis, Explained, Problem
from nodes.wire.v2.client import FramedClient, FramedEvent, Initialized
from nodes.wire.v2.protocol import V2

__all__ = ["explain_framed"]

RULE = "v2-message"


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
        tuple(reader.notes),
    )


class _Reader:
    """Follows a connection until the first message that a device does not take."""

    def __init__(self) -> None:
        self.client: FramedClient[Kind] = FramedClient()
        self.memory: Kind | None = None
        self.notes: list[str] = []
        self._ended = False

    def explain(self, entry: Entry) -> Explained:
        match entry.act:
            case Said():
                return self._said(entry, entry.act)
            case Bytes(data) if entry.side == "server":
                return self._judge(entry, "bytes of a message that was never finished", f"{len(data)} bytes")
            case Closes() if entry.side == "server" and self.client.numbers is None:
                return self._judge(entry, "the server ends the connection", "the end before INIT")
            case Bytes(data):
                meaning = f"the client sends {len(data)} bytes: for the server it has left"
            case Closes() if entry.side == "server":
                meaning = "the server ends the connection; the eventfds it gave go on working"
            case Closes():
                meaning = "the client leaves"
            case Connects():
                meaning = "a client connects"
        return Explained(entry, meaning)

    def _said(self, entry: Entry, act: Said) -> Explained:
        if self._ended:
            return Explained(entry, "after the end of the device")
        try:
            events = list(self.client.receive(act.encode(), act.kinds))
        except RemoteProtocolError as error:
            return self._judge(entry, "what a device does not take", str(error))
        return Explained(entry, "; ".join(self._meaning(event) for event in events))

    def _judge(self, entry: Entry, meaning: str, got: str) -> Explained:
        problems = () if self._ended else (Problem(RULE, entry.line, got),)
        self._ended = True
        return Explained(entry, meaning, problems)

    def _meaning(self, event: FramedEvent[Kind]) -> str:
        match event:
            case Initialized(peer, numbers, memory):
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
            case Ignored(reason):
                self.notes.append(reason)
                return reason
