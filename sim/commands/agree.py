"""`ivsim agree`: a topology simulated and with real QEMUs, and whether both runs agree."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from sim.commands.options import overrides_option, programs_option, runs_option, topology_argument
from sim.commands.parameters import NameChoice, WholeNumber
from sim.exit_codes import MISSED


@click.command("agree")
@topology_argument
@click.option("--seed", type=WholeNumber(min=0), help="The first seed. Default: that of the topology.")
@click.option("--seeds", default=1, type=WholeNumber(min=1), help="How many seeds, counting up.")
@click.option(
    "--share",
    type=NameChoice(["all", "half"]),
    default="all",
    help="Which machines are real: all that can be, or every other one of them.",
)
@click.option(
    "--machines",
    "machines_max",
    type=WholeNumber(min=2),
    default=8,
    help="Groups are made smaller until there are so many machines.",
)
@click.option(
    "--every-profile",
    is_flag=True,
    help="Machines with another profile are real, too, with the device of today's QEMU.",
)
@overrides_option
@programs_option
@runs_option
@click.option("--json", "as_json", is_flag=True, help="One JSON object for each seed, a line each, on standard output.")
def agree(
    topology: str,
    seed: int | None,
    seeds: int,
    share: Any,
    machines_max: int,
    every_profile: bool,
    overrides: dict[str, str],
    programs: tuple[Path, ...],
    runs: Path,
    as_json: bool,
) -> None:
    """Run TOPOLOGY simulated and with real QEMUs, with the same seed, and compare what must be equal.

    The comparison covers the rung edges, the order of rings, the fate of doorbells, the actions, the verdicts, the
    ends of machines, and the shared memory. The exit code is 99 if a difference is not explained.
    """
    import msgspec

    from sim.oracle.agree import agree as run_both
    from sim.oracle.agree import pair

    agrees = True
    for turn in range(seeds):
        chosen: dict[str, object] = {"run.sample_every": 1, **overrides}
        if seed is not None or seeds > 1:
            chosen["seed"] = (seed or 0) + turn
        both = pair(topology, chosen, programs, share=share, machines_max=machines_max, every_profile=every_profile)
        found = run_both(both, runs=runs)
        agrees = agrees and found.agrees
        if as_json:
            click.echo(msgspec.json.encode(found).decode())
        else:
            _tell(topology, found)
    if not agrees:
        raise click.exceptions.Exit(MISSED)


def _tell(topology: str, found: Any) -> None:
    unexplained = sum(not difference.explained for difference in found.differences)
    explained = len(found.differences) - unexplained
    simulated, real = found.doorbells
    click.echo(f"{topology}, seed {found.seed}: {len(found.machines)} real machines: {', '.join(found.machines)}")
    for note in found.notes:
        click.echo(f"  note: {note}")
    click.echo(f"  {found.edges} edges were rung in both runs; doorbells: simulated {simulated:,}, real {real:,}")
    for difference in found.differences:
        click.echo(f"  {difference}")
    click.echo(f"  differences: {explained} explained, {unexplained} not explained")
    click.echo(f"  runs: {found.simulated} and {found.real}")
