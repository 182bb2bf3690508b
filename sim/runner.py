"""One run from beginning to end: resources are made in order and released in reverse, in every outcome."""

from __future__ import annotations

import contextlib
import importlib
import math
import os
import signal
import socket
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from nodes.errors import UsageError
from sim.access import Access, access_to, name_memories
from sim.coordination.coordinated_run import RunEnd
from sim.coordination.coordinator import Coordinator
from sim.coordination.machines import LiveMachines
from sim.coordination.monitor import Monitor
from sim.defined_programs import Programs, program_files
from sim.distributed.run_hosts import run_on_hosts
from sim.distributed.where import tls_of, where_of
from sim.engines.base import EngineKind
from sim.engines.qemu.guest_command import check_guests
from sim.host.preflight import check
from sim.host.runtime_directory import runtime_directory
from sim.host.wake_up_baseline import WakeUpBaseline, baseline_if_any
from sim.kernel.segments import remove_orphaned
from sim.kernel.signals import ENDING, signals_held, signals_taken
from sim.outliers import OutlierEnd
from sim.results import Run, RunDirectory
from sim.results.ending import Ending
from sim.results.expectations import evaluate, silent_loads
from sim.results.store import files
from sim.results.store.manifest import Phase
from sim.results.summary import Outlier
from sim.start_socket import StartSocket, start_gate
from sim.views.event_text import sentence
from sim.views.notebook_progress import progress_in_cell
from topologies import Topology, load
from topologies.hosts import part_of

SIGNALS_TAKEN = 2


class Begun:
    """A run that has begun: its directory, the socket of its telemetry, and how others join each of its domains."""

    def __init__(self, topology: Topology, path: Path, telemetry: str, access: Sequence[Access]) -> None:
        self.topology, self.path, self.telemetry, self.access = topology, path, telemetry, access


def run(
    topology: Topology | str | os.PathLike[str],
    *,
    runs: str | os.PathLike[str] = "runs",
    overrides: Mapping[str, object] | None = None,
    resources_every_s: float = 0.5,
    socket_path: str | os.PathLike[str] | None = None,
    on_begin: Callable[[Begun], None] = lambda begun: None,
    programs: Programs = (),
    domains: Sequence[str] = (),
    start_fd: int | None = None,
    stop_above: str = "",
    scheduler: str | None = None,
    workers: int | None = None,
    tls: Sequence[str | os.PathLike[str]] | None = None,
) -> Run:
    """Run a topology and return its results.

    A run that fails still returns: ``run.status`` and ``run.reason`` say how. Interrupts (SIGINT, SIGTERM, SIGHUP in
    the main thread) end it with what was measured, also those that come before it starts; a second one kills the
    machines, a third one gives up the results.

    Args:
        topology: one, a file, or the name of one that is shipped.
        runs: where the run directory is made.
        overrides: keys of the file and values (``{"machines.storm.count": 4}``); see `topologies.load`.
        resources_every_s: how often processes are sampled (0: never).
        socket_path: the path of the server's socket, for others to find: a real QEMU that connects there is one more
            peer.
        on_begin: called when the run has begun.
        programs: a file of Python whose generator functions the topology can name, or such a function itself, or
            several of them; they run with full trust. A function is sent to the workers by cloudpickle.
        domains: run the machines of these domains only; (): all of them.
        start_fd: a connected socket, which is told ``ready`` when all machines are; a line from it starts them, its
            end calls the start off.
        stop_above: end the run when a latency is above this limit (``5ms``, ``p99_9=500us``), as ``[run] stop_above``
            does; ``run.figures.outlier`` says what it was.
        scheduler: the address of a scheduler: the domains run on its workers (`[domains.NAME] host`).
        workers: without a scheduler, how many workers of this host stand for hosts.
        tls: the files of the authority's certificate, the own certificate and its key.

    Raises:
        TopologyError, UsageError: before anything is started.
        HostError: this host cannot carry it.
    """
    resources_every_s = _seconds(resources_every_s)
    if stop_above:
        overrides = {**(overrides or {}), "run.stop_above": stop_above}
    where = where_of(scheduler, workers, tls_of(tls))
    with program_files(programs) as files_of_programs:
        if where is not None:
            here = {"socket_path": socket_path, "domains": domains, "start_fd": start_fd}
            if wrong := [name for name, value in here.items() if value]:
                raise UsageError(f"{wrong[0]} goes with a run on this host, without scheduler and workers")
            return run_on_hosts(
                where,
                topology,
                overrides=overrides,
                programs=files_of_programs,
                runs=Path(runs),
                resources_every_s=resources_every_s,
            )
        with start_gate(start_fd) as gate, _Interrupts() as interrupts:
            topology, engine_kind = _prepared(topology, overrides, files_of_programs, domains, Path(runs))
            arguments = {"overrides": dict(topology.overrides), "resources_every_s": resources_every_s}
            arguments |= {"programs": files_of_programs, **({"domains": list(domains)} if domains else {})}
            with engine_kind.during(topology), RunDirectory.create(Path(runs), topology, arguments) as directory:
                return _run_here(
                    topology, engine_kind, directory, resources_every_s, interrupts, gate, socket_path, on_begin
                )


