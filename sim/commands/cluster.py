"""`ivsim scheduler` and `ivsim worker`: the parts of a cluster; and the options of commands that use one."""

from __future__ import annotations

import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import click

from nodes.errors import UsageError
from sim.commands.parameters import FILE, WholeNumber
from sim.distributed.addresses import PORT, Tls, check_address, check_listening, make_tls
from sim.distributed.where import Where, require_dask, where_of

Command = TypeVar("Command", bound=Callable[..., Any])


def tls_options(command: Command) -> Command:
    """Give a command --tls-ca, --tls-cert and --tls-key."""
    for name, what in (
        ("key", "The key of --tls-cert (PEM)."),
        ("cert", "The certificate of this side (PEM)."),
        ("ca", "The certificate of the authority that has signed those of all sides (PEM)."),
    ):
        command = click.option(f"--tls-{name}", type=FILE, metavar="FILE", help=what)(command)
    return command


def cluster_options(command: Command) -> Command:
    """Give a command --scheduler, --workers and the options of TLS."""
    command = tls_options(command)
    command = click.option(
        "--workers", type=WholeNumber(1, 256), help="Run so many at a time on this host, in a cluster of its own."
    )(command)
    return click.option(
        "--scheduler",
        metavar="ADDRESS",
        help="Run on the workers of this scheduler: tcp://HOST:PORT or tls://HOST:PORT.",
    )(command)


def where_from(given: dict[str, Any]) -> Where | None:
    """Where a command runs what it runs, by the options of `cluster_options` that it was given."""
    tls = make_tls(given["tls_ca"], given["tls_cert"], given["tls_key"])
    return where_of(given["scheduler"], given["workers"], tls)


@click.command("scheduler")
@click.option("--host", default="127.0.0.1", help="The address to listen at.")
@click.option("--port", type=WholeNumber(0, 65535), default=PORT, help="The port; 0: any.")
@tls_options
def scheduler(host: str, port: int, tls_ca: Path | None, tls_cert: Path | None, tls_key: Path | None) -> None:
    """Give the runs of `ivsim sweep`, `explore` and `run --scheduler` to workers, until a signal comes.

    Anyone who can reach a scheduler can run code on its workers: beyond the loopback it needs TLS.
    """
    tls = make_tls(tls_ca, tls_cert, tls_key)
    check_listening(host, tls)
    require_dask()
    from sim.distributed.dask.serving import serve_scheduler

    serve_scheduler(host, port, tls, lambda address: click.echo(f"scheduler: {address}"))


@click.command("worker")
@click.argument("address")
@click.option("--name", help="The name of this host in tables.  [default: its host name]")
@click.option("--host", help="The address to listen at.  [default: the one from which the scheduler is reached]")
@tls_options
def worker(
    address: str, name: str | None, host: str | None, tls_ca: Path | None, tls_cert: Path | None, tls_key: Path | None
) -> None:
    """Run one job at a time for the scheduler at ADDRESS, until a signal comes. One worker for each host is enough.

    It waits until its scheduler is there, or is there again. Cancelled runs are ended, and nothing of a run is left on
    this host.
    """
    tls = make_tls(tls_ca, tls_cert, tls_key)
    scheduler_host = check_address(address, tls)
    check_listening(host or scheduler_host, tls)
    name = socket.gethostname() if name is None else name
    if not name or "#" in name or not name.isprintable() or len(name) > 200:
        raise UsageError(f"expected a name without #, of 1 to 200 characters, got {name!r}")
    require_dask()
    from sim.distributed.supervisor import keep_worker

    keep_worker(partial(_serve, address, name, host, tls), lambda line: click.echo(f"worker {name}: {line}", err=True))


def _serve(address: str, name: str, host: str | None, tls: Tls | None, scratch: Path) -> bool:
    from sim.distributed.dask.serving import serve_worker

    return serve_worker(
        address, name, host, tls, scratch, lambda state: click.echo(f"worker {name}: {state} of {address}")
    )
