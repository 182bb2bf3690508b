"""A sweep from Python: `sim.sweep` runs one, or goes on with it, and returns its table and its runs."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import msgspec

import sim.results
from nodes.errors import UsageError
from sim.distributed.where import Where, tls_of, where_of
from sim.results import Run
from sim.results.display import as_html, require_pandas
from sim.sweeps.directory import INTERRUPTED, Row, Sweep, hosts_are_comparable, make_table
from sim.sweeps.plan import Cell, make_plan
from topologies.language.document import override_texts

LATENCIES = ("delivery_p50_ns", "delivery_p99_ns", "total_p50_ns", "total_p99_ns")
AnyPath = str | os.PathLike[str]


class SweepResult:
    """The runs and the table of a sweep.

    Attributes:
        path: the directory.
        rows: the figures of each run, by its place.
        varied: the keys whose values differ.
        interrupted: the name of the signal that ended it early; "" if it is complete.
    """

    def __init__(self, its: Sweep, interrupted: str = "") -> None:
        self.path, self.rows, self.varied = its.path, its.rows, list(its.plan.varied)
        self.interrupted = interrupted
        self._paths = [its.run_path(its.plan.cells[row.place - 1]) for row in its.rows]

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        return f"<SweepResult {self.path.name}: {len(self)} runs>"

    @property
    def runs(self) -> list[Run]:
        """The runs, in the order of ``rows``."""
        return [sim.results.open(path) for path in self._paths]

    @property
    def hosts(self) -> list[str]:
        """The names of the hosts that have run parts of it; "" is this one."""
        return sorted({row.host for row in self.rows})

    def table(self, *, across_hosts: bool = False) -> Any:
        """The rows as a ``pyarrow.Table``, with a column for each key that varies.

        Latencies of different hosts cannot be compared. They are null where several hosts have run parts of the sweep,
        unless each has run every combination, or ``across_hosts``.
        """
        rows: Sequence[Row] = self.rows
        if len(self.hosts) > 1 and not across_hosts and not hosts_are_comparable(self.varied, rows):
            rows = [msgspec.structs.replace(row, **dict.fromkeys(LATENCIES)) for row in rows]
        return make_table(self.varied, rows)

    def frame(self, *, across_hosts: bool = False) -> Any:
        """The table as a ``pandas.DataFrame``. Raises ``UsageError`` without pandas."""
        require_pandas()
        return self.table(across_hosts=across_hosts).to_pandas()

    def _repr_html_(self) -> str | None:
        return as_html(self)


def sweep(
    topology: AnyPath,
    axes: Mapping[str, Sequence[object]] | None = None,
    *,
    repeat: int = 1,
    scheduler: str | None = None,
    workers: int | None = None,
    tls: Sequence[AnyPath] | None = None,
    balance: bool = False,
    runs: AnyPath = "runs",
    overrides: Mapping[str, object] | None = None,
    programs: AnyPath | Sequence[AnyPath] = (),
    resources_every_s: float = 0.5,
    resume: AnyPath | None = None,
    on_row: Callable[[Row], object] = lambda row: None,
) -> SweepResult:
    """Run a topology with every combination of some values, and return the table of it.

    Args:
        topology: a file, or the name of one that is shipped.
        axes: the values of each key: ``{"machines.sender.count": [1, 2, 4]}``; those of the topology's [matrix], too.
        repeat: how many runs of each combination; run r has the seed + r.
        scheduler: the address of a scheduler, whose workers carry out the runs; None: this host does.
        workers: without a scheduler, how many runs this host carries out at a time; None: one, in this process.
        tls: the files of the authority's certificate, the own certificate and its key.
        balance: give each host the same number of the repeats.
        runs: where the directory of the sweep is made.
        overrides: keys and values that are the same in all runs.
        programs: a file of Python whose generator functions the topology can name, or several.
        resources_every_s: how often processes are sampled (0: never).
        resume: the directory of a sweep to go on with; what is done in it is not repeated.
        on_row: called with the row of each run that has ended.

    Raises:
        TopologyError, UsageError: before anything is started.
        HostError: a host cannot carry out a run.
        RunError: the scheduler is gone; ``resume`` goes on.
    """
    if balance and scheduler is None:
        raise UsageError("balance goes with a scheduler")
    where = where_of(scheduler, workers, tls_of(tls))
    files = [os.fspath(program) for program in ([programs] if isinstance(programs, str | os.PathLike) else programs)]
    plan = make_plan(os.fspath(topology), override_texts(overrides), _texts(axes or {}), repeat, files)
    its = Sweep.create(Path(runs), plan) if resume is None else Sweep.resume(Path(resume), plan)

    def tell(_cell: Cell, _host: str, row: Row | None) -> None:
        if row is not None and row.status != INTERRUPTED:
            on_row(row)

    interrupted = run_cells(
        its, where, resources_every_s=resources_every_s, balance=balance, tell=tell, warn=warnings.warn
    )
    its.finish()
    return SweepResult(its, interrupted)


def _texts(axes: Mapping[str, Sequence[object]]) -> dict[str, list[str]]:
    """The values of each key in the spelling of ``--set``."""
    for key, values in axes.items():
        if isinstance(values, str | bytes) or not len(values):
            raise UsageError(f"axes[{key!r}]: expected a list of values, such as [1, 2, 4], got {values!r}")
    return {key: [override_texts({key: value})[key] for value in values] for key, values in axes.items()}


def run_cells(
    its: Sweep,
    where: Where | None,
    *,
    resources_every_s: float,
    balance: bool,
    tell: Callable[[Cell, str, Row | None], object],
    warn: Callable[[str], object],
    watch: Callable[[str], AbstractContextManager[None]] = lambda telemetry: contextlib.nullcontext(),
) -> str:
    """Run the cells that are not done, here or on a cluster; returns the reason of an interrupt, "" for none.

    Args:
        its: the sweep.
        where: the cluster; None for this host.
        resources_every_s: as for `sim.run`.
        balance: give each host of a cluster the same number of the repeats of a combination.
        tell: is called with a cell, the name of its host ("": this one) and its row; on a cluster also when a run
            begins, with None for a row; here also for the run that was interrupted.
        warn: is called with a line for the user.
        watch: makes what lasts as long as a run on this host, from the socket of its telemetry.
    """
    if where is not None:
        from sim.distributed.sweep import ClusterSweep

        if not its.left:
            return ""
        with where.open() as cluster:
            return ClusterSweep(
                its, cluster, resources_every_s=resources_every_s, balance=balance, tell=tell, warn=warn
            ).run()
    from sim.runner import run

    with contextlib.ExitStack() as watching:
        for cell in its.left:
            finished = run(
                its.plan.topology(cell),
                runs=its.unfinished,
                resources_every_s=resources_every_s,
                on_begin=lambda begun: watching.enter_context(watch(begun.telemetry)),
            )
            row, interrupted = its.take(cell, finished)
            watching.close()
            tell(cell, "", row)
            if interrupted:
                return interrupted
    return ""
