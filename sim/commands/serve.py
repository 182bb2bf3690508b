"""`ivsim serve`: the server alone, for all clients of the protocol, with ivshmem-server's options."""

from __future__ import annotations

import contextlib
import os
import re
import traceback
from pathlib import Path
from typing import Any

import click

from nodes.device.v2.sections import PAGE_BYTES
from nodes.errors import HostError, UsageError
from nodes.wire.protocol import PEERS_MAX, V0
from nodes.wire.v2.protocol import ALL_DIALECTS, V2, DomainNumbers
from sim.commands.options import socket_option
from sim.commands.parameters import PATH, NameChoice, WholeNumber, c_number
from sim.commands.systemd import hidden_program, units
from sim.exit_codes import FAILED, of_error
from sim.wire.daemon import detach
from sim.wire.listener import group_number
from sim.wire.service import DEFAULT_PEERS, Served, ServiceSettings, check_numbers, run_service
from topologies.language.sizes import MEMORY_SIZE_MAX_BYTES, MEMORY_SIZE_MIN_BYTES, parse_size, power_of_two, show_size

VECTORS_MAX = 2048
UID_MAX = (1 << 32) - 2  # the last one means "unchanged" (chown(2))
MEMORY_NAME = "ivshmem"
"""ivshmem-server's default."""


def _size_bytes(_context: click.Context, _option: click.Parameter, given: str) -> int:
    """Bytes, rounded up to a power of two, as ivshmem-server does."""
    try:
        size_bytes = power_of_two(parse_size(given))
    except ValueError as error:
        raise click.BadParameter(f"{error}, got {given!r}") from None
    if not MEMORY_SIZE_MIN_BYTES <= size_bytes <= MEMORY_SIZE_MAX_BYTES:
        least, most = show_size(MEMORY_SIZE_MIN_BYTES), show_size(MEMORY_SIZE_MAX_BYTES)
        raise click.BadParameter(f"expected a size from {least} to {most}, got {given!r}")
    return size_bytes


def _output_bytes(_context: click.Context, _option: click.Parameter, given: str) -> int:
    """Bytes, whole pages."""
    try:
        size_bytes = parse_size(given) if given != "0" else 0
    except ValueError as error:
        raise click.BadParameter(f"{error}, got {given!r}") from None
    if size_bytes % PAGE_BYTES:
        raise click.BadParameter(f"expected whole pages of {PAGE_BYTES} bytes, got {given!r}")
    return size_bytes


def _mode(_context: click.Context, _option: click.Parameter, given: str) -> int:
    """Octal, as for chmod; execution means nothing on a socket."""
    if not re.fullmatch(r"0?[0246]{3}", given):
        raise click.BadParameter(f"expected three octal digits, as in 660, got {given!r}")
    return int(given, 8)


def _memory_name(_context: click.Context, _option: click.Parameter, given: str | None) -> str | None:
    if given is not None and (not re.fullmatch(r"/?[A-Za-z0-9_.-]{1,200}", given) or given.strip("/.") == ""):
        raise click.BadParameter(f"expected a name without slashes, got {given!r}")
    return given and given.lstrip("/")


EPILOG = """\
What differs from ivshmem-server, for safety: the socket and the named memory have mode 0600 unless told otherwise
(--mode, --group). A stale socket is replaced; a socket on which a server listens never is, even if that is busy. Shared
memory whose name exists is refused (--reuse-memory shares it), unless a server like this one left it when it was
killed: then it is replaced, or, when clients still use it, shared with them, which is said. A client that does not read
is disconnected when its queue is full, instead of missing messages. There is room for as many clients as there are
descriptors; a further one reads "version -87", which makes a QEMU exit and say so. The pid file has mode 0644 and the
log 0640, less the umask. Wrong use exits with 2, a host that is too small with 3.
"""


