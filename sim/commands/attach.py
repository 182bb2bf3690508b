"""`ivsim attach`: a peer of a server, interactively or in a script."""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

import click

from nodes.errors import GuestError, UsageError
from nodes.spelling import did_you_mean
from sim.commands.attach_session import AttachSession, dialect_of, dump, part_of, writable_part
from sim.commands.options import socket_option
from sim.commands.output import write_file
from sim.commands.parameters import FILE, PATH, STREAM, NameChoice, WholeNumber, duration_ns, number, whole
from sim.exit_codes import INTERRUPTED
from sim.kernel.loop import ended_by_signal
from sim.views.units import counted
from sim.wire.attachment import Attachment

VECTORS_MAX = 2048
DUMP_BYTES = 256
FORMATS: dict[str, Literal["B", "H", "I", "Q"]] = {"1": "B", "2": "H", "4": "I", "8": "Q"}
# The first two are ivshmem-client's.
ALIASES = {"int": "ring", "dump": "peers", "who": "peers", "?": "help", "exit": "quit"}
# A negative number is an argument, not an option, so that the error names what is wrong with it.
NUMBERS = {"ignore_unknown_options": True}


class _Commands(click.Group):
    """The commands by all their names."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        found = super().get_command(ctx, ALIASES.get(cmd_name, cmd_name))
        if found is None and not ctx.resilient_parsing:
            hint = did_you_mean(cmd_name, self.commands)
            raise UsageError(f"attach: expected one of {', '.join(self.commands)}, got {cmd_name!r}{hint}")
        return found


@click.group("attach", cls=_Commands, invoke_without_command=True)
@socket_option("The server's socket.")
@click.option(
    "-n",
    "--vectors",
    type=WholeNumber(1, VECTORS_MAX),
    default=64,
    help="How many vectors this peer has: it keeps no more eventfds of each peer.",
)
@click.option("--reconnect", is_flag=True, help="When there is no server, or no longer, try again every second.")
@click.pass_context
def attach(context: click.Context, path: Path, vectors: int, reconnect: bool) -> None:
    """Attach to the server on a socket as one more peer, with an ID of its own.

    Without a command, commands are read from standard input, with a prompt if it is a terminal; interrupts, joins and
    leaves are shown as they come. Numbers are decimal or 0x...

    The first messages tell the server's dialect. Its greeting has no end marker, except in dialect v0-shm-last: this
    peer takes it for complete when all its own vectors (-n) have come, or one of them and then nothing for 50 ms.
    """
    session = AttachSession(path, vectors, reconnect)
    context.obj = session
    context.call_on_close(session.close)
    if context.invoked_subcommand is None:
        from sim.commands.prompt import run_prompt

        context.exit(run_prompt(session, attach, ALIASES))


@attach.command("peers", short_help="List the connected peers.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@click.pass_obj
def peers(session: AttachSession, as_json: bool) -> None:
    """List the own ID, the memory, the connected peers and their vectors."""
    peer = session.attachment
    others = {other: count for other, count in sorted(peer.peers.items()) if other != peer.peer}
    if as_json:
        data = {
            "peer": peer.peer,
            "vectors": peer.own_vectors,
            "memory_bytes": len(peer.memory),
            "dialect": peer.dialect and peer.dialect.name,
            "server": peer.served,
            "peers": [{"peer": other, "vectors": count} for other, count in others.items()],
        }
        click.echo(json.dumps(data))
        return
    click.echo(
        f"peer {peer.peer}: {counted(peer.own_vectors, 'vector')} (this one); {len(peer.memory)} bytes of memory, "
        f"dialect {dialect_of(peer)}"
    )
    for other, count in others.items():
        click.echo(f"peer {other}: {counted(count, 'vector')}")


@attach.command("ring", short_help="Ring vectors of peers.", context_settings=NUMBERS)
@click.argument("peer", metavar="PEER|all")
@click.argument("vector", metavar="[VECTOR|all]", default="")
@click.option("--count", type=WholeNumber(1), default=1, show_default=False, metavar="N", help="Ring so many times.")
@click.option("--every", "every_ns", callback=duration_ns, metavar="DURATION", help="Once in so long: 1s, 10ms.")
@click.option("--raw", is_flag=True, help="PEER is what a driver writes: 32 bits, peer << 16 | vector.")
@click.option(
    "--qmp",
    type=PATH,
    metavar="PATH",
    help="A QMP socket of the QEMU that is rung: say if its device cannot interrupt its guest.",
)
@click.pass_context
def ring(
    context: click.Context, peer: str, vector: str, count: int, every_ns: int | None, raw: bool, qmp: Path | None
) -> None:
    """Ring a VECTOR of a PEER (0 if none is given), all its vectors, or all vectors of all others.

    Exit code 0: all were rung; 1: a counter was full, or there is no such peer or vector, or no other peer at all; 130:
    Ctrl-C between two rounds.
    """
    session: AttachSession = context.obj
    attachment = session.attachment
    rung, full, reached = 0, {}, set()
    begin_ns = time.monotonic_ns()
    with ended_by_signal(session.loop, [signal.SIGINT]) as interrupted:
        for round_ in range(count):
            while every_ns is not None and not interrupted() and time.monotonic_ns() < begin_ns + round_ * every_ns:
                session.loop.step(begin_ns + round_ * every_ns)
            if interrupted():
                break
            for target, chosen in _raw_target(peer, vector) if raw else _targets(attachment, peer, vector):
                reached.add(target)
                for each in chosen:
                    rung += 1
                    if not attachment.ring(target, each):
                        full[f"{target}:{each}"] = True
    click.echo(f"rang {counted(rung, 'doorbell')}", err=True)
    if qmp is not None:
        _tell_msix_states(qmp, reached)
    if full:
        raise GuestError(f"refused, as their counters are full (peer:vector): {' '.join(full)}")
    if interrupted():
        context.exit(INTERRUPTED)


def _tell_msix_states(qmp: Path, reached: set[int]) -> None:
    """Tell which of the devices that were rung cannot interrupt their guest, as their QEMU's monitor says."""
    from sim.engines.qemu.msix_state import read_msix_states, run_commands
    from sim.engines.qemu.qmp import Qmp

    with Qmp.connect(qmp) as monitor:
        found = [state for state in run_commands(read_msix_states(), monitor.execute) if state.peer in reached]
    if not found:
        click.echo(f"the QEMU of {qmp} has no ivshmem device that was rung", err=True)
    for state in found:
        if state.reason:
            click.echo(f"peer {state.peer} cannot interrupt its guest: {state.reason}", err=True)


