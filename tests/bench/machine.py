"""A machine in this process: a `Vm` that is placed and connected with real eventfds, and its recording."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from nodes.device import profiles
from nodes.vm import Vm
from sim.engines.shared.recorder import Recorder
from sim.kernel.eventfd import EventFd, signal
from sim.kernel.uring import BatchMaker
from sim.recording import Recording, RecordingLayout

__all__ = ["Wired", "wired_machine"]

MEMORY_BYTES = 4096


@dataclass(frozen=True)
class Wired:
    """``lines`` are the eventfds by (peer, vector); the machine itself is peer 0."""

    vm: Vm
    recorder: Recorder
    lines: dict[tuple[int, int], int]

    def others(self) -> list[tuple[int, int]]:
        """All (peer, vector) except the machine's own, in an order that is drawn once, as in a storm."""
        pairs = [pair for pair in self.lines if pair[0] != 0]
        return random.Random(1).sample(pairs, len(pairs))


@contextlib.contextmanager
def wired_machine(
    folder: Path, *, peers: int, vectors: int, sample_every: int, rings: int = 1024, drains: int = 1024
) -> Iterator[Wired]:
    """A machine and its peers' eventfds, with room for so many samples and drains."""
    layout = RecordingLayout(vectors=vectors, edges=(peers + 1) * vectors, rings=rings, drains=drains)
    number = len(list(folder.iterdir()))
    path = folder / f"machine-{number}.rec"
    with contextlib.ExitStack() as stack:
        recording = stack.enter_context(Recording.create(path, layout, machine=0, sample_every=sample_every))
        recorder = Recorder(recording)
        batches = BatchMaker()
        stack.callback(batches.close)
        vm = Vm(
            profiles.PROFILES["qemu-doorbell"],
            vectors=vectors,
            role="peer",
            signal=signal,
            make_batch=batches,
            ledger=recorder,
            clock=time.monotonic_ns,
            random=random.Random(1),
            sample_every=sample_every,
        )
        vm.place(0, memoryview(bytearray(MEMORY_BYTES)))
        lines = {}
        for peer in range(peers + 1):
            for vector in range(vectors):
                eventfd = EventFd.create()
                stack.callback(eventfd.close)
                vm.connect(peer, vector, eventfd.descriptor)
                lines[peer, vector] = eventfd.descriptor
        stack.callback(vm.stop)
        yield Wired(vm, recorder, lines)