@click.command("serve", epilog=EPILOG)
@click.option("-v", "--verbose", is_flag=True, help="Report clients that join and leave, on standard error; needs -F.")
@click.option("-F", "--foreground", is_flag=True, help="Stay in the foreground instead of becoming a daemon.")
@click.option("-p", "--pid-file", type=PATH, default=Path("/var/run/ivshmem-server.pid"), help="The daemon's pid file.")
@socket_option("The socket that clients connect to. One passed by systemd (LISTEN_FDS) is taken instead.")
@click.option(
    "-M", "--memory-name", callback=_memory_name, help=f"The POSIX name of the shared memory.  [default: {MEMORY_NAME}]"
)
@click.option(
    "-m", "--directory", type=PATH, help="Memory in a nameless file in this directory instead, as of a hugetlbfs."
)
@click.option("--memfd", is_flag=True, help="Memory without a name instead, sealed: no client can shrink it.")
@click.option("--reuse-memory", is_flag=True, help="Share memory of that name that exists, and leave it at the end.")
@click.option(
    "-l",
    "--length",
    "size_bytes",
    callback=_size_bytes,
    default="4M",
    help="Its size, as in 65536, 64K, 1.5M or 0x10000; rounded up to a power of two.",
)
@click.option(
    "-n",
    "count",
    callback=c_number(0, PEERS_MAX),
    metavar="NUMBER",
    help="Eventfds of each client (default 1), as in ivshmem-server. With --dialect v2: the number of peers (default "
    "2), as in ivshmem2-server.",
)
@click.option(
    "-V",
    "--vectors",
    callback=c_number(1, VECTORS_MAX),
    metavar="NUMBER",
    help="Eventfds of each client.  [default: 1]",
)
@click.option(
    "-o",
    "--output-size",
    "output_bytes",
    callback=_output_bytes,
    default="0",
    help="The size of each peer's output section, whole pages; only with --dialect v2.",
)
@click.option(
    "-P",
    "--protocol",
    callback=c_number(0, 0xFFFF),
    default="0",
    metavar="NUMBER",
    help="The protocol of the peers: 1 is Ethernet, 0x8003 a virtio console; only with --dialect v2.",
)
@click.option(
    "--mode",
    callback=_mode,
    default="600",
    metavar="OCTAL",
    help="Who may connect: the mode of the socket and of named memory, set before any client can connect.",
)
@click.option("--group", help="The group of the socket and of named memory, by name or number.")
@click.option(
    "--dialect",
    type=NameChoice(ALL_DIALECTS),
    default=V0.name,
    help="QEMU 2.5 and later, the server of 2012, memory last, as Cuttlefish has it, or ivshmem v2.",
)
@click.option(
    "--ids",
    "first_peer",
    type=WholeNumber(0, PEERS_MAX - 1),
    default=0,
    help=f"The first client's ID. Each is given once; after ID {PEERS_MAX - 1}, clients are refused.",
)
@click.option(
    "--reuse-ids",
    "reuse_peers",
    is_flag=True,
    help="Give the lowest free ID. A real QEMU (7.2 and earlier) corrupts its heap when an ID comes back.",
)
@click.option(
    "--max-clients", "clients_max", type=WholeNumber(1, PEERS_MAX), help="Refuse more than that many at once."
)
@click.option(
    "--uid",
    "uids",
    type=WholeNumber(0, UID_MAX),
    multiple=True,
    metavar="UID",
    help="Refuse processes of other users, as the kernel tells (SO_PEERCRED); may be given several times.  "
    "[default: the socket's mode decides]",
)
@click.option("--log", metavar="FILE", help="Append what happens to a file, one JSON object a line; - is stdout.")
@click.option(
    "--ready-fd",
    type=WholeNumber(min=3),
    metavar="FD",
    help="Write the socket's path and a newline to this descriptor, once clients can connect, and close it; needs -F.",
)
@click.option("--systemd-unit", is_flag=True, help="Print a socket unit and a service for these options, and end.")
def serve(
    systemd_unit: bool, foreground: bool, pid_file: Path, group: str | None, ready_fd: int | None, **given: Any
) -> None:
    """Serve one shared memory to all clients that connect: real QEMUs, simulated machines, tools.

    SIGTERM or Ctrl-C ends it and removes its socket, its memory and its pid file. In the foreground it prints
    "listening on SOCKET" on standard output once clients can connect (with --log - the log says so), and the options
    with which a QEMU joins on standard error. As a daemon, the command ends once clients can connect.
    """
    foreground = foreground or os.environ.get("LISTEN_PID") == str(os.getpid())
    _settle_dialect(given)
    _check(given, foreground)
    _check_ready_fd(ready_fd, foreground)
    if systemd_unit:
        click.echo(
            units(given["path"], given["mode"], group, _unit_options(given, group), given["directory"]), nl=False
        )
        if warning := hidden_program():
            click.echo(f"ivsim: {warning}", err=True)
        return
    if given.pop("memfd") is False and given["directory"] is None:
        given["memory_name"] = given["memory_name"] or MEMORY_NAME
    if given["reuse_peers"]:
        click.echo("ivsim: --reuse-ids: a real QEMU corrupts its heap when the ID of a peer comes back", err=True)
    settings = ServiceSettings(
        group=None if group is None else group_number(group), pid_file=None if foreground else pid_file, **given
    )
    if foreground:
        _serve_in_foreground(settings, ready_fd)
    else:
        _serve_as_daemon(settings)


