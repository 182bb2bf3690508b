"""The link between the two peers of an ivshmem v2 network: four States, and frames while both are in RUN.

The rules are those of the drivers (Linux, drivers/net/ivshmem-net.c; Zephyr, drivers/ethernet/eth_ivshmem.c):

    RESET  to INIT when the other is in RESET or INIT: one that is in READY or RUN has not heard of the reset yet
    INIT   to READY, with empty queues, when the other is not in RESET
    READY  to RUN when the other is in READY or RUN
    any    to RESET when the other is in RESET, except from RESET and INIT
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import IntEnum

from nodes.device.v2.sections import Sections
from nodes.errors import GuestError
from nodes.ethernet.queues import QueueLayout, ReceiveQueue, TransmitQueue
from nodes.guest import Guest

__all__ = ["Link", "LinkState", "next_state"]

PEERS = 2


class LinkState(IntEnum):
    """The State that a network device writes."""

    RESET = 0
    INIT = 1
    READY = 2
    RUN = 3


def next_state(own: LinkState, other: int) -> LinkState:
    """The State that follows the own one while the other side has ``other``; the same when nothing is to be done."""
    match own:
        case LinkState.RESET if other < LinkState.READY:
            return LinkState.INIT
        case LinkState.INIT if other > LinkState.RESET:
            return LinkState.READY
        case LinkState.READY | LinkState.RUN if other == LinkState.RESET:
            return LinkState.RESET
        case LinkState.READY if other >= LinkState.READY:
            return LinkState.RUN
        case _:
            return own


class Link:
    """One side of the link.

    Args:
        guest: a guest with a device of ivshmem v2 in a domain of two peers with output sections.

    Attributes:
        state: the own State.
        resets: how often the link went down since it was up.
        ups: how often the link came up.

    Raises:
        GuestError: the domain has other peers, or no output sections that are large enough.
    """

    def __init__(self, guest: Guest) -> None:
        sections: Sections = guest.sections
        if sections.layout.max_peers != PEERS:
            raise GuestError(f"Ethernet needs a domain of {PEERS} peers, this one has {sections.layout.max_peers}")
        self._guest, self._sections = guest, sections
        self.peer = PEERS - 1 - guest.peer
        self._vector = min(1, guest.vectors - 1)
        layout = QueueLayout.of(sections.layout.output_bytes)
        self._sending = TransmitQueue(layout, sections.own, sections.output(self.peer))
        self._receiving = ReceiveQueue(layout, sections.own, sections.output(self.peer))
        self.state = LinkState.RESET
        self.ups = self.resets = 0
        guest.set_state(self.state)

    @property
    def is_up(self) -> bool:
        return self.state is LinkState.RUN

    def advance(self) -> bool:
        """Follow the other side's State as far as that goes; returns whether the link is up."""
        while (state := next_state(self.state, self._sections.state(self.peer))) is not self.state:
            if state is LinkState.READY and self.state is LinkState.INIT:
                self._sending.reset()
                self._receiving.reset()
            self.ups += state is LinkState.RUN
            self.resets += state is LinkState.RESET
            self.state = state
            self._guest.set_state(state)
        return self.is_up

    def send(self, frame: bytes) -> bool:
        """Send a frame; False when the link is down or the queue has no room."""
        if not self.is_up or not self._sending.send(frame):
            return False
        self._guest.ring(self.peer, self._vector)
        return True

    def receive(self) -> Iterator[bytes]:
        """Yield what has been received; nothing while the link is down."""
        if not self.is_up:
            return
        self._sending.reclaim()
        for frame in self._receiving.receive():
            self._guest.ring(self.peer, self._vector)  # a used entry is told, too
            yield frame
