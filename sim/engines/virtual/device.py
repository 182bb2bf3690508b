"""One device of a machine under virtual time: the device itself, its connection to a server, its recording."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from nodes.bursts import Batch
from nodes.device.profile import Profile
from nodes.endpoint import Endpoint, EndpointHooks
from nodes.endpoint_factory import make_endpoint
from nodes.peer_table import PeerTable
from nodes.vm import Vm
from sim.engines.shared.recorder import Recorder
from sim.engines.virtual.announced_link import AnnouncedLink
from sim.engines.virtual.late_random import LateRandom
from sim.engines.virtual.link import VirtualLink
from sim.recording import Recording

NO_CUT = 1 << 62


class VirtualDevice:
    """``first`` is the machine's first device, None for that itself.

    ``cut()`` says after how many bytes a read from the server ends, 0 for never; None is a function that says 0.
    """

    __slots__ = (
        "_cut",
        "_received",
        "endpoint",
        "expected",
        "link",
        "name",
        "recorder",
        "recording",
        "vm",
    )

    def __init__(
        self,
        recording: Recording,
        profile: Profile,
        *,
        domain: int,
        vectors: int,
        role: str,
        memory_bytes: int,
        seed: str,
        sample_every: int,
        first: Vm | None,
        name: str,
        cut: Callable[[], int] | None,
        signal: Callable[[int, int], object],
        make_batch: Callable[[Sequence[int]], Batch],
        clock: Callable[[], int],
    ) -> None:
        self.recording = recording
        self.recorder = Recorder(recording, domain=domain)
        self.vm = Vm(
            profile,
            vectors=vectors,
            role=role,
            size_bytes=memory_bytes if profile.memory_container else None,
            signal=signal,
            make_batch=make_batch,
            ledger=self.recorder,
            clock=clock,
            random=LateRandom(seed),
            sample_every=sample_every,
            first=first,
        )
        self.name = name
        self._cut = cut
        self._received = 0  # bytes of the message that is next in the link
        self.link: VirtualLink | AnnouncedLink | None = None
        self.endpoint: Endpoint | AnnouncedLink | None = None
        self.expected: int | None = None
        """How many eventfds the server's greeting contains, once the coordinator has said so."""

    @property
    def peer(self) -> int | None:
        return None if self.endpoint is None else self.endpoint.peer

    @property
    def is_met(self) -> bool:
        """Whether the device is connected to all that were present when it joined."""
        endpoint = self.endpoint
        return (
            endpoint is not None
            and self.expected is not None
            and endpoint.is_set_up
            and (isinstance(endpoint, AnnouncedLink) or endpoint.heard >= self.expected)
        )

    def connect(
        self,
        link: VirtualLink,
        *,
        place: Callable[[int, int], object],
        on_own: Callable[[int], object],
        on_own_gone: Callable[[int], object],
        memory_bytes: int,
        warn: Callable[[str], object],
        rung: Callable[[int], int],
    ) -> None:
        """Hear a server from now on; ``place(peer, descriptor)`` puts the memory in its place."""
        self.link, self.expected, self._received = link, None, 0
        self.endpoint = make_endpoint(
            self.vm,
            PeerTable(),
            EndpointHooks(
                place=place,
                on_own=on_own,
                on_own_gone=on_own_gone,
                warn=warn,
                size_bytes=lambda descriptor: memory_bytes,
                rung=rung,
            ),
        )

    def connect_announced(self, link: AnnouncedLink) -> None:
        """Hear a server that announces once for all machines."""
        self.link = self.endpoint = link
        self.expected = None

    def read(self) -> bool:
        """Take in what the server has said; False when it has closed the connection.

        Raises:
            RemoteProtocolError: it said what a server may not say.
        """
        link, endpoint = self.link, self.endpoint
        if link is None or endpoint is None:
            return True
        if isinstance(link, AnnouncedLink) or isinstance(endpoint, AnnouncedLink):
            return True
        arrived = link.read()
        left = self._cut() or NO_CUT if self._cut is not None and arrived else NO_CUT
        for place, message in enumerate(arrived):
            if message is None:
                endpoint.end()
                return False
            data = message.encode()[self._received :]
            if left <= len(data):
                if left == len(data):
                    endpoint.receive(data, message.descriptors)
                    self._received, place = 0, place + 1
                else:  # descriptors come with the last byte
                    endpoint.receive(data[:left], ())
                    self._received += left
                link.put_back(arrived[place:])
                break
            endpoint.receive(data, message.descriptors)
            self._received = 0
            left -= len(data)
        return True
