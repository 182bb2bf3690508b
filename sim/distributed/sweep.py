"""The runs of a sweep on a cluster: each is a job, and its run directory comes back to the sweep's."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator

import sim.results
from nodes.errors import HostError, RunError
from sim.distributed.dask.client import DaskCluster, Done
from sim.distributed.job import Job, JobResult, collect_inputs, refusal, unpack
from sim.kernel.signals import signals_noted
from sim.sweeps import Cell, Row, Sweep

AHEAD = 2
"""Jobs at the scheduler for each worker: one that runs, and the next one."""
LOOK_EVERY_S = 0.25
HOSTS_EVERY_S = 2.0
LOST_HOST_S = 60.0
INTERRUPTED_MAX = 3
RUNS = "runs"


class ClusterSweep:
    """Carries out the runs of a sweep that are not done.

    Args:
        sweep: the sweep.
        cluster: where the runs are carried out.
        resources_every_s: as for `sim.run`.
        balance: give each host the same number of the repeats of a combination.
        tell: is called with a cell and its host when its run begins, and with its row when it has ended.
        warn: is called with a line for the user.
    """

    def __init__(
        self,
        sweep: Sweep,
        cluster: DaskCluster,
        *,
        resources_every_s: float = 0.5,
        balance: bool = False,
        tell: Callable[[Cell, str, Row | None], object] = lambda cell, host, row: None,
        warn: Callable[[str], object] = lambda line: None,
    ) -> None:
        self.sweep, self.cluster = sweep, cluster
        self.resources_every_s, self.balance = resources_every_s, balance
        self._tell, self._warn = tell, warn
        self._sent: dict[str, tuple[Cell, str | None]] = {}
        self._left = list(sweep.left)
        self._interrupted: Counter[int] = Counter()
        self._hosts: dict[str, int] = {}
        self._looked_s = 0.0
        self._missing_since_s: float | None = None

    def run(self) -> str:
        """Run until all is done or a signal comes. Returns the name of the signal, "" for none.

        Nothing runs on any host afterwards, unless a warning names one that did not answer.

        Raises:
            RunError: the scheduler is gone, or a run ends each worker that begins it.
            HostError, UsageError: a run cannot be carried out on its host, or the result cannot be stored.
        """
        with signals_noted() as signalled:
            try:
                while (self._left or self._sent) and not signalled():
                    self._look()
                    self._send()
                    done = self.cluster.wait(LOOK_EVERY_S)
                    self._tell_begun()
                    if done is not None:
                        self._take(done)
            finally:
                if busy := self.cluster.cancel():
                    self._warn(f"no answer that the runs have ended on {', '.join(busy)}")
            return signalled()

    def _look(self) -> None:
        """Look which hosts there are, now and then."""
        if (now_s := time.monotonic()) - self._looked_s < HOSTS_EVERY_S and self._hosts:
            return
        before, self._looked_s = self._hosts, now_s
        self._hosts = self.cluster.hosts()
        if not self._hosts and (before or self._missing_since_s is None):
            self._warn(f"no worker at {self.cluster.title} now: waiting for one (`ivsim worker {self.cluster.title}`)")
        lost = {host for _, host in self._sent.values() if host is not None and host not in self._hosts}
        if not lost and self._hosts:
            self._missing_since_s = None
        elif self._missing_since_s is None:
            self._missing_since_s = now_s
        elif lost and now_s - self._missing_since_s > LOST_HOST_S:
            raise HostError(f"{', '.join(sorted(lost))}: no worker since {LOST_HOST_S:g} s, and runs are balanced")

    def _send(self) -> None:
        room = AHEAD * sum(self._hosts.values()) - len(self._sent)
        while self._left and room > 0:
            cell = self._left.pop(0)
            host = self._lightest(cell) if self.balance else None
            topology = self.sweep.plan.topology(cell)
            inputs = collect_inputs(topology, self.sweep.plan.programs)
            options = ["--runs", RUNS, "--resources-every", f"{self.resources_every_s:g}", "--json"]
            name = str(cell.place)
            self.cluster.submit(name, Job(["run", *inputs.arguments, *options], inputs.files, RUNS), host)
            self._sent[name] = cell, host
            room -= 1

    def _lightest(self, cell: Cell) -> str:
        """The host with the fewest runs of the cell's combination, then the fewest runs at all."""
        same: Counter[str] = Counter()
        every: Counter[str] = Counter()
        values = self._values(cell)
        for other, host in self._placed():
            every[host] += 1
            same[host] += self._values(other) == values
        return min(self._hosts, key=lambda host: (same[host], every[host], host))

    def _values(self, cell: Cell) -> list[str]:
        return [cell.overrides[key] for key in self.sweep.plan.varied]

    def _placed(self) -> Iterator[tuple[Cell, str]]:
        """The cells that are done or sent, and the host of each."""
        for row in self.sweep.rows:
            yield self.sweep.plan.cells[row.place - 1], row.host
        yield from ((cell, host) for cell, host in self._sent.values() if host is not None)

    def _tell_begun(self) -> None:
        for name, host in self.cluster.begun():
            self._tell(self.sweep.plan.cells[int(name) - 1], host, None)

    def _take(self, done: Done) -> None:
        cell, _ = self._sent.pop(done.name)
        if done.result is None:
            kind = HostError if isinstance(done.error, OSError) else RunError
            raise kind(f"run {cell.place} cannot be carried out: {done.error}") from done.error
        result = done.result
        if not result.archive:
            raise refusal(f"run {cell.place}", result)
        row, interrupted = self._store(cell, result)
        if not interrupted:
            self._tell(cell, result.host, row)
            return
        self._interrupted[cell.place] += 1
        if self._interrupted[cell.place] >= INTERRUPTED_MAX:
            raise RunError(f"run {cell.place} was interrupted {INTERRUPTED_MAX} times, now on {result.host}")
        self._left.insert(0, cell)

    def _store(self, cell: Cell, result: JobResult) -> tuple[Row, str]:
        path = self.sweep.unfinished / f"received-{cell.place}"
        try:
            shutil.rmtree(path, ignore_errors=True)
            unpack(result, path)
        except OSError as error:
            raise HostError(f"{path}: the run cannot be written: {error.strerror}") from error
        return self.sweep.take(cell, sim.results.open(path))
