"""The process of a machine that is an external QEMU: it waits for QEMU, and relays between it and the run's server.

QEMU connects to a socket of its own, so the run knows which machine it is. Each vector of a peer that QEMU can ring is
an eventfd of this process: what QEMU adds to it is counted and then rung, as if the machine's program had rung. What
the run rings at the machine is counted before QEMU gets it. So the accounts are those of any other machine.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from nodes.device.ivshmem import Ivshmem
from nodes.device.msix import MsixMessage
from nodes.device.profile import Profile
from nodes.errors import QemuError
from nodes.peer_table import Line
from nodes.vm import Vm
from sim.engines.process import control
from sim.engines.process.worker import Worker
from sim.engines.qemu.relay import Relay
from sim.engines.shared.configuration import WorkerConfiguration
from sim.kernel.channel import credentials_of
from sim.kernel.eventfd import EventFd
from sim.kernel.memory import map_region
from sim.recording import Recording

PAUSE_S = 0.001


class ForwardingIvshmem(Ivshmem):
    """The device as the run's server sees it; what interrupts it is passed on to QEMU."""

    def __init__(self, profile: Profile, epoll: Callable[[], select.epoll], **settings: Any) -> None:
        super().__init__(profile, **settings)
        self.fires = [False] * self.vectors
        self._epoll = epoll
        self._relay: Relay | None = None
        self._own = [EventFd.create() for _ in range(self.vectors)]
        self.rung: dict[int, tuple[int, int, EventFd]] = {}
        """By descriptor: the peer and the vector that each eventfd stands for which QEMU rings."""

    def attach(self, relay: Relay, memory: int) -> None:
        """QEMU has connected: tell it all that a newcomer is told."""
        assert self.peer is not None
        self._relay = relay
        relay.greet(self.peer, memory)
        for descriptor, (peer, _, _) in self.rung.items():
            relay.connect(peer, descriptor)
        for eventfd in self._own:
            relay.connect(self.peer, eventfd.descriptor)

    def connect(self, peer: int, vector: int, line: Line = 0) -> bool:
        if not super().connect(peer, vector, line):
            return False
        if peer != self.peer:
            eventfd = EventFd.create()
            self.rung[eventfd.descriptor] = peer, vector, eventfd
            self._epoll().register(eventfd.descriptor, select.EPOLLIN)
            if self._relay is not None:
                self._relay.connect(peer, eventfd.descriptor)
        return True

    def connect_next(self, peers: Sequence[int], lines: Sequence[Line]) -> None:
        for peer, line in zip(peers, lines, strict=True):
            self.connect(peer, self.peers.vectors(peer), line)

    def disconnect(self, peer: int) -> None:
        if self._relay is not None and self.peers.vectors(peer) and peer != self.peer:
            self._relay.leave(peer)
        for descriptor in self.rung_at(peer):
            self._forget(descriptor)
        super().disconnect(peer)

    def interrupt(self, vector: int, count: int) -> None:
        self._own[vector].add(count)
        self.effects.append(MsixMessage(vector, 0, 0))

    def take(self, descriptor: int) -> tuple[int, int, int]:
        """What QEMU has rung on one of these eventfds: (peer, vector, doorbells)."""
        peer, vector, eventfd = self.rung[descriptor]
        return peer, vector, eventfd.take()

    def rung_at(self, peer: int) -> list[int]:
        """The eventfds that QEMU rings for a peer."""
        return [descriptor for descriptor, (other, _, _) in self.rung.items() if other == peer]

    def not_taken(self) -> int:
        """How many doorbells for its own vectors QEMU has not read."""
        return sum(eventfd.take() for eventfd in self._own)

    def unplug(self) -> None:
        self.close()
        super().unplug()

    def close(self) -> None:
        for descriptor in list(self.rung):
            self._forget(descriptor)
        for eventfd in self._own:
            eventfd.close()

    def _forget(self, descriptor: int) -> None:
        _, _, eventfd = self.rung.pop(descriptor)
        with contextlib.suppress(OSError, ValueError):  # the worker has closed its epoll
            self._epoll().unregister(descriptor)
        if self._relay is None:
            eventfd.close()
        else:
            self._relay.retire(eventfd)


