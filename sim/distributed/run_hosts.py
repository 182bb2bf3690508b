"""One topology over the hosts of a cluster, from its file to its run."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from nodes.errors import UsageError
from sim.distributed.where import Where
from sim.host.refusals import place_refused
from sim.results import Run, RunDirectory
from topologies import Topology, load


def run_on_hosts(
    where: Where,
    topology: Topology | str | os.PathLike[str],
    *,
    overrides: Mapping[str, object] | None,
    programs: Sequence[str | Path],
    runs: Path,
    resources_every_s: float,
    tell: Callable[[str], object] = lambda line: None,
) -> Run:
    """Run each part of a topology on its host, and return the run of all. The arguments are those of `sim.run`.

    Args:
        tell: is called with a line for the user when something has happened.

    Raises:
        TopologyError, UsageError, HostError: it cannot be run there.
    """
    from sim.distributed.hosts import HostsRun, place_domains

    if not isinstance(topology, Topology):
        topology = load(os.fspath(topology), overrides, programs)
    elif overrides or programs:
        raise UsageError("overrides and programs go with a topology's file or name, not with one that is loaded")
    if problems := list(place_refused(runs)):
        raise UsageError(problems[0])
    arguments = {"overrides": dict(topology.overrides), "resources_every_s": resources_every_s}
    # Workers of this host are known before there is a cluster.
    placed = place_domains(topology, {"": where.workers}, "") if where.scheduler is None else None
    with where.open() as cluster:
        placed = placed or place_domains(topology, cluster.hosts(), cluster.title)
        its = HostsRun(topology, placed, cluster, programs=programs, resources_every_s=resources_every_s, tell=tell)
        with RunDirectory.create(runs, topology, arguments | {"programs": list(programs)}, its.rows()) as directory:
            tell(f"{topology.title}: {directory.path}")
            return its.run(directory)
