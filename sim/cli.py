"""The `ivsim` command. Data goes to standard output, everything else to standard error."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

import click

from nodes.errors import IvshmemError
from sim.exit_codes import BROKEN_PIPE, HOST_TOO_SMALL, INTERRUPTED, of_error, of_os_error
from sim.kernel.shortage import explained
from sim.kernel.signals import signals_too_late

__all__ = ["ivsim", "main"]

# A command is loaded when it is asked for: `ivsim list` need not wait for pyarrow.
COMMANDS = {
    "run": "sim.commands.run:run",
    "show": "sim.commands.run:show",
    "sweep": "sim.commands.sweep:sweep",
    "explore": "sim.commands.explore:explore",
    "scheduler": "sim.commands.cluster:scheduler",
    "worker": "sim.commands.cluster:worker",
    "graph": "sim.commands.graph:graph",
    "migrate": "sim.commands.migrate:migrate",
    "compare": "sim.commands.compare:compare",
    "report": "sim.commands.report:report",
    "trace": "sim.commands.trace:trace",
    "top": "sim.commands.top:top",
    "console": "sim.commands.console:console",
    "ps": "sim.commands.inventory:ps",
    "clean": "sim.commands.inventory:clean",
    "serve": "sim.commands.serve:serve",
    "attach": "sim.commands.attach:attach",
    "record": "sim.commands.capture:record",
    "replay": "sim.commands.capture:replay",
    "explain": "sim.commands.capture:explain_session",
    "validate": "sim.commands.topology:validate",
    "list": "sim.commands.topology:list_shipped",
    "init": "sim.commands.topology:init",
    "schema": "sim.commands.topology:schema",
    "device": "sim.commands.device:device",
    "conformance": "sim.commands.device:conformance",
    "agree": "sim.commands.agree:agree",
}


# The last line of a command's help.
EXAMPLES = {
    "run": "ivsim run ping_pong --set run.duration_s=2",
    "show": "ivsim show runs/RUN",
    "sweep": "ivsim sweep fan_in --set machines.sender.count=1,2,4",
    "explore": "ivsim explore storm.toml --seeds 0..1000 --jobs 2",
    "scheduler": "ivsim scheduler --host 192.0.2.1 --tls-ca ca.pem --tls-cert host.pem --tls-key host.key",
    "worker": "ivsim worker tcp://127.0.0.1:8786",
    "graph": "ivsim graph fan_in -o fan_in.svg",
    "migrate": "ivsim migrate --plan live_migration",
    "compare": "ivsim compare runs/BEFORE runs/AFTER --fail-if p99:+10%",
    "report": "ivsim report runs/RUN -o run.html",
    "trace": "ivsim trace runs/RUN -o run.json.gz",
    "top": "ivsim top --once",
    "console": "ivsim console runs/RUN linux",
    "ps": "ivsim ps --json",
    "clean": "ivsim clean --dry-run",
    "serve": "ivsim serve -F -S /tmp/server.sock -l 4M -n 2",
    "attach": "ivsim attach -S /tmp/server.sock peers",
    "record": "ivsim record -S /tmp/server.sock -L /tmp/recorded.sock -o session",
    "replay": "ivsim replay session -S /tmp/replayed.sock",
    "explain": "ivsim explain session",
    "validate": "ivsim validate topology.toml",
    "list": "ivsim list --metrics",
    "init": "ivsim init topology.toml",
    "schema": "ivsim schema > topology.schema.json",
    "device": "ivsim device show qemu-doorbell",
    "conformance": "ivsim conformance --seed 1",
    "agree": "ivsim agree doorbell_storm --set run.duration_s=1",
}

# The libraries that each command loads; the other commands load none of them.
RESULTS_COMMANDS = {"run", "show", "sweep", "compare", "report", "trace", "agree"}
TELEMETRY_COMMANDS = {"top", "ps", "clean", "graph"}


class _LazyGroup(click.Group):
    """A group whose commands are named above, in that order, and loaded when they are used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does, but with the nearest name for one that does not exist. Completion does not come here."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            if args[0] in COMMANDS or ctx.resilient_parsing:
                raise
            from topologies.language.problems import nearest

            hint = nearest(args[0], COMMANDS) or "`ivsim -h` lists the commands"
            raise click.UsageError(f"No such command {args[0]!r}: {hint}", ctx) from error

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        target = COMMANDS.get(cmd_name)
        if target is None:
            return None
        module, _, name = target.partition(":")
        command = getattr(importlib.import_module(module), name)
        assert isinstance(command, click.Command)
        example = f"Example: {EXAMPLES[cmd_name]}"
        if not (command.epilog or "").endswith(example):
            command.epilog = "\n\n".join(filter(None, (command.epilog, example)))
        return command


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "IVSIM"})
@click.version_option(package_name="ivshmem-sim", prog_name="ivsim")
def ivsim() -> None:
    """A laboratory for ivshmem: machines as processes, a real server, real eventfds."""


def main(arguments: list[str] | None = None) -> Any:
    """The console script: one message and an exit code, and no traceback for the user's mistakes."""
    try:
        _check_limits(sys.argv[1:] if arguments is None else arguments)
        code = ivsim.main(arguments, prog_name="ivsim", standalone_mode=False)
    except click.exceptions.Exit as request:
        code = request.exit_code
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        runs = (sys.argv[1:] if arguments is None else arguments)[:1] in (["run"], ["sweep"])
        click.echo(f"ivsim: interrupted{' before there was anything to keep' * runs}", err=True)
        code = INTERRUPTED
    except BrokenPipeError:
        # The reader has closed standard output: what is still in the buffer has nowhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = BROKEN_PIPE
    except SystemExit:  # what rich does when the reader has closed standard output
        code = BROKEN_PIPE
    except OSError as error:
        why = explained(error)
        click.echo(f"ivsim: {'cannot go on: ' * (why is error)}{why}", err=True)
        code = of_error(why) if isinstance(why, IvshmemError) else of_os_error(error)
    except IvshmemError as error:
        click.echo(f"ivsim: {error}", err=True)
        code = of_error(error)
    except MemoryError:
        click.echo("ivsim: this host is too small: no memory for it (ulimit -v, ulimit -d)", err=True)
        code = HOST_TOO_SMALL
    signals_too_late()  # all is said and written
    sys.exit(code)


def _check_limits(arguments: list[str]) -> None:
    """Compare the limits of this process with what the command loads; the libraries would end it without a word."""
    from sim.host import rlimits

    command = next((each for each in arguments if not each.startswith("-")), "")
    if command in RESULTS_COMMANDS:
        rlimits.check(rlimits.RESULTS)
    elif command in TELEMETRY_COMMANDS:
        rlimits.check(rlimits.TELEMETRY)
    rlimits.be_frugal()
