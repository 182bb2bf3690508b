"""One topology over several hosts: each runs the part of its domains, and all start together.

Each part is a job: `ivsim run --domains`, whose start is held until all parts have arrived at a barrier. A part that
fails, or whose host is lost, ends the others, which keep what they have measured.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

import sim.results
from nodes.errors import HostError, IvshmemError, RunError, UsageError
from sim.distributed.dask.client import DaskCluster, Done
from sim.distributed.job import Job, collect_inputs, refusal, unpack
from sim.kernel.signals import signals_noted
from sim.results import Ending, Run, RunDirectory
from sim.results.expectations import BROKEN
from sim.results.joint_expectations import evaluate_joint
from sim.results.store import files
from sim.results.store.manifest import PartRow
from topologies import Topology
from topologies.domain import ANY_HOST
from topologies.hosts import has_hosts, part_of

LOOK_EVERY_S = 0.25
LOST_EVERY_S = 2.0
TOLD_AFTER_S = 5.0
"""After how long the user is told what is waited for."""
RUNS = "runs"


class HostPart(NamedTuple):
    """The domains that one host runs. ``is_named``: the worker has that name; else any worker stands for the host."""

    host: str
    domains: list[str]
    is_named: bool = True


def place_domains(topology: Topology, workers: Mapping[str, int], where: str) -> list[HostPart]:
    """Decide which host runs which domains.

    A domain on any host goes to the host with the fewest machines, the largest domain first.

    Args:
        topology: the topology; its domains have hosts.
        workers: the names of the hosts, each with the number of its workers; "" for workers without names.
        where: the address of their scheduler.

    Raises:
        UsageError: no domain has a host, or there are fewer workers without names than hosts.
        HostError: a host has no worker.
    """
    if not has_hosts(topology):
        raise UsageError('no domain has a host: `[domains.NAME]` with `host = "any"`, or the name of a worker')
    named = list(dict.fromkeys(domain.host for domain in topology.domains if domain.host != ANY_HOST))
    nameless = workers.get("", 0)
    if nameless:
        if nameless < len(named):
            raise UsageError(f"expected a worker for each of the hosts {', '.join(named)}, got {nameless}")
        hosts = [*named, *(f"worker-{number}" for number in range(1, nameless - len(named) + 1))]
    else:
        hosts = sorted(workers)
        there = f"there are {', '.join(hosts)}" if hosts else "there is none"
        if missing := [name for name in named if name not in workers] or ([] if hosts else ["NAME"]):
            start = f"start one: ivsim worker {where} --name {missing[0]}"
            raise HostError(f"no worker called {missing[0]} at {where} ({there}); {start}")
    sizes = {
        domain.name: sum(domain.name in machine.domains for machine in topology.machines) for domain in topology.domains
    }
    placed: dict[str, list[str]] = {host: [] for host in hosts}
    for domain in topology.domains:
        if domain.host != ANY_HOST:
            placed[domain.host].append(domain.name)
    for domain in sorted(topology.domains, key=lambda domain: -sizes[domain.name]):
        if domain.host == ANY_HOST:
            lightest = min(hosts, key=lambda host: sum(sizes[name] for name in placed[host]))
            placed[lightest].append(domain.name)
    # A domain without machines has nothing to run.
    return [HostPart(host, names, not nameless) for host, names in placed.items() if any(sizes[name] for name in names)]


class HostsRun:
    """A run over several hosts.

    Args:
        topology: the whole topology.
        placed: which host runs which domains.
        cluster: where.
        programs: the files that its programs are in.
        resources_every_s: as for `sim.run`.
        tell: is called with a line for the user when something has happened.

    Raises:
        UsageError: as `collect_inputs`.
    """

    def __init__(
        self,
        topology: Topology,
        placed: Sequence[HostPart],
        cluster: DaskCluster,
        *,
        programs: Sequence[str | Path] = (),
        resources_every_s: float = 0.5,
        tell: Callable[[str], object] = lambda line: None,
    ) -> None:
        self.topology, self.placed, self.cluster = topology, {part.host: part for part in placed}, cluster
        self._inputs = collect_inputs(topology, programs)
        self._resources_every_s, self._tell = resources_every_s, tell
        self._barrier = f"ivsim-{uuid.uuid4().hex}"
        self._waiting = dict.fromkeys(self.placed)
        self._begun: set[str] = set()
        self._ready: set[str] = set()
        self._has_started = self._is_over = False
        self._status, self._reason = "finished", ""
        self._refusal: IvshmemError | None = None
        self._looked_s = self._made_s = time.monotonic()
        self._has_told = False

    def rows(self) -> list[PartRow]:
        """The parts for the manifest; each has a directory of its own."""
        found: dict[str, PartRow] = {}
        for host, part in self.placed.items():
            name = directory = files.slug(host)
            while directory in {row.directory for row in found.values()}:
                directory = f"{name}-{len(found) + 1}"
            found[host] = PartRow(host, directory, part.domains)
        return list(found.values())

    def run(self, directory: RunDirectory) -> Run:
        """Run until all parts have ended, or one failed, or a signal came. Nothing runs on any host afterwards.

        Raises:
            HostError, UsageError: a host has refused its part; the directory says so, too.
        """
        self._directory = directory
        with signals_noted() as signalled:
            self._signalled = signalled
            try:
                self._run_parts()
            except RunError as error:
                self._end("failed", str(error))
            finally:
                if busy := self.cluster.cancel():
                    self._tell(f"no answer that the run has ended on {', '.join(busy)}")
                self.cluster.remove_barrier(self._barrier)
            ending = Ending(self._status, self._reason, {}, None, [], 0, 0, 0)
            run = self._judge(directory.finish(ending))
        if self._refusal is not None:
            raise self._refusal
        return run

    def _run_parts(self) -> None:
        with self.cluster.alone(self._is_wanted):
            self._send()
            self._until(lambda: self._begun >= self.placed.keys())
        self._until(lambda: self._ready >= self.placed.keys())
        if not self._is_over:
            self._has_started = True
            self.cluster.open_barrier(self._barrier)
            self._note("parts_started", "all machines are ready: started")
        # Jobs that have not begun have nothing to end.
        self._until(lambda: not (self._waiting.keys() & self._begun), also_when_over=True)

    def _is_wanted(self) -> bool:
        self._tell_once("waiting for another run over several hosts to get its workers")
        return not self._signalled()

    def _tell_once(self, line: str) -> None:
        """Tell what is waited for, if that takes long."""
        if not self._has_told and time.monotonic() - self._made_s > TOLD_AFTER_S:
            self._has_told = True
            self._tell(line)

    def _send(self) -> None:
        inputs = self._inputs
        options = ["--runs", RUNS, "--resources-every", f"{self._resources_every_s:g}", "--json"]
        for host, part in self.placed.items():
            arguments = ["run", *inputs.arguments, "--domains", ",".join(part.domains), *options]
            self.cluster.submit(
                host, Job(arguments, inputs.files, RUNS, self._barrier), host if part.is_named else None
            )

    def _until(self, holds: Callable[[], bool], *, also_when_over: bool = False) -> None:
        """Take what comes until something holds; unless otherwise said, not longer than the run is to last."""
        while not holds() and (also_when_over or not self._is_over):
            if (name := self._signalled()) and not self._is_over:
                self._end("interrupted", name)
            if (done := self.cluster.wait(LOOK_EVERY_S)) is not None:
                self._take(done)
            for host, _ in self.cluster.begun():
                if host in self._begun:
                    self._lose(host)
                self._begun.add(host)
                self._note("part_begun", f"{host}: {', '.join(self.placed[host].domains)}", host=host)
            for host in self.cluster.arrived() - self._ready:
                self._ready.add(host)
                self._note("part_ready", f"{host}: ready", host=host)
            if not self._has_told and (missing := [host for host in self.placed if host not in self._begun]):
                self._tell_once(f"waiting for {', '.join(missing)}: the worker has another run")
            if time.monotonic() - self._looked_s > LOST_EVERY_S:
                self._looked_s = time.monotonic()
                for host in self.cluster.lost():
                    self._lose(host)

    def _note(self, kind: str, line: str, **fields: str) -> None:
        self._directory.event(kind, **fields)
        self._tell(line)

    def _end(self, status: str, reason: str) -> None:
        """End all parts; the first reason is the one that counts."""
        if self._is_over:
            return
        self._is_over = True
        self._status, self._reason = status, reason
        if self._waiting:
            try:
                self.cluster.end_barrier(self._barrier)
            except Exception as error:  # whatever Dask raises without its scheduler
                self._waiting.clear()
                self._tell(f"the parts cannot be told to end: {error}")

    def _lose(self, host: str) -> None:
        """A host's part has gone with its worker; it is not run again, because the others have gone on."""
        if host not in self._waiting:
            return
        del self._waiting[host]
        self.cluster.drop(host)
        when = "after" if self._has_started else "before"
        self._note("part_lost", f"{host}: lost", host=host)
        self._end("failed", f"{host} was lost {when} the start: its worker is gone")

    def _take(self, done: Done) -> None:
        host, result = done.name, done.result
        if host not in self._waiting:
            return
        del self._waiting[host]
        if result is None:
            self._end("failed", f"{host}: {done.error}")
        elif not result.archive:
            error = refusal(host, result)
            if not self._is_over:
                self._refusal = error
            self._end("failed", str(error))
        else:
            path = self._directory.path / files.PARTS / self._row(host).directory
            try:
                unpack(result, path)
                self._judge_part(host, sim.results.open(path))
            except (OSError, IvshmemError) as error:
                self._end("failed", f"{host}: its results cannot be stored: {error}")

    def _row(self, host: str) -> PartRow:
        return next(row for row in self._directory.manifest.parts if row.host == host)

    def _judge_part(self, host: str, part: Run) -> None:
        """What the end of a part means for the others."""
        self._note("part_ended", f"{host}: {part.status}", host=host, status=part.status)
        said = f"{host}: {part.reason or part.status}"
        if part.status == "degraded" and self._status == "finished":
            self._status, self._reason = "degraded", said
        elif part.status not in ("finished", "degraded") and not self._is_over:
            for event in part.events():
                if event.get("kind") == BROKEN:
                    self._directory.event(BROKEN, host=host, expected=event.get("expected"), got=event.get("got"))
            self._end("failed", said)
        elif any(event.get("do") == "end" for event in part.actions()):
            self._end(self._status, self._reason)

    def _judge(self, run: Run) -> Run:
        """The run with its expectations judged."""
        if not self.topology.expectations:
            return run
        parts = {
            host: (part_of(self.topology, part.domains), run.parts.get(host)) for host, part in self.placed.items()
        }
        verdicts = evaluate_joint(self.topology, parts)
        files.write_json(run.path / files.SUMMARY, msgspec.structs.replace(run.figures, expectations=verdicts))
        return Run(run.path)
