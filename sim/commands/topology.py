"""The commands of `ivsim` about topologies: validate, list, schema, init. None starts a process."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

import topologies
from sim.commands.options import overrides_option, programs_option, topology_argument
from sim.commands.output import echo_json
from sim.commands.parameters import STREAM
from sim.kernel.shortage import error_of_path
from sim.views.units import counted
from topologies.text_tables import Reference, topologies_table


@click.command("validate")
@topology_argument
@overrides_option
@programs_option
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
def validate(topology: str, overrides: dict[str, str], programs: tuple[Path, ...], as_json: bool) -> None:
    """Check TOPOLOGY, a file or the name of a shipped one, and print what it needs from this host.

    All problems are shown at once; the exit code is 2 then. A migration that will be refused or fail, an action that
    ends a real QEMU, and a load that can ring no machine, are valid and only noted: they may be what the run is to
    show.
    """
    try:
        loaded = topologies.load(topology, overrides, programs)
    except topologies.TopologyError as error:
        if as_json:
            echo_json({"valid": False, "problems": error.problems})
        raise
    demand, notes = _demand(loaded), notes_on(loaded) | {"without_effect": _without_effect(loaded)}
    if as_json:
        echo_json({"valid": True, **demand, **notes})
    else:
        click.echo(
            "{name}: {machines} machines, {vectors} vectors, "
            "{descriptors_per_process} eventfd descriptors in each of {processes} processes "
            "({descriptors} in all), "
            "{memory_bytes} bytes of {memory_kind}".format(**demand)
        )
        click.echo(_schedule(loaded))
        for note in itertools.chain.from_iterable(notes.values()):
            click.echo(f"    note: {note}")


def notes_on(topology: topologies.Topology) -> dict[str, Sequence[object]]:
    """What will go wrong in a run of a topology, by its name in JSON; each is a sentence as text."""
    from topologies.qemu_check import endangered
    from topologies.ringing_check import unreachable

    return {
        "failing_migrations": _failing_migrations(topology),
        "endangered": endangered(topology),
        "unreachable": unreachable(topology),
    }


def _failing_migrations(topology: topologies.Topology) -> tuple[Any, ...]:
    """Each a ``FailingMigration``. The models of the devices are only loaded for a timeline that migrates."""
    from topologies.actions import Migrate

    if not any(isinstance(entry.action, Migrate) for entry in topology.timeline):
        return ()
    from topologies.migration_check import failing_migrations

    return failing_migrations(topology)


def _without_effect(topology: topologies.Topology) -> list[str]:
    """The tables that the topology's engine does nothing with."""
    if topology.chaos is None or topology.run.engine == "virtual":
        return []
    return [f"[chaos] has no effect on the engine {topology.run.engine}, only on `virtual` and in `ivsim explore`"]


def _schedule(topology: topologies.Topology) -> str:
    """The times and the size of a run, in a line."""
    run = topology.run
    parts = [
        f"{run.warmup_s + run.duration_s:g} s, {run.warmup_s:g} of them warm-up",
        counted(len(topology.domains), "domain"),
        counted(len(topology.phases), "phase"),
        counted(len(topology.timeline), "action"),
        counted(len(topology.expectations), "expectation"),
    ]
    if topology.matrix:
        parts.append(f"a matrix of {math.prod(map(len, topology.matrix.values()))} cells")
    return "    " + ", ".join(parts)


def _demand(topology: topologies.Topology) -> dict[str, Any]:
    """The needs of a topology. The server and each machine of a domain hold a descriptor of each vector in it."""
    processes = len(topology.machines) + 1
    of_domain = {
        domain.name: sum(machine.vectors for machine in topology.machines if domain.name in machine.domains)
        for domain in topology.domains
    }
    held = [sum(of_domain[name] for name in machine.domains) for machine in topology.machines]
    return {
        "name": Path(topology.source_name).stem,
        "title": topology.title,
        "machines": len(topology.machines),
        "groups": {group.name: group.count for group in topology.groups},
        "vectors": topology.eventfds,
        "processes": processes,
        "descriptors_per_process": max(topology.eventfds, *held),
        "descriptors": topology.eventfds + sum(held),
        "memory_bytes": sum(domain.memory.size_bytes for domain in topology.domains),
        "memory_kind": " and ".join(dict.fromkeys(domain.memory.kind for domain in topology.domains)),
        "domains": [domain.name for domain in topology.domains],
        "warmup_s": topology.run.warmup_s,
        "duration_s": topology.run.duration_s,
        "phases": len(topology.phases),
        "timeline": len(topology.timeline),
        "expectations": len(topology.expectations),
        "cells": math.prod(map(len, topology.matrix.values())),
    }


@click.command("list")
@click.option("--actions", "reference", flag_value="actions", help="The actions of a [[timeline]] instead.")
@click.option("--metrics", "reference", flag_value="metrics", help="The metrics that conditions compare instead.")
@click.option("--programs", "reference", flag_value="programs", help="The programs and their parameters instead.")
@click.option("--profiles", "reference", flag_value="profiles", help="The device profiles instead.")
@click.option(
    "--rules",
    "reference",
    flag_value="rules",
    help="What a server must send instead, and what each version of QEMU does when it does not.",
)
@click.option("--markdown", "as_markdown", is_flag=True, help="A table in Markdown.")
@click.option("--json", "as_json", is_flag=True, help="One JSON array on standard output.")
def list_shipped(reference: str | None, as_markdown: bool, as_json: bool) -> None:
    """Show the topologies that ship, one line each; `ivsim run NAME` runs one.

    With --actions, --metrics, --programs or --profiles, show what topologies can name; with --rules, what
    `ivsim explain` finds wrong.
    """
    if as_markdown and as_json:
        raise click.UsageError("--markdown and --json exclude each other")
    table = _reference(reference)
    if as_json:
        echo_json([dict(zip(table.head, row, strict=True)) for row in table.rows])
    else:
        click.echo(table.markdown() if as_markdown else table.plain(), nl=False)


def _reference(name: str | None) -> Reference:
    if name is None:
        return topologies_table()
    from topologies.reference_tables import REFERENCES

    return REFERENCES[name]()


@click.command("schema")
def schema() -> None:
    """Print the JSON Schema (2020-12) of topology files, for completion and checks in editors."""
    import msgspec

    # Python's own encoder takes ten times as long when it indents.
    click.echo(msgspec.json.format(msgspec.json.encode(topologies.json_schema()), indent=2))


@click.command("init")
@click.argument("file", default="topology.toml", type=STREAM)
@click.option("--force", is_flag=True, help="Overwrite FILE.")
def init(file: Path, force: bool) -> None:
    """Write a small commented topology to FILE (topology.toml); `-` is standard output."""
    if str(file) == "-":
        click.echo(topologies.starter_text(), nl=False)
        return
    try:
        with file.open("w" if force else "x", encoding="utf-8") as opened:
            opened.write(topologies.starter_text())
    except FileExistsError:
        raise click.UsageError(f"{file} exists; --force overwrites it") from None
    except OSError as error:
        raise error_of_path(error, f"{file} cannot be written") from error
    click.echo(f"{file} written; try: ivsim validate {file}", err=True)
