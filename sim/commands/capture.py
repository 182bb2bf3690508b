"""`ivsim record`, `ivsim explain` and `ivsim replay`: recorded sessions of a server and its clients."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import click

from nodes.errors import UsageError
from nodes.qemu_versions import QemuVersion
from nodes.wire.analyzer import explain, explain_all
from nodes.wire.capture import HEADER, LINE_CHARS_MAX, NANOSECONDS, Entry, Session, SessionError, format_entry, parse
from nodes.wire.explanation import Analysis, ExplainedEntry
from nodes.wire.v2.protocol import ALL_DIALECTS
from sim.commands.options import qemu_version_option
from sim.commands.output import echo_json
from sim.commands.parameters import FILE, PATH, STREAM, NameChoice, Number, WholeNumber, duration_ns
from sim.kernel.loop import Loop, ended_by_signal
from sim.kernel.shortage import error_of_path
from sim.views.session import analysis_lines
from sim.views.units import counted

ABOUT = """\
# Recorded by `ivsim record`. Each line: seconds since the start, connection, sender, and what it sent: a number with
# the descriptors that came with it, or bytes that are no message. `ivsim explain` says what it means.
"""


# Record


@click.command("record")
@click.option("-S", "--server", required=True, type=PATH, help="The server's socket.")
@click.option("-L", "--listen", required=True, type=PATH, help="The socket for clients to connect to instead.")
@click.option("-o", "--output", required=True, type=STREAM, help="The session file; - is standard output.")
@click.option("--force", is_flag=True, help="Overwrite the session file.")
def record(server: Path, listen: Path, output: Path, force: bool) -> None:
    """Forward all bytes and descriptors between the SERVER and its clients, and write a session file.

    Clients connect to LISTEN instead of to the server. The file is text with a line for each message, and complete at
    every moment. SIGTERM or Ctrl-C ends the recording and its connections.
    """
    from sim.wire.listener import LISTENING, PATH_BYTES_MAX, probe
    from sim.wire.proxy import Proxy

    if len(os.fsencode(server)) > PATH_BYTES_MAX:
        raise UsageError(f"a socket's path may have {PATH_BYTES_MAX} bytes, {server} has {len(os.fsencode(server))}")
    if os.path.realpath(server) == os.path.realpath(listen):
        raise UsageError(f"expected a socket of its own for the clients (-L), got the server's: {listen}")

    def write(text: str) -> None:
        try:
            file.write(text + "\n")
            file.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            raise error_of_path(error, f"{output} cannot be written") from error

    with contextlib.ExitStack() as stack:
        loop = stack.enter_context(contextlib.closing(Loop()))
        ended = stack.enter_context(ended_by_signal(loop))

        def note(entry: Entry) -> None:
            write(format_entry(entry))

        # The file first: no client connects when nothing can be written.
        file = stack.enter_context(_open_output(output, force))
        proxy = stack.enter_context(
            Proxy(loop, server, listen, note, warn=lambda text: click.echo(f"ivsim: {text}", err=True))
        )
        write(f"{HEADER}\n{ABOUT}".rstrip())
        click.echo(f"recording clients of {listen}, on behalf of {server}", err=True)
        if (code := probe(server)) not in LISTENING:
            click.echo(f"ivsim: no server listens on {server} yet: {os.strerror(code)}", err=True)
        while not ended():
            loop.step()
        click.echo(f"recorded {proxy.connections} connections", err=True)


@contextlib.contextmanager
def _open_output(output: Path, force: bool) -> Iterator[IO[str]]:
    if str(output) == "-":
        yield sys.stdout
        return
    try:
        file = output.open("w" if force else "x", encoding="utf-8")
    except FileExistsError:
        raise UsageError(f"{output} exists: choose another file, or overwrite it with --force") from None
    except OSError as error:
        raise error_of_path(error, f"{output} cannot be written") from error
    try:
        yield file
    finally:
        with contextlib.suppress(OSError):  # the failed write has raised already
            file.close()


# Explain


def read_session(file: Path) -> Session:
    """Raises ``UsageError`` for what is no session file, with the line that is wrong."""
    try:
        if str(file) == "-":
            return parse(_lines(sys.stdin))
        with file.open(encoding="utf-8", errors="replace", newline="\n") as opened:
            return parse(_lines(opened))
    except SessionError as error:
        raise UsageError(f"{file}: {error}") from None
    except OSError as error:
        raise UsageError(f"cannot read {file}: {error.strerror}") from error


def _lines(opened: IO[str]) -> Iterator[str]:
    while line := opened.readline(LINE_CHARS_MAX + 1):
        yield line


@click.command("explain")
@click.argument("file", metavar="FILE", type=STREAM)
@click.option(
    "--dialect",
    type=NameChoice(ALL_DIALECTS),
    help="Judge by this dialect's rules; by default v0, which QEMU understands since 2.5, and v2 where a server speaks "
    "it.",
)
@click.option(
    "-n",
    "--vectors",
    type=WholeNumber(1, 2048),
    help="How many vectors the client's device has: more eventfds of a peer are then wrong.",
)
@qemu_version_option
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@click.pass_context
def explain_session(
    context: click.Context,
    file: Path,
    dialect: str | None,
    vectors: int | None,
    qemu_version: QemuVersion,
    as_json: bool,
) -> None:
    """Explain a session file, connection by connection.

    The first messages tell the dialect. The first wrong message is marked, with what a real QEMU does when it receives
    it. Exit code 0: clean; 1: something is wrong; 2: not a session file.
    """
    session = read_session(file)
    found = explain_all(session, dialect=ALL_DIALECTS[dialect] if dialect else None, vectors=vectors)
    clean = not any(explanation.problems for explanation in found)
    if as_json:
        rows = [_as_data(explanation, qemu_version) for explanation in found]
        echo_json({"clean": clean, "qemu_version": str(qemu_version), "connections": rows})
    else:
        for explanation in found:
            click.echo("\n".join(analysis_lines(explanation, qemu_version)) + "\n")
        verdict = f"{counted(len(found), 'connection')}: " + ("clean" if clean else "something is wrong, see above")
        click.echo(verdict if found else "no connection was recorded")
    if not clean:
        context.exit(1)


def _as_data(explanation: Analysis, version: QemuVersion) -> dict[str, Any]:
    problems = explanation.problems
    return {
        "connection": explanation.connection,
        "clean": not problems,
        "dialect": explanation.dialect.name if explanation.dialect else None,
        "dialect_in_words": explanation.named,
        "judged_by": explanation.judged_by.name,
        "peer": explanation.peer,
        "memory_bytes": explanation.memory_bytes,
        "first_wrong_line": problems[0].line if problems else None,
        "entries": [_entry_as_data(explained, explanation, version) for explained in explanation.entries],
        "notes": list(explanation.notes),
    }


def _entry_as_data(explained: ExplainedEntry, explanation: Analysis, version: QemuVersion) -> dict[str, Any]:
    entry = explained.entry
    return {
        "line": entry.line,
        "time_ns": entry.time_ns,
        "text": format_entry(entry).split("  #")[0],
        "meaning": explained.meaning,
        "problems": [
            {
                "name": problem.name,
                "expected": problem.rule.expected,
                "got": problem.got,
                "outcome": problem.outcome(explanation.judged_by, version),
                "ends": problem.rule.ends,
                "source": problem.rule.source,
            }
            for problem in explained.problems
        ],
    }


# Replay


@click.command("replay")
@click.argument("file", metavar="FILE", type=FILE)
@click.option("-S", "--socket", "path", required=True, type=PATH, help="The socket for the client to connect to.")
@click.option("--connection", type=WholeNumber(1), help="Which connection to replay. Default: the first.")
@click.option(
    "--speed", type=Number(0, 1e9), default=1.0, help="How many times faster than it was recorded; 0: at once."
)
@click.option("--step", is_flag=True, help="One message for each line of standard input (Enter).")
@click.option(
    "--timeout", "timeout_ns", callback=duration_ns, metavar="DURATION", help="End after this long. Default: never."
)
def replay(file: Path, path: Path, connection: int | None, speed: float, step: bool, timeout_ns: int | None) -> None:
    """Replay the server's side of a recorded connection to the first client that connects.

    New descriptors of the recorded kinds are sent: eventfds, memory of that size. Standard output shows what the client
    does. The replay ends when the client leaves, or the recorded server closes. Exit code 0: everything was sent;
    1: not all of it.
    """
    from sim.kernel.line_reader import LineReader
    from sim.wire.listener import Listener
    from sim.wire.replayer import Replayer

    if step and sys.stdin is None:
        raise UsageError("standard input is closed: expected a line there for each message (--step)")
    entries = _choose(read_session(file), file, connection)
    meanings = {explained.entry.line: explained.meaning for explained in explain(0, entries).entries}
    input_ended = False

    def say(time_ns: int, text: str) -> None:
        click.echo(f"{time_ns / NANOSECONDS:.6f} {text}")

    def announce() -> None:
        if entry := replayer.upcoming:
            act = format_entry(entry).split("  #")[0].split(" ", 3)[3]
            click.echo(f"next: {act} ({meanings[entry.line]}); Enter sends it", err=True)

    def take(line: str | None) -> None:
        nonlocal input_ended
        if line is None:
            input_ended = True
            return
        replayer.step()
        announce()

    with contextlib.ExitStack() as stack:
        loop = stack.enter_context(contextlib.closing(Loop()))
        ended = stack.enter_context(ended_by_signal(loop))
        listener = stack.enter_context(Listener(path))
        replayer = stack.enter_context(Replayer(loop, listener, entries, speed=speed, stepwise=step, tell=say))
        click.echo(f"waiting for a client at {path}", err=True)
        deadline_ns = None if timeout_ns is None else time.monotonic_ns() + timeout_ns
        lines: LineReader | None = None
        while not (replayer.done or ended() or input_ended):
            if deadline_ns is not None and time.monotonic_ns() >= deadline_ns:
                click.echo("ivsim: the time is over", err=True)
                break
            loop.step(deadline_ns)
            if step and lines is None and replayer.connected:
                announce()
                lines = LineReader(loop, sys.stdin.fileno(), take)
                stack.callback(lines.close)
        played = replayer.result()
    for (peer, vector), count in played.rung.items():
        click.echo(f"client rang peer {peer} vector {vector}: {count}")
    click.echo(f"sent {played.sent} of {played.total}")
    if not played.complete:
        click.get_current_context().exit(1)


def _choose(session: Session, file: Path, connection: int | None) -> tuple[Entry, ...]:
    connections = session.connections
    if not connections:
        raise UsageError(f"{file}: expected at least one connection, got none")
    number = next(iter(connections)) if connection is None else connection
    if number not in connections:
        numbers = ", ".join(map(str, list(connections)[:20]))
        raise UsageError(f"{file}: expected one of its connections ({numbers}), got --connection {number}")
    return connections[number]