def _settle_dialect(given: dict[str, Any]) -> None:
    """Read -n as the server does whose dialect this is, and make the numbers of a v2 server."""
    count, output_bytes, protocol = given.pop("count"), given.pop("output_bytes"), given.pop("protocol")
    if given["dialect"] != V2.name:
        if output_bytes or protocol:
            raise click.UsageError("-o and -P go with --dialect v2")
        if count is not None and given["vectors"] is not None:
            raise click.UsageError("-n and -V are the same here: say one of them")
        if count is not None and not 1 <= count <= VECTORS_MAX:
            raise click.BadParameter(f"{count} is not in the range 1<=x<={VECTORS_MAX}", param_hint="'-n'")
        given["vectors"] = given["vectors"] or count or 1
        given["dialect"] = ALL_DIALECTS[given["dialect"]]
        return
    if given["first_peer"] or given["reuse_peers"]:
        raise click.UsageError("--ids and --reuse-ids do not go with --dialect v2: it gives the lowest free ID")
    given["vectors"] = given["vectors"] or 1
    numbers = DomainNumbers(DEFAULT_PEERS if count is None else count, given["vectors"], protocol, output_bytes)
    check_numbers(numbers, given["size_bytes"])
    given["dialect"], given["numbers"] = V2, numbers
    given["clients_max"] = min(given["clients_max"] or numbers.max_peers, numbers.max_peers)


def _check(given: dict[str, Any], foreground: bool) -> None:
    if sum((given["memory_name"] is not None, given["directory"] is not None, given["memfd"])) > 1:
        raise click.UsageError("the memory is either -M, -m or --memfd")
    if given["reuse_memory"] and (given["memfd"] or given["directory"] is not None):
        raise click.UsageError("--reuse-memory goes with -M: other memory has no name to be found by")
    if not foreground and given["verbose"]:
        raise click.UsageError("cannot use -v in daemon mode: add -F, or say --log FILE")
    if not foreground and given["log"] == "-":
        raise click.UsageError("a daemon has no standard output: add -F, or say --log FILE")


def _check_ready_fd(ready_fd: int | None, foreground: bool) -> None:
    if ready_fd is None:
        return
    if not foreground:
        raise click.UsageError("--ready-fd goes with -F: without it, the command ends once clients can connect")
    try:
        os.fstat(ready_fd)
    except OSError as error:
        raise click.UsageError(f"--ready-fd {ready_fd}: {error.strerror}; open it, as in 3>file") from None


def _unit_options(given: dict[str, Any], group: str | None) -> list[str]:
    """The options that a service needs to be what was asked for; its socket has its own unit."""
    numbers: DomainNumbers | None = given.get("numbers")
    count = given["vectors"] if numbers is None else numbers.max_peers
    options = ["-n", str(count), "-l", str(given["size_bytes"]), "--dialect", given["dialect"].name]
    if numbers is None:
        options += ["--ids", str(given["first_peer"])]
    else:
        options += ["-V", str(numbers.vectors), "-o", str(numbers.output_bytes), "-P", str(numbers.protocol)]
    if given["clients_max"] is not None:
        options += ["--max-clients", str(given["clients_max"])]
    for uid in given["uids"]:
        options += ["--uid", str(uid)]
    if given["reuse_peers"]:
        options.append("--reuse-ids")
    if given["directory"] is not None:
        return [*options, "-m", os.fspath(given["directory"].absolute())]
    if given["memory_name"] is not None:
        # The socket's rights are in its own unit; these are the memory's.
        options += ["--mode", f"{given['mode']:o}", *(["--group", group] if group else [])]
        return [*options, "-M", given["memory_name"], *["--reuse-memory"] * given["reuse_memory"]]
    return [*options, "--memfd"]


def _warn(text: str) -> None:
    click.echo(f"ivsim: {text}", err=True)


def _serve_in_foreground(settings: ServiceSettings, ready_fd: int | None) -> None:
    def ready(served: Served) -> None:
        with contextlib.suppress(BrokenPipeError):  # the server goes on without its readers
            if settings.log != "-":
                click.echo(f"listening on {served.path}")
        if ready_fd is not None:
            with contextlib.suppress(BrokenPipeError), open(ready_fd, "wb") as pipe:
                pipe.write(os.fsencode(served.path) + b"\n")
        click.echo(served.text, err=True)
        for warning in served.warnings:
            _warn(warning)
        if served.qemu_options:
            program = "the QEMU fork" if settings.dialect is V2 else "QEMU"
            click.echo(f"for {program}: {served.qemu_options}", err=True)

    run_service(settings, ready, _warn)


def _serve_as_daemon(settings: ServiceSettings) -> None:
    starter = detach(lambda text: click.echo(text, err=True, nl=False))
    try:
        run_service(
            settings,
            lambda served: starter.ready("".join(f"ivsim: {warning}\n" for warning in served.warnings)),
            lambda warning: None,  # a daemon has no terminal, its log has it
        )
    except (UsageError, HostError) as error:
        starter.failed(of_error(error), f"ivsim: {error}\n")
        raise
    except BaseException:
        starter.failed(FAILED, traceback.format_exc())
        raise
