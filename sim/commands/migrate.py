"""`ivsim migrate --plan`: the plan of moving a topology's machines to another host. Starts no process."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec

import topologies
from nodes.qemu_versions import QemuVersion
from sim.commands.options import overrides_option, programs_option, qemu_version_option, topology_argument
from sim.commands.output import echo_json


@click.command("migrate")
@topology_argument
@click.option(
    "--plan",
    "planned",
    is_flag=True,
    help="Print which machines can move, in which order, and what is copied and lost.",
)
@overrides_option
@programs_option
@qemu_version_option
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
def migrate(
    topology: str,
    planned: bool,
    overrides: dict[str, str],
    programs: tuple[Path, ...],
    qemu_version: QemuVersion,
    as_json: bool,
) -> None:
    """Plan how the machines of TOPOLOGY, a file or the name of a shipped one, could move to another host.

    A machine that stays has a reason, in QEMU's words where QEMU has one. In a run, the action "migrate" of the
    timeline migrates machines.
    """
    from sim.commands.migration_text import plan_lines, timeline_lines
    from topologies.migration_check import failing_migrations
    from topologies.migration_plan import plan_migration

    if not planned:
        raise click.UsageError('expected --plan; in a run, the action "migrate" of [[timeline]] migrates machines')
    loaded = topologies.load(topology, overrides, programs)
    plan, failing = plan_migration(loaded), failing_migrations(loaded, qemu_version)
    if as_json:
        echo_json({**msgspec.structs.asdict(plan), "qemu_version": str(qemu_version), "timeline": failing})
    else:
        click.echo("\n".join([*plan_lines(plan), *timeline_lines(failing, qemu_version)]))
