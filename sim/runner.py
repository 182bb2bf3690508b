"""One run from beginning to end: what it needs is made in order, and unmade in reverse, however it goes."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from nodes.errors import HostError, UsageError
from sim.coordinator import Coordinator, Ending
from sim.crew import ForkServer, Hand
from sim.kernel.memory import Region
from sim.kernel.signals import ENDING
from sim.recording import Layout, Recording
from sim.results import Outcome, Run, RunDirectory
from sim.worker import WorkerPlan
from topologies import Machine, Topology, load

__all__ = ["Begun", "run"]

# What a run may take of the disk for its recordings, and the most that one machine can make of it: nobody rings
# or wakes more often than that.
SAMPLES_BUDGET_BYTES = 1 << 28
SAMPLE_BYTES = 24
SAMPLES_MIN = 1 << 10
SAMPLES_PER_S_MAX = 250_000
# What the coordinator holds besides: its eventfds of every peer, and for each machine a socket, a control
# socket, a sentinel and the pipe to the fork server.
DESCRIPTORS_EACH = 5
DESCRIPTORS_SPARE = 64
RUNTIME_LENGTH_MAX = 64
SIGNALS_TAKEN = 2


class Begun:
    """What can be known of a run that has begun: where it is, and where it tells how it goes."""

    def __init__(self, topology: Topology, path: Path, telemetry: str, server: Path) -> None:
        self.topology, self.path, self.telemetry, self.server = topology, path, telemetry, server


def run(
    topology: Topology | str | os.PathLike[str],
    *,
    runs: str | os.PathLike[str] = "runs",
    overrides: Mapping[str, str] | None = None,
    resources_every_s: float = 0.5,
    socket_path: str | os.PathLike[str] | None = None,
    on_begin: Callable[[Begun], None] = lambda begun: None,
) -> Run:
    """Run a topology and return its results.

    ``topology`` is one, a file, or the name of one that is shipped; ``overrides`` are keys of the file and TOML
    values (``{"machines.storm.count": "4"}``). The run directory is made in ``runs``. Processes are looked at
    every ``resources_every_s`` (0: never). ``socket_path`` puts the server's socket where others can find it: a
    real QEMU that connects there is one more peer.

    A run that fails still returns: ``run.status`` and ``run.reason`` say how. Interrupts (SIGINT, SIGTERM,
    SIGHUP in the main thread) end it with what was measured; a second one ends the machines without waiting.

    Raises ``TopologyError`` or ``UsageError`` before anything is started, ``HostError`` when this host cannot
    carry it.
    """
    if not isinstance(topology, Topology):
        topology = load(os.fspath(topology), overrides)
    elif overrides:
        raise UsageError("overrides go with a topology's file or name, not with one that is loaded already")
    with contextlib.ExitStack() as stack:
        stack.enter_context(_descriptors_for(topology))
        runtime = stack.enter_context(_runtime_directory())
        # Before anything else the helpers of the standard library: its fork server, its tracker of shared memory.
        stack.enter_context(ForkServer(runtime))
        server_path = Path(socket_path) if socket_path is not None else runtime / "ivshmem.sock"
        region = Region.create(topology.memory.size_bytes, kind=topology.memory.kind)
        stack.callback(region.close)
        arguments: dict[str, Any] = {
            "overrides": dict(overrides or {}),
            "resources_every_s": resources_every_s,
        }
        directory = stack.enter_context(RunDirectory.create(Path(runs), topology, arguments))
        hands = [_hand(stack, topology, machine, directory, server_path, runtime) for machine in topology.machines]
        coordinator = Coordinator(
            topology,
            hands,
            runtime=runtime,
            server_path=server_path,
            memory=region.descriptor,
            event=directory.event,
            resources=directory.resources,
            resources_every_s=resources_every_s,
        )
        stack.callback(coordinator.close)
        on_begin(Begun(topology, directory.path, coordinator.telemetry, server_path))
        with _interrupts(coordinator):
            ending = coordinator.run()
            exits = {hand.machine: hand.exit or None for hand in hands}
            # Machines and descriptors go before the results are made: from here on nothing can be lost.
            stack.close()
            return _finish(directory, topology, ending, exits)


def _finish(directory: RunDirectory, topology: Topology, ending: Ending, exits: dict[int, str | None]) -> Run:
    machines = range(len(topology.machines))
    return directory.finish(
        {at: count for at, count in ending.pending.items() if at[0] in machines},
        Outcome(ending.status, ending.reason, exits),
        start_ns=ending.start_ns,
        measure_start_ns=ending.measure_start_ns,
        stop_ns=ending.stop_ns,
        foreign_pending={at: count for at, count in ending.pending.items() if at[0] not in machines},
    )


def _hand(
    stack: contextlib.ExitStack,
    topology: Topology,
    machine: Machine,
    directory: RunDirectory,
    server_path: Path,
    runtime: Path,
) -> Hand:
    """A worker that is ready to be started, with its recording."""
    path = directory.recording_path(machine.index)
    book = Recording.create(
        path, _layout(topology, machine), machine=machine.index, sample_every=topology.run.sample_every
    )
    plan = WorkerPlan(
        name=machine.name,
        machine=machine.index,
        vectors=machine.vectors,
        role=machine.role,
        memory_bytes=topology.memory.size_bytes,
        profile=machine.profile,
        program=machine.program,
        parameters=machine.parameters,
        seed=topology.seed,
        sample_every=topology.run.sample_every,
        server=str(server_path),
        recording=str(path),
        runtime=str(runtime),
        expected=tuple(other.vectors for other in topology.machines),
    )
    hand = Hand(plan, book)
    stack.callback(hand.close)
    return hand


def _layout(topology: Topology, machine: Machine) -> Layout:
    """Room for the samples of one machine: the budget of the run is shared by all, drains get twice what rings get."""
    share = SAMPLES_BUDGET_BYTES // SAMPLE_BYTES // len(topology.machines) // 3
    most = round(SAMPLES_PER_S_MAX * (topology.run.warmup_s + topology.run.duration_s))
    # Peers that come later, real ones among them, want a few edges too.
    edges = sum(min(machine.vectors, other.vectors) for other in topology.machines) + 64 * machine.vectors
    return Layout(
        vectors=machine.vectors,
        edges=edges,
        rings=max(SAMPLES_MIN, min(most, share)) if topology.run.sample_every else 0,
        drains=max(SAMPLES_MIN, min(most, 2 * share)),
    )


@contextlib.contextmanager
def _descriptors_for(topology: Topology) -> Iterator[None]:
    """Refuse what this host has no descriptors for, before anything starts; else raise the soft limit to the hard one.

    Workers inherit it; the caller gets its own back.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    machines = len(topology.machines)
    others = DESCRIPTORS_SPARE + len(os.listdir("/proc/self/fd"))
    needed = topology.eventfds + DESCRIPTORS_EACH * machines + others
    if hard != resource.RLIM_INFINITY and needed > hard:
        raise HostError(
            f"this topology needs {needed} descriptors in the coordinator ({topology.eventfds} eventfds, "
            f"{DESCRIPTORS_EACH} for each of {machines} machines, {others} others); this host "
            f"allows {hard} (ulimit -Hn). Take fewer machines or vectors, or raise the limit"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@contextlib.contextmanager
def _runtime_directory() -> Iterator[Path]:
    """A private directory (mode 0700) for sockets, with a path short enough for them."""
    candidates = (os.environ.get("XDG_RUNTIME_DIR"), tempfile.gettempdir(), "/tmp")
    usable = (
        path for path in candidates if path and len(path) <= RUNTIME_LENGTH_MAX and os.access(path, os.W_OK | os.X_OK)
    )
    parent = next(usable, None)
    if parent is None:
        raise HostError(f"no directory for sockets: none of {candidates} is short enough and can be written")
    with tempfile.TemporaryDirectory(prefix="ivsim-", dir=parent) as path:
        yield Path(path)


@contextlib.contextmanager
def _interrupts(coordinator: Coordinator) -> Iterator[None]:
    """While this lasts, a signal ends the run: the first one gently, the second one at once.

    Results are written in here too, so that nobody loses them to impatience; the third signal gives up on them.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    seen = 0
    read_end, write_end = socket.socketpair()
    read_end.setblocking(False)
    write_end.setblocking(False)

    def arrived(number: int, _frame: object) -> None:
        nonlocal seen
        seen += 1
        if seen > SIGNALS_TAKEN:
            raise KeyboardInterrupt

    def interrupted() -> None:
        for number in read_end.recv(64):
            if coordinator.phase in ("starting", "running"):
                coordinator.stop("interrupted", signal.Signals(number).name)
            else:
                coordinator.kill_all()

    coordinator.watch(read_end, interrupted)
    previous_wakeup = signal.set_wakeup_fd(write_end.fileno(), warn_on_full_buffer=False)
    previous = {number: signal.signal(number, arrived) for number in ENDING}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(previous_wakeup)
        read_end.close()
        write_end.close()