def _run_here(
    topology: Topology,
    engine_kind: EngineKind,
    directory: RunDirectory,
    resources_every_s: float,
    interrupts: _Interrupts,
    gate: StartSocket | None,
    socket_path: str | os.PathLike[str] | None,
    on_begin: Callable[[Begun], None],
) -> Run:
    baselines = _baselines(engine_kind)
    with contextlib.ExitStack() as stack:
        runtime = stack.enter_context(runtime_directory())
        server_path = Path(socket_path) if socket_path is not None else runtime / "ivshmem.sock"
        access = access_to(topology, server_path)
        directory.record_access(access)
        engine = stack.enter_context(engine_kind.make(topology, runtime, server_path))
        directory.clock = engine.loop.clock.now_ns
        end = stack.enter_context(OutlierEnd(topology, directory, engine.loop, engine_kind.in_real_time))
        observe = partial(
            Monitor,
            runtime=runtime,
            record=directory.resources,
            resources_every_s=resources_every_s,
            path=directory.path,
            access=access,
            describe=sentence,
        )
        coordinator = Coordinator(
            topology, engine, recording_path=directory.recording_path, event=end.event, observe=observe, gate=gate
        )
        stack.callback(coordinator.close)
        end.watch(coordinator)
        on_begin(Begun(topology, directory.path, coordinator.monitor.telemetry, access))
        stack.enter_context(progress_in_cell(coordinator.monitor.telemetry))
        interrupts.tell(coordinator)
        ending = _ending(coordinator.run(), coordinator.machines, end.conclude())
        # The results are on the disk before anything is released: no later failure loses them.
        directory.save(ending)
        try:
            stack.close()
        except Exception as error:  # whatever it is, the results are worth more
            directory.event("warning", machine="the run", text=f"not everything could be released: {error}")
    return _judge(topology, directory.finish(ending, baselines + _baselines(engine_kind)))


def _seconds(value: Any) -> float:
    """An interval. Raises ``UsageError`` for what is no finite number from 0."""
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise UsageError("resources_every_s: expected a number of seconds from 0")
    return seconds


def _prepared(
    topology: Topology | str | os.PathLike[str],
    overrides: Mapping[str, object] | None,
    program_files: list[str],
    domains: Sequence[str],
    runs: Path,
) -> tuple[Topology, EngineKind]:
    """Load the topology, and check what it needs of this host; remove what killed runs have left."""
    if not isinstance(topology, Topology):
        topology = load(os.fspath(topology), overrides, program_files)
    elif overrides or program_files:
        raise UsageError("overrides and programs go with a topology's file or name, not with one that is loaded")
    topology = part_of(topology, domains) if domains else topology
    engine_kind: EngineKind = importlib.import_module(f"sim.engines.{topology.run.engine}.engine").KIND
    if engine_kind.in_real_time:
        check_guests(topology)
        check(topology, runs)
    remove_orphaned()
    return name_memories(engine_kind.prepare(topology)), engine_kind


def _baselines(engine_kind: EngineKind) -> list[WakeUpBaseline]:
    """Measures the wake-up baseline; empty if the run has none."""
    return baseline_if_any() if engine_kind.in_real_time else []


def _ending(end: RunEnd, machines: LiveMachines, outlier: Outlier | None) -> Ending:
    pending: Counter[tuple[int, int]] = Counter()
    foreign: list[tuple[int, int, int]] = []
    for (domain, peer, vector), count in end.pending.items():
        row = machines.row_of.get((domain, peer))
        if row is None:
            foreign.append((domain << 16 | peer, vector, count))
        else:  # a machine that has migrated left a counter behind for each ID that it had
            pending[row, vector] += count
    return Ending(
        status=end.status,
        reason=end.reason,
        deaths={
            row.row: incarnation.exit
            for incarnation in machines.incarnations
            if incarnation.exit
            for row in incarnation.rows
        },
        pending=[(*at, count) for at, count in pending.items()],
        foreign_pending=foreign,
        foreign_peers=end.foreign_peers,
        start_ns=end.start_ns,
        measure_start_ns=end.measure_start_ns,
        stop_ns=end.stop_ns,
        phases=[Phase(*phase) for phase in end.phases],
        identities=[identity for incarnation in machines.incarnations for identity in incarnation.identities],
        moves=[move for incarnation in machines.incarnations for move in incarnation.moves],
        stays=machines.shared_stays(),
        outlier=outlier,
    )


def _judge(topology: Topology, run: Run) -> Run:
    """The run with its expectations judged, and a warning for each load that rang nothing."""
    silent = silent_loads(topology, run)
    if not topology.expectations and not silent:
        return run
    warnings = [*run.figures.warnings, *silent]
    judged = msgspec.structs.replace(run.figures, expectations=evaluate(topology, run), warnings=warnings)
    files.write_json(run.path / files.SUMMARY, judged)
    return Run(run.path)


class _Interrupts:
    """While this lasts, signals are noted; once there is a coordinator to tell, they end its run.

    The first one lets machines stop, the second one kills them. Results are still written then; the third signal gives
    up on them, at once. The first two interrupt nothing: what is half made and has no owner yet could not be released.
    Outside the main thread this does nothing.
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
        with signals_held():  # as in `restore_handlers`
            self._restore.close()

    def tell(self, coordinator: Coordinator) -> None:
        """Tell signals to this coordinator from now on, those first that have come already."""
        arrivals = self._arrivals
        if arrivals is None:
            return

        def interrupted() -> None:
            for number in arrivals.recv(64):
                if number not in ENDING:
                    continue  # a signal with another handler, such as a timer's
                if coordinator.phase in ("starting", "running"):
                    coordinator.stop("interrupted", signal.Signals(number).name)
                else:
                    coordinator.kill_all(signal.Signals(number).name)

        coordinator.watch(arrivals, interrupted)

    def _arrived(self, _number: int, _frame: object) -> None:
        self._seen += 1
        if self._seen > SIGNALS_TAKEN:
            raise KeyboardInterrupt
