"""`ivsim run --replay`: take a schedule of `ivsim explore` again, and print every event."""

from __future__ import annotations

from pathlib import Path

import click
from click.core import ParameterSource

from sim.exit_codes import MISSED


def replay_schedule(context: click.Context, file: Path) -> int:
    """Print every event of the schedule in a file; returns the exit code.

    Raises:
        click.UsageError: the command line has anything beside ``--replay``: the file holds the topology and all else.
        TopologyError: the topology of the schedule, or a program of it, is no longer there.
    """
    from sim.explore import read_replay
    from sim.explore.seed import trace_seed

    for parameter in context.command.get_params(context):
        name = str(parameter.name)
        if name != "replay" and context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            given = parameter.opts[0] if isinstance(parameter, click.Option) else "a topology"
            raise click.UsageError(f"expected --replay alone, got {given} beside it: the schedule holds the topology")
    replay = read_replay(file)
    outcome = trace_seed(replay.topology(), replay.seed, replay.decisions, click.echo)
    if outcome.broken is None:
        click.echo(f"all invariants hold; when the schedule was written: {replay.broken}")
        return 0
    click.echo(f"broken: {outcome.broken}")
    return MISSED
