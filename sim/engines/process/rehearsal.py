"""Rehearsals: the fork server runs machines to their end itself, before it forks any.

CPython specialises code that has run several times. Each worker would do so for itself, and get pages of its own. In a
worker that is forked after rehearsals the code stays as it is: it starts sooner, and counts references in few names.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from dataclasses import replace
from pathlib import Path

from nodes.device import profiles
from nodes.wire.protocol import LEGACY, V0
from nodes.wire.server import Server
from sim.engines.messages import Expect, PeerIds, Start, Stop
from sim.engines.process.control import Control
from sim.engines.process.main import make_template
from sim.engines.shared.configuration import WorkerConfiguration
from sim.kernel.channel import send_descriptors
from sim.kernel.eventfd import EventFd

TIMES = 9
"""CPython 3.11 leaves a function as it is for eight calls (QUICKENING_WARMUP_DELAY)."""
PROGRAM, PARAMETERS = "storm", {"rate_hz": 1e6}
"""It reaches most of what programs call: rings, samples, interrupts. With a rate it rings no bursts, for which a worker
opens an io_uring of its own."""
VECTORS_MAX = 8
"""As many are announced. A socket holds some 278 messages that are not read yet (unix(7)), and a greeting of many
vectors takes all the time that the program has."""
RUN_NS = 1_000_000
"""From the greeting on: the program runs for about half of that."""
PATIENCE_S = 0.2
"""A machine that has not ended by then, as when the greeting is not understood, is stopped."""
BACKLOG = 8


def rehearse(configuration: WorkerConfiguration, folder: Path) -> None:
    """Run machines of this kind in this process, which has no children: a machine ends those at its end.

    Their server and their coordinator are made up: all that these say waits in the sockets. Devices of ivshmem v2 are
    not rehearsed.

    Args:
        configuration: the common part, of which a template is made.
        folder: where the server's socket is for that time.

    Raises:
        OSError: the host refuses what a machine needs.
    """
    if any(profiles.profile(name).version != 1 for name in configuration.profiles):
        return
    path = folder / "rehearsal"
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(os.fspath(path))
        stack.callback(path.unlink)
        listener.listen(BACKLOG)
        devices = tuple(replace(device, server=os.fspath(path)) for device in configuration.devices)
        machine = replace(
            configuration,
            name="rehearsal",
            program=PROGRAM,
            parameters=PARAMETERS,
            peers={"to": (1,)},
            seed="rehearsal",
            devices=devices,
        )
        stack.callback(signal.signal, signal.SIGALRM, signal.getsignal(signal.SIGALRM))
        for _ in range(TIMES):
            _rehearse_once(machine, listener)


def _rehearse_once(machine: WorkerConfiguration, listener: socket.socket) -> None:
    vectors = min(machine.vectors, VECTORS_MAX)
    with contextlib.ExitStack() as stack:
        ours, theirs = Control.pair()
        stack.enter_context(ours.socket)
        stack.enter_context(theirs)
        signal.signal(signal.SIGALRM, lambda *_: ours.send(Stop()))
        signal.setitimer(signal.ITIMER_REAL, PATIENCE_S, PATIENCE_S)
        stack.callback(signal.setitimer, signal.ITIMER_REAL, 0)
        worker = make_template(machine)
        worker.attach(machine, Control(theirs), os.getpid())
        stack.callback(worker.close)
        stack.callback(signal.set_wakeup_fd, -1)
        for device, profile in zip(machine.devices, machine.profiles, strict=True):
            connected, _ = listener.accept()
            stack.enter_context(connected)
            _greet(connected, device.memory_bytes, vectors, profiles.profile(profile).client)
        ours.send(Expect((2 * vectors,) * len(machine.devices)))
        ours.send(PeerIds({0: 0, 1: 1}))
        now_ns = time.monotonic_ns()
        ours.send(Start(now_ns, now_ns + RUN_NS))
        worker.run()


def _greet(connected: socket.socket, memory_bytes: int, vectors: int, client: str) -> None:
    """Send the greeting of the peer 0, and another peer. Each of its vectors has been rung."""
    with contextlib.ExitStack() as stack:
        memory = os.memfd_create("rehearsal", os.MFD_CLOEXEC)
        stack.callback(os.close, memory)
        os.truncate(memory, memory_bytes)
        server = Server(memory, dialect=LEGACY if client == "2012" else V0)
        peers = []
        for rung in (1, 0):
            eventfds = [stack.enter_context(contextlib.closing(EventFd.create())) for _ in range(vectors)]
            for eventfd in eventfds:
                eventfd.add(rung)
            peers.append(server.enter([eventfd.descriptor for eventfd in eventfds]))
        for to, message in server.spell_out(server.greet(peers)):
            if to == peers[0]:
                send_descriptors(connected, message.encode(), message.descriptors)
