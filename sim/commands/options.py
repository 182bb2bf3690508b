"""Options of several commands, and the error of a topology that is loaded with them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import click

import topologies
from nodes.errors import UsageError
from nodes.qemu_versions import QemuVersion
from sim.commands.completion import complete_keys, complete_runs, complete_topologies
from sim.commands.parameters import PATH, Number
from sim.exit_codes import WRONG_USE
from sim.kernel.qemu_program import assumed_version

Command = TypeVar("Command", bound=Callable[..., Any])


class _BadTopology(click.ClickException):
    """A topology that cannot be run. Standard error gets its problems, each as FILE:LINE: ..., and nothing else."""

    exit_code = WRONG_USE

    def show(self, file: Any = None) -> None:
        click.echo(self.message, err=True)


def split_pairs(given: Iterable[str], expected: str) -> Iterator[tuple[str, str]]:
    """The key and the value of each ``KEY=VALUE``. Raises ``click.BadParameter`` for a text that is ``expected``."""
    for text in given:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise click.BadParameter(f"expected {expected}, got {text!r}")
        yield key.strip(), value


def _overrides(_context: click.Context, _option: click.Parameter, given: tuple[str, ...]) -> dict[str, str]:
    """Of a key given twice, the last value counts."""
    pairs = split_pairs(given, "KEY=VALUE, for instance machines.storm.count=64")
    return {key: value.strip() for key, value in pairs}


overrides_option = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    callback=_overrides,
    shell_complete=complete_keys,
    help="Change one value of the topology, such as machines.storm.count=64. Repeatable.",
)
"""Fills ``overrides``, a dict for `topologies.load`."""

programs_option = click.option(
    "--program",
    "programs",
    multiple=True,
    metavar="FILE",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A file of Python whose generator functions the topology names plainly, as it names shipped programs; "
    "its code runs with full trust. Repeatable.",
)
"""Fills ``programs``, paths for `topologies.load`."""


def _version(_context: click.Context, _option: click.Parameter, given: str | None) -> QemuVersion:
    if given is None:
        return assumed_version()
    try:
        return QemuVersion.parse(given)
    except UsageError as error:
        raise click.BadParameter(str(error)) from None


qemu_version_option = click.option(
    "--qemu-version",
    metavar="VERSION",
    callback=_version,
    help="Quote QEMU of this version, such as 10.0. Default: the QEMU of IVSHMEM_QEMU or on PATH, else 11.1.",
)
"""Fills ``qemu_version``."""


def socket_option(text: str) -> Callable[[Command], Command]:
    """Fills ``path``, the socket of a server."""
    default = Path("/tmp/ivshmem_socket")
    return click.option("-S", "--socket", "path", type=PATH, default=default, help=text)


runs_option = click.option(
    "--runs", type=PATH, default=Path("runs"), help="The directory in which the run directory is made."
)

resources_every_option = click.option(
    "--resources-every",
    "resources_every_s",
    type=Number(0, 3600),
    default=0.5,
    metavar="SECONDS",
    help="The period of sampling CPU time and memory of processes; 0: never.",
)

run_argument = click.argument("run_directory", metavar="RUN", type=PATH, shell_complete=complete_runs)


def topology_argument(command: Callable[..., None], *, required: bool = True) -> Callable[..., None]:
    """Give a command the argument TOPOLOGY; a topology that cannot be run ends the command with its problems."""

    @functools.wraps(command)
    def reporting(*arguments: Any, **options: Any) -> None:
        try:
            command(*arguments, **options)
        except topologies.TopologyError as error:
            raise _BadTopology(str(error)) from None

    return click.argument("topology", required=required, shell_complete=complete_topologies)(reporting)


optional_topology_argument = functools.partial(topology_argument, required=False)