class ForwardingVm(Vm):
    """A machine whose device is a `ForwardingIvshmem`."""

    def __init__(self, epoll: Callable[[], select.epoll], profile: Profile, **settings: Any) -> None:
        self._epoll = epoll
        super().__init__(profile, **settings)

    def ring_what_came(self, descriptors: Iterable[int]) -> None:
        """Ring what QEMU has rung on these eventfds."""
        for descriptor in descriptors:
            peer, vector, count = self.forwarding.take(descriptor)
            for _ in range(count):
                self.guest.ring(peer, vector)

    def disconnect(self, peer: int) -> None:
        """A peer has left. What QEMU has rung there before is rung: its counter is there to the end of the run."""
        self.ring_what_came(self.forwarding.rung_at(peer))
        super().disconnect(peer)

    def unplug(self) -> None:
        self.ring_what_came(list(self.forwarding.rung))
        super().unplug()

    def make_device(
        self, profile: Profile, *, vectors: int, role: str, size_bytes: int | None = None
    ) -> ForwardingIvshmem:
        self.forwarding = ForwardingIvshmem(
            profile,
            self._epoll,
            vectors=vectors,
            role=role,
            ring=self.doorbells.decoded,
            on_decode=self.doorbells.invalidate,
        )
        return self.forwarding


class ExternalWorker(Worker):
    """A worker whose machine is a QEMU that connects to ``configuration.socket``."""

    def __init__(self, configuration: WorkerConfiguration, recordings: list[Recording]) -> None:
        self._path = Path(configuration.socket)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self._relay: Relay | None = None
        self._qemu = -1  # the socket to it
        self._memory = -1
        self._make_vm = lambda profile, **settings: ForwardingVm(lambda: self._epoll, profile, **settings)
        super().__init__(configuration, recordings)
        # Renamed once it listens: a QEMU that is started as soon as the path exists is not refused.
        unnamed = self._path.with_name(f"{self._path.name}~")
        unnamed.unlink(missing_ok=True)
        self._listener.bind(os.fspath(unnamed))
        self._listener.listen(1)
        unnamed.rename(self._path)

    @property
    def _forwarding(self) -> ForwardingVm:
        assert isinstance(self._vm, ForwardingVm)
        return self._vm

    @property
    def _device(self) -> ForwardingIvshmem:
        return self._forwarding.forwarding

    def _take_memory(self, vm: Vm, peer: int, descriptor: int) -> None:
        self._memory = os.dup(descriptor)
        vm.place(peer, memoryview(map_region(descriptor)))

    def _await_greetings(self) -> None:
        super()._await_greetings()
        self._epoll.register(self._listener.fileno(), select.EPOLLIN)
        timeout_s = self._configuration.ready_timeout_s
        deadline_s = time.monotonic() + timeout_s
        while self._relay is None:
            if not self._wait_and_handle_event(max(0.0, deadline_s - time.monotonic())):
                raise QemuError(f"no QEMU has connected to {self._path} within {timeout_s:g} s")
        self._relay.wait_until_read(lambda: time.sleep(PAUSE_S))
        self._serve_relay()

    def _handle_event(self, descriptor: int) -> None:
        if descriptor == self._listener.fileno():
            self._accept()
        elif descriptor == self._qemu:
            self._serve_relay()
        elif descriptor in self._device.rung:
            self._forwarding.ring_what_came([descriptor])
        else:
            super()._handle_event(descriptor)
            if self._relay is not None and not self._relay.is_sent:  # more peers have come than its socket has room for
                self._epoll.modify(self._qemu, select.EPOLLIN | select.EPOLLOUT)

    def _serve_relay(self) -> None:
        assert self._relay is not None
        if self._relay.has_left:
            raise QemuError("it has disconnected")
        if self._relay.flush():
            self._epoll.modify(self._qemu, select.EPOLLIN)

    def _accept(self) -> None:
        connected, _ = self._listener.accept()
        if self._relay is not None:  # one machine is one QEMU
            connected.close()
            return
        self._relay, self._qemu = Relay(connected), connected.fileno()
        self._device.attach(self._relay, self._memory)
        self._epoll.register(self._qemu, select.EPOLLIN)
        self._link.send(control.Hosted(credentials_of(connected).pid, ours=False))

    def _stop(self) -> None:
        self._forwarding.ring_what_came(list(self._device.rung))
        if left := self._device.not_taken():
            self._vm.warnings.append(f"its QEMU has not read {left} doorbells that were passed on to it")
        super()._stop()

    def close(self) -> None:
        self._device.close()
        if self._relay is not None:
            self._relay.close()
        self._listener.close()
        with contextlib.suppress(OSError):
            self._path.unlink()
        if self._memory >= 0:
            os.close(self._memory)
        super().close()
