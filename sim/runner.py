"""One run from beginning to end: what it needs is made in order, and unmade in reverse, however it goes."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from nodes.errors import UsageError
from sim.access import Access, access_to, name_memories
from sim.coordination.coordinator import Coordinator, Ending
from sim.coordination.machines import LiveMachines
from sim.engines.process.fork_server import ForkServer
from sim.host.preflight import check
from sim.host.runtime_directory import runtime_directory
from sim.host.wake_up_baseline import WakeUpBaseline, baseline_if_any
from sim.kernel.fork_handover import adopting_orphans
from sim.kernel.segments import remove_orphaned
from sim.kernel.signals import signals_taken
from sim.results import Outcome, Run, RunDirectory
from sim.results.expectations import evaluate, silent_loads
from sim.results.store import files
from sim.results.store.manifest import Phase
from topologies import Topology, load

__all__ = ["Begun", "run"]

SIGNALS_TAKEN = 2


class Begun:
    """A run that has begun: its directory, the socket of its telemetry, and how others join each of its domains."""

    def __init__(self, topology: Topology, path: Path, telemetry: str, access: Sequence[Access]) -> None:
        self.topology, self.path, self.telemetry, self.access = topology, path, telemetry, access


def run(
    topology: Topology | str | os.PathLike[str],
    *,
    runs: str | os.PathLike[str] = "runs",
    overrides: Mapping[str, str] | None = None,
    resources_every_s: float = 0.5,
    socket_path: str | os.PathLike[str] | None = None,
    on_begin: Callable[[Begun], None] = lambda begun: None,
    programs: Sequence[str | os.PathLike[str]] = (),
) -> Run:
    """Run a topology and return its results.

    ``topology`` is one, a file, or the name of one that is shipped; ``overrides`` are keys of the file and TOML
    values (``{"machines.storm.count": "4"}``). The run directory is made in ``runs``. Processes are looked at
    every ``resources_every_s`` (0: never). ``programs`` are files of Python whose generator functions the topology can
    name; they run with full trust. ``socket_path`` puts the server's socket where others can find it: a
    real QEMU that connects there is one more peer.

    A run that fails still returns: ``run.status`` and ``run.reason`` say how. Interrupts (SIGINT, SIGTERM,
    SIGHUP in the main thread) end it with what was measured; a second one ends the machines without waiting.

    Raises ``TopologyError`` or ``UsageError`` before anything is started, ``HostError`` when this host cannot
    carry it.
    """
    if not isinstance(topology, Topology):
        topology = load(os.fspath(topology), overrides, [os.fspath(each) for each in programs])
    elif overrides or programs:
        raise UsageError("overrides and programs go with a topology's file or name, not with one that is loaded")
    check(topology, Path(runs))
    topology = name_memories(topology)
    with _Interrupts() as interrupts, contextlib.ExitStack() as whole, contextlib.ExitStack() as stack:
        stack.enter_context(_all_descriptors())
        stack.enter_context(adopting_orphans())
        runtime = stack.enter_context(runtime_directory())
        remove_orphaned()
        # Before anything else the helpers of the standard library: its fork server, its tracker of shared memory.
        stack.enter_context(ForkServer(runtime))
        server_path = Path(socket_path) if socket_path is not None else runtime / "ivshmem.sock"
        access = access_to(topology, server_path)
        arguments: dict[str, Any] = {
            "overrides": dict(topology.overrides),
            "resources_every_s": resources_every_s,
            "programs": [os.fspath(each) for each in programs],
        }
        directory = whole.enter_context(RunDirectory.create(Path(runs), topology, arguments))
        directory.record_access(access)
        floors = baseline_if_any()
        coordinator = Coordinator(
            topology,
            runtime=runtime,
            server_path=server_path,
            recording_path=directory.recording_path,
            event=directory.event,
            resources=directory.resources,
            resources_every_s=resources_every_s,
            path=directory.path,
        )
        stack.callback(coordinator.close)
        on_begin(Begun(topology, directory.path, coordinator.monitor.telemetry, access))
        interrupts.tell(coordinator)
        ending = coordinator.run()
        machines = coordinator.machines
        # Machines and descriptors go before the results are made: from here on nothing can be lost.
        stack.close()
        floors += baseline_if_any()
        return _judge(topology, _finish(directory, machines, ending, floors))


def _finish(directory: RunDirectory, machines: LiveMachines, ending: Ending, floors: Sequence[WakeUpBaseline]) -> Run:
    rows = {(domain, peer): row for handle in machines.handles for row, domain, peer in handle.identities}
    pending: Counter[tuple[int, int]] = Counter()
    foreign: dict[tuple[int, int], int] = {}
    for (domain, peer, vector), count in ending.pending.items():
        row = rows.get((domain, peer))
        if row is None:
            foreign[domain << 16 | peer, vector] = count
        else:  # whoever has migrated left a counter behind for each ID that it had
            pending[row, vector] += count
    return directory.finish(
        pending,
        Outcome(
            ending.status,
            ending.reason,
            {row.row: handle.exit or None for handle in machines.handles for row in handle.rows},
        ),
        start_ns=ending.start_ns,
        measure_start_ns=ending.measure_start_ns,
        stop_ns=ending.stop_ns,
        foreign_pending=foreign,
        phases=[Phase(*phase) for phase in ending.phases],
        identities=[identity for handle in machines.handles for identity in handle.identities],
        moves=[move for handle in machines.handles for move in handle.moves],
        floors=floors,
    )


def _judge(topology: Topology, run: Run) -> Run:
    """The run with what became of its expectations, and a warning for each load that rang nothing."""
    silent = silent_loads(topology, run)
    if not topology.expectations and not silent:
        return run
    warnings = [*run.figures.warnings, *silent]
    judged = msgspec.structs.replace(run.figures, expectations=evaluate(topology, run), warnings=warnings)
    files.write_json(run.path / files.SUMMARY, judged)
    return Run(run.path)


@contextlib.contextmanager
def _all_descriptors() -> Iterator[None]:
    """Raise the soft limit on descriptors to the hard one: workers inherit it, the caller gets its own back."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class _Interrupts:
    """While this lasts, signals are noted; once there is a coordinator to tell, they end its run.

    The first one gently, the second one at once. Results are written in here too, so that nobody loses them to
    impatience; the third signal gives up on them. Nothing is interrupted while it is being made: a half-made thing
    that nobody owns yet could not be unmade either. Outside the main thread this does nothing.
    """

    def __init__(self) -> None:
        self._seen = 0
        self._restore = contextlib.ExitStack()
        self._arrivals: socket.socket | None = None

    def __enter__(self) -> _Interrupts:
        if threading.current_thread() is threading.main_thread():
            self._arrivals, told = socket.socketpair()
            for end in (self._arrivals, told):
                end.setblocking(False)
                self._restore.callback(end.close)
            previous = signal.set_wakeup_fd(told.fileno(), warn_on_full_buffer=False)
            self._restore.callback(signal.set_wakeup_fd, previous)
            for number in signals_taken():
                self._restore.callback(signal.signal, number, signal.signal(number, self._arrived))
        return self

    def __exit__(self, *_: object) -> None:
        self._restore.close()

    def tell(self, coordinator: Coordinator) -> None:
        """From now on they are told to this one, those first that have come already."""
        arrivals = self._arrivals
        if arrivals is None:
            return

        def interrupted() -> None:
            for number in arrivals.recv(64):
                if coordinator.phase in ("starting", "running"):
                    coordinator.stop("interrupted", signal.Signals(number).name)
                else:
                    coordinator.kill_all()

        coordinator.watch(arrivals, interrupted)

    def _arrived(self, _number: int, _frame: object) -> None:
        self._seen += 1
        if self._seen > SIGNALS_TAKEN:
            raise KeyboardInterrupt
