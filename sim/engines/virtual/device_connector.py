"""Connects the devices of one machine under virtual time to the servers of their domains."""

from __future__ import annotations

from collections.abc import Callable

from nodes.errors import UsageError
from sim.engines.base import LiveMachine
from sim.engines.virtual.announced_link import AnnouncedLink
from sim.engines.virtual.device import VirtualDevice
from sim.engines.virtual.host import VirtualHost
from sim.engines.virtual.link import VirtualLink
from sim.engines.virtual.ready_counters import ReadyCounters


class DeviceConnector:
    """One for a machine.

    Args:
        counters: those of the machine.
        delay: how long the next message to the machine is under way, in nanoseconds.
        vectors: how many vectors each device has.
        may_migrate: the machine has a mapping of the memory of its own.
        on_readable: is called when a server has said something.
        poke: is called when the machine may have something to do.
        warn: called with what is odd in what a server says.

    Attributes:
        announced: the connections to servers that announce once for all machines.
    """

    __slots__ = (
        "_counters",
        "_delay",
        "_host",
        "_machine",
        "_may_migrate",
        "_on_readable",
        "_poke",
        "_vectors",
        "_warn",
        "announced",
    )

    def __init__(
        self,
        machine: LiveMachine,
        host: VirtualHost,
        counters: ReadyCounters,
        *,
        delay: Callable[[], int],
        vectors: int,
        may_migrate: bool,
        on_readable: Callable[[], object],
        poke: Callable[[], object],
        warn: Callable[[str], object],
    ) -> None:
        self._machine, self._host, self._counters, self._delay = machine, host, counters, delay
        self._vectors, self._may_migrate = vectors, may_migrate
        self._on_readable, self._poke, self._warn = on_readable, poke, warn
        self.announced: list[AnnouncedLink] = []

    def connect(
        self, device: VirtualDevice, number: int, domain: int, place: Callable[[int, int], object] | None = None
    ) -> None:
        """Connect a device, the machine's ``number``-th, to the server of a domain.

        Raises:
            UsageError: no server listens.
        """
        counters, vm, server = self._counters, device.vm, self._host.servers[domain]
        first_vector = number * self._vectors
        link: VirtualLink | AnnouncedLink
        if server.announcements is not None:
            link = AnnouncedLink(
                self._machine,
                vm,
                self._host.loop,
                server.announcements,
                delay_ns=self._delay(),
                counters=counters,
                first_vector=first_vector,
                on_readable=self._poke,
                memory=self._host.memory(domain, own=False),
            )
            device.connect_announced(link)
            self.announced.append(link)
        else:
            link = VirtualLink(
                self._machine,
                self._host.loop,
                delay=self._delay,
                make_counter=lambda vector: counters.make(first_vector + vector),
                on_readable=self._on_readable,
            )
            device.connect(
                link,
                place=place or (lambda peer, _: vm.place(peer, self._host.memory(domain, own=self._may_migrate))),
                on_own=lambda line: counters.wait_for([line]),
                on_own_gone=lambda line: counters.forget([line]),
                memory_bytes=len(server.memory),
                warn=self._warn,
                rung=lambda line: counters.rung_until(line, self._host.loop.clock.ns),
            )
        if not server.connect(link):
            raise UsageError(f"no server listens in domain {domain}: connection refused")
