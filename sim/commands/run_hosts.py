"""`ivsim run --scheduler`: one topology over several hosts."""

from __future__ import annotations

from pathlib import Path

import click

import topologies
from sim.commands.cluster import Where
from sim.results import Run, RunDirectory

__all__ = ["run_on_hosts"]


def run_on_hosts(
    where: Where,
    name: str,
    *,
    overrides: dict[str, str],
    programs: tuple[Path, ...],
    runs: Path,
    resources_every_s: float,
    quiet: bool,
) -> Run:
    """Run each part of a topology on its host, and return the run of all.

    Raises:
        TopologyError, UsageError, HostError: it cannot be run there.
    """
    from sim.distributed.hosts import HostsRun, place_domains
    from sim.host.places import place_refused

    topology = topologies.load(name, overrides, programs)
    if problems := list(place_refused(runs)):
        raise click.UsageError(problems[0])

    def tell(line: str) -> None:
        if not quiet:
            click.echo(line, err=True)

    arguments = {"overrides": dict(topology.overrides), "resources_every_s": resources_every_s}
    # Workers of this host are known before there is a cluster.
    placed = place_domains(topology, {"": where.workers}, "") if where.scheduler is None else None
    with where.open() as cluster:
        placed = placed or place_domains(topology, cluster.hosts(), cluster.title)
        its = HostsRun(topology, placed, cluster, programs=programs, resources_every_s=resources_every_s, tell=tell)
        with RunDirectory.create(runs, topology, arguments | {"programs": list(programs)}, its.rows()) as directory:
            tell(f"{topology.title}: {directory.path}")
            return its.run(directory)
