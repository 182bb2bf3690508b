"""The `ivsim` command. Data goes to standard output, everything else to standard error."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

import click
from click.shell_completion import CompletionItem

from nodes.errors import IvshmemError
from sim.commands.catalogue import COMMANDS, INNER_EXAMPLES
from sim.exit_codes import BROKEN_PIPE, HOST_TOO_SMALL, INTERRUPTED, of_error
from sim.kernel.shortage import explained
from sim.kernel.signals import interrupts_raise, signals_too_late
from sim.version import VERSION

# The libraries that each command loads; the other commands load none of them.
RESULTS_COMMANDS = {"run", "show", "sweep", "compare", "report", "trace", "agree", "calibrate"}
TELEMETRY_COMMANDS = {"top", "ps", "clean", "graph"}


class _LazyGroup(click.Group):
    """The commands of the catalogue, in its order; each is loaded when it is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.summary) for name, entry in COMMANDS.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        commands = [
            CompletionItem(name, help=COMMANDS[name].summary) for name in COMMANDS if name.startswith(incomplete)
        ]
        return [*commands, *click.Command.shell_complete(self, ctx, incomplete)]

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does, but with the nearest name for one that does not exist. Completion does not come here."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            if args[0] in COMMANDS or ctx.resilient_parsing:
                raise
            from nodes.spelling import nearest

            hint = nearest(args[0], COMMANDS) or "`ivsim -h` lists the commands"
            raise click.UsageError(f"No such command {args[0]!r}: {hint}", ctx) from error

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            return None
        module, name = entry.target.split(":") if entry.target else (cmd_name, cmd_name)
        command = getattr(importlib.import_module(f"sim.commands.{module}"), name)
        interrupts_raise()
        assert isinstance(command, click.Command)
        command.short_help = entry.summary
        _add_example(command, entry.example)
        for inner, each in command.commands.items() if isinstance(command, click.Group) else ():
            each.short_help = each.short_help or " ".join(
                (each.help or "").partition("\n\n")[0].split()
            )  # click would cut it
            if (example := INNER_EXAMPLES.get(f"{cmd_name} {inner}")) is not None:
                _add_example(each, example)
        return command


def _add_example(command: click.Command, example: str) -> None:
    line = f"Example: {example}"
    if not (command.epilog or "").endswith(line):
        command.epilog = "\n\n".join(filter(None, (command.epilog, line)))


EPILOG = """\
Completion of commands, topologies, profiles, runs and keys of --set, for bash; zsh_source and fish_source are those
of other shells:

  eval "$(_IVSIM_COMPLETE=bash_source ivsim)"
"""


@click.group(
    cls=_LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "IVSIM", "show_default": True},
    epilog=EPILOG,
)
@click.version_option(VERSION, prog_name="ivsim")
def ivsim() -> None:
    """A laboratory for ivshmem: machines as processes, a real server, real eventfds."""


def main(arguments: list[str] | None = None) -> Any:
    """The console script. A mistake of the user gives one message and an exit code, and no traceback."""
    if "_IVSIM_COMPLETE" in os.environ:
        importlib.import_module("sim.commands.completion")  # with a class of its own for bash
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
        code = of_error(why)
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
    from sim.host import libraries

    command = next((argument for argument in arguments if not argument.startswith("-")), "")
    if command in RESULTS_COMMANDS:
        libraries.check(libraries.RESULTS)
        libraries.leave_out_pandas()
    elif command in TELEMETRY_COMMANDS:
        libraries.check(libraries.TELEMETRY)
    libraries.be_frugal()
    libraries.take_all_descriptors()
