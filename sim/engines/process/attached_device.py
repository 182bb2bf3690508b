"""One device of a machine in its process: the device itself, its connection to a server, its recording."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

from nodes.device import profiles
from nodes.vm import Vm
from sim.engines.shared.configuration import DeviceConfiguration, WorkerConfiguration
from sim.engines.shared.recorder import Recorder
from sim.kernel.eventfd import signal
from sim.kernel.mmsg import ReceiveTable
from sim.kernel.uring import BatchMaker
from sim.recording import Recording
from sim.wire.connection import Connection, connect


class AttachedDevice:
    """Owns the connection, once it is attached, and the recording.

    Args:
        make_vm: makes the machine, with the arguments of `Vm`.
        first: the machine's first device, None for that itself.
        on_memory: ``on_memory(vm, peer, descriptor)`` puts the memory in its place when it comes.
    """

    def __init__(
        self,
        configuration: DeviceConfiguration,
        recording: Recording,
        machine: WorkerConfiguration,
        *,
        make_vm: Callable[..., Vm],
        first: Vm | None,
        on_memory: Callable[[Vm, int, int], None],
        on_own: Callable[[int, int], None],
        on_own_gone: Callable[[int], None],
        warn: Callable[[str], object],
    ) -> None:
        self.recording = recording
        self.recorder = Recorder(recording, domain=configuration.domain)
        self._random = random.Random(machine.seed)  # what a seed that is a text needs is loaded with the first one
        profile = profiles.profile(machine.profiles[0 if first is None else first.number_of_devices])
        self.vm = make_vm(
            profile,
            vectors=machine.vectors,
            role=machine.role,
            size_bytes=configuration.memory_bytes if profile.memory_container else None,
            signal=signal,
            make_batch=BatchMaker(),
            ledger=self.recorder,
            clock=time.monotonic_ns,
            random=self._random,
            sample_every=machine.sample_every,
            first=first,
        )
        self._on_own, self._on_own_gone, self._warn = on_own, on_own_gone, warn
        self._on_memory = on_memory
        self._table = ReceiveTable()
        self.expected: int | None = None
        """How many eventfds the server's greeting contains, once the coordinator has sent the number."""

    def attach(self, server: str, seed: str, coordinator: int) -> None:
        """Connect to a server, as a machine with this seed.

        Args:
            server: the path of its socket.
            seed: of the machine's random numbers.
            coordinator: the process whose servers are trusted to send eventfds.
        """
        self._coordinator = coordinator
        self._random.seed(seed)
        self.connection = self._connect(server)

    @property
    def is_met(self) -> bool:
        """Whether all peers are connected that were present when this device joined."""
        endpoint = self.connection.endpoint
        return self.expected is not None and endpoint.heard >= self.expected and endpoint.is_set_up

    def connect_also(self, server: str, domain: int, on_memory: Callable[[int, int], None]) -> Connection:
        """Connect elsewhere; the connection until now is returned, open."""
        before, self.expected = self.connection, None
        self.connection = self._connect(server, on_memory)
        self.recorder.domain = domain
        return before

    def _connect(self, server: str, on_memory: Callable[[int, int], None] | None = None) -> Connection:
        return Connection(
            connect(server),
            self.vm,
            on_own=lambda descriptor: self._on_own(descriptor, self.vm.number),
            on_own_gone=self._on_own_gone,
            warn=self._warn,
            on_memory=on_memory or (lambda peer, memory: self._on_memory(self.vm, peer, memory)),
            trusted=self._coordinator,
            table=self._table,
        )

    def close(self) -> None:
        self.connection.close()
        self.recording.close()