def _targets(attachment: Attachment, peer: str, vector: str) -> Iterator[tuple[int, Iterable[int]]]:
    """Each peer with its vectors that are to be rung. Raises ``GuestError`` where there is no other peer."""
    there = attachment.peers
    if peer == "all":
        targets = [other for other in sorted(there) if other != attachment.peer]
        vector = vector or "all"
    else:
        targets = [_whole(peer, "a peer's ID, or all")]
    if not targets:
        raise GuestError("no other peer is there to be rung")
    for target in targets:
        if vector == "all" and target not in there:
            attachment.ring(target, 0)  # raises an error that lists the peers
        yield target, range(there[target]) if vector == "all" else [_whole(vector or "0", "a vector, or all")]


def _raw_target(value: str, vector: str) -> Iterator[tuple[int, Iterable[int]]]:
    """The peer and the vector of a doorbell value."""
    if vector:
        raise UsageError(f"--raw takes one value, which has the vector in it, got {value} and {vector}")
    doorbell = _whole(value, "a doorbell value of 32 bits, peer << 16 | vector")
    if doorbell >> 32:
        raise UsageError(f"expected a doorbell value of 32 bits, got {value}")
    yield doorbell >> 16, [doorbell & 0xFFFF]


@attach.command("wait", short_help="Wait for an interrupt.")
@click.option("--vector", callback=number, metavar="VECTOR", help="Wait for this vector. Default: any.")
@click.option("--timeout", "timeout_ns", callback=duration_ns, metavar="DURATION", help="At most so long: 5s, 250ms.")
@click.pass_context
def wait(context: click.Context, vector: int | None, timeout_ns: int | None) -> None:
    """Wait for an interrupt of this peer. Exit code 0: it came; 1: the time is over; 130: Ctrl-C.

    One that came earlier counts, unless another `wait` has already taken it. With --reconnect, the wait for a server is
    limited likewise.
    """
    session: AttachSession = context.obj
    attachment = session.attach_until(_deadline_ns(timeout_ns))
    _check_vector(attachment, vector)
    session.print_own_id()
    deadline_ns = _deadline_ns(timeout_ns)
    wanted = range(session.vectors) if vector is None else (vector,)
    with ended_by_signal(session.loop, [signal.SIGINT]) as interrupted:
        while not (came := [vector for vector in wanted if attachment.unseen[vector]]):
            if interrupted():
                context.exit(INTERRUPTED)
            if deadline_ns is not None and time.monotonic_ns() >= deadline_ns:
                click.echo("no interrupt came in time", err=True)
                context.exit(1)
            session.loop.step(deadline_ns)
    for each in came:
        click.echo(f"interrupt vector {each}")
        del attachment.unseen[each]


@attach.command("watch", short_help="Show interrupts as they come.")
@click.option("--count", type=WholeNumber(1), help="End after so many interrupts.")
@click.option("--timeout", "timeout_ns", callback=duration_ns, metavar="DURATION", help="End after so long: 5s, 250ms.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@click.pass_context
def watch(context: click.Context, count: int | None, timeout_ns: int | None, as_json: bool) -> None:
    """Show the interrupts of this peer as they come, with the seconds since the start; Ctrl-C ends it.

    The first line of --json is {"peer": ID}, again after each --reconnect. With --reconnect, the wait for a server is
    limited likewise. Exit code 0: all that --count asks for came, or it asks for none; 1: the time is over before; 130:
    Ctrl-C.
    """
    session: AttachSession = context.obj
    early: list[tuple[int, int, int]] = []
    seen = 0

    def show(time_ns: int, vector: int, doorbells: int) -> None:
        nonlocal seen
        seen += 1
        if count is not None and seen > count:
            return
        if as_json:
            click.echo(json.dumps({"time_ns": time_ns, "vector": vector, "doorbells": doorbells}))
        else:
            click.echo(session.describe(time_ns, vector, doorbells))

    def print_own_id() -> None:
        click.echo(json.dumps({"peer": session.attachment.peer}))

    previous = session.on_interrupt, session.on_return
    session.on_interrupt = lambda *happened: early.append(happened)  # until the own ID has been printed
    if as_json:
        session.on_return = print_own_id
    try:
        session.attach_until(_deadline_ns(timeout_ns)).unseen.clear()
        print_own_id() if as_json else session.print_own_id()
        session.on_interrupt = show
        for happened in early:
            show(*happened)
        deadline_ns = _deadline_ns(timeout_ns)
        with ended_by_signal(session.loop, [signal.SIGINT]) as interrupted:
            while (count is None or seen < count) and (deadline_ns is None or time.monotonic_ns() < deadline_ns):
                if interrupted():
                    context.exit(INTERRUPTED)
                session.loop.step(deadline_ns)
    finally:
        session.on_interrupt, session.on_return = previous
    if count is not None and seen < count:
        click.echo(f"{seen} of {counted(count, 'interrupt')} came in time", err=True)
        context.exit(1)


@attach.command("state", short_help="Show or write States (ivshmem v2).", context_settings=NUMBERS)
@click.argument("value", callback=number, required=False)
@click.pass_obj
def state(session: AttachSession, value: int | None) -> None:
    """Write VALUE to the own State register, which interrupts all other peers if it differs; or list all States.

    Only a server of ivshmem v2 has States.
    """
    attachment = session.attachment
    sections = attachment.sections
    if sections is None:
        raise GuestError("this server has no States: it is not of ivshmem v2")
    if value is not None:
        if value >> 32:
            raise UsageError(f"expected a State of 32 bits, got {value:#x}")
        attachment.set_state(value)
        return
    for peer in range(sections.layout.max_peers):
        if peer in attachment.peers:
            own = " (this one)" if peer == attachment.peer else ""
            click.echo(f"peer {peer}: state {sections.state(peer)}{own}")


@attach.command("peek", short_help="Show memory in hexadecimal.", context_settings=NUMBERS)
@click.argument("offset", callback=number)
@click.argument("length", callback=number, required=False)
@click.pass_obj
def peek(session: AttachSession, offset: int, length: int | None) -> None:
    """Show LENGTH bytes (256 if not given) of the memory at OFFSET, in hexadecimal."""
    memory = session.attachment.memory
    if length is None:
        length = max(1, min(DUMP_BYTES, len(memory) - offset))
    for line in dump(bytes(part_of(memory, offset, length)), offset):
        click.echo(line)


@attach.command("poke", short_help="Store a number in memory.", context_settings=NUMBERS)
@click.argument("offset", callback=number)
@click.argument("value", callback=number)
@click.argument("size", type=NameChoice(FORMATS), default="4")
@click.pass_obj
def poke(session: AttachSession, offset: int, value: int, size: str) -> None:
    """Store VALUE at OFFSET, little-endian in SIZE bytes (4 if not given)."""
    size_bytes = int(size)
    if value >> 8 * size_bytes:
        raise UsageError(f"expected a value that fits into {size_bytes} bytes, got {value:#x}")
    # One store of that size where it is aligned, so that other peers never see half of it.
    word = writable_part(session.attachment, offset, size_bytes).cast(FORMATS[size])
    word[0] = int.from_bytes(value.to_bytes(size_bytes, "little"), sys.byteorder)


@attach.command("fill", short_help="Set memory to one byte.", context_settings=NUMBERS)
@click.argument("offset", callback=number)
@click.argument("length", callback=number)
@click.argument("byte", callback=number)
@click.pass_obj
def fill(session: AttachSession, offset: int, length: int, byte: int) -> None:
    """Set LENGTH bytes at OFFSET to BYTE."""
    if byte > 0xFF:
        raise UsageError(f"expected a byte, 0..255, got {byte}")
    target = writable_part(session.attachment, offset, length)
    target[:] = bytes([byte]) * length


@attach.command("load", short_help="Copy a file into memory.", context_settings=NUMBERS)
@click.argument("offset", callback=number)
@click.argument("file", type=FILE)
@click.pass_obj
def load(session: AttachSession, offset: int, file: Path) -> None:
    """Copy FILE into the memory at OFFSET."""
    memory = session.attachment.memory
    try:
        with file.open("rb") as opened:
            data = opened.read(len(memory) + 1)  # no more than could fit
    except OSError as error:
        raise UsageError(f"cannot read {file}: {error.strerror}") from error
    if len(data) > len(memory):
        size_bytes = file.stat().st_size  # 0 for what has no end
        got = size_bytes if size_bytes > len(memory) else "more"
        raise UsageError(f"expected a file of up to {len(memory)} bytes, as many as the memory has, got {got}")
    if data:
        writable_part(session.attachment, offset, len(data))[:] = data
    click.echo(f"loaded {len(data)} bytes", err=True)


@attach.command("save", short_help="Copy memory into a file.", context_settings=NUMBERS)
@click.argument("offset", callback=number)
@click.argument("length", callback=number)
@click.argument("file", type=STREAM)
@click.pass_obj
def save(session: AttachSession, offset: int, length: int, file: Path) -> None:
    """Copy LENGTH bytes of the memory at OFFSET into FILE, which is overwritten; - is standard output."""
    data = part_of(session.attachment.memory, offset, length)
    if str(file) == "-":
        click.echo(bytes(data), nl=False)
        return
    write_file(file, bytes(data))
    click.echo(f"saved {length} bytes", err=True)


def _whole(given: str, expected: str) -> int:
    if (value := whole(given, 10, 8)) is None:
        raise UsageError(f"expected {expected}, got {given!r}")
    return value


def _deadline_ns(timeout_ns: int | None) -> int | None:
    return None if timeout_ns is None else time.monotonic_ns() + timeout_ns


def _check_vector(attachment: Attachment, vector: int | None) -> None:
    if vector is not None and vector >= attachment.own_vectors:
        raise UsageError(f"expected one of the {counted(attachment.own_vectors, 'vector')} of this peer, got {vector}")
