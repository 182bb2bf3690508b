"""The prompt of `ivsim attach`: commands from standard input, and events that are shown between them."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import socket
import sys
import termios
import threading
from collections.abc import Iterator, Mapping
from importlib.util import find_spec

import click

from nodes.errors import IvshmemError, UsageError
from nodes.spelling import did_you_mean
from sim.commands.attach_session import AttachSession
from sim.exit_codes import INTERRUPTED
from sim.kernel.line_reader import LineReader

PROMPT = "ivsim> "
CLEAR_LINE = "\r\x1b[K"
USAGE_COLUMNS = 34


def run_prompt(session: AttachSession, group: click.Group, aliases: Mapping[str, str]) -> int:
    """Carry out commands until `quit` or the end of standard input. Returns 1 if a command has failed, else 0."""
    code = 0
    ended = False

    def take(line: str | None) -> None:
        nonlocal code, ended
        if line is None:
            ended = True
            return
        outcome = _obey(line, session, group, aliases)
        if outcome is None:
            ended = True
            lines.close()
        else:
            code = code or outcome
            source.ready()

    def woken() -> None:
        read_end.recv(1)

    with contextlib.ExitStack() as stack:
        if sys.stdin is None:
            raise UsageError("standard input is closed: expected commands there, or one on the command line")
        if sys.stdin.isatty() and find_spec("readline"):
            source: _LineSource = stack.enter_context(_Terminal([*group.commands, *aliases, "help", "quit"]))
        else:
            source = _LineSource()
        session.on_news = source.show
        session.on_interrupt = lambda *happened: source.show(session.describe(*happened))
        session.begin()
        lines = LineReader(session.loop, source.descriptor, take)
        stack.callback(lines.close)
        # A Ctrl-C just before the loop waits, or one that the other thread takes, must wake the loop up too.
        read_end, write_end = (stack.enter_context(end) for end in socket.socketpair())
        write_end.setblocking(False)
        session.loop.add(read_end, woken)
        stack.callback(session.loop.remove, read_end)
        stack.callback(signal.set_wakeup_fd, -1)
        source.ready()
        while not ended:
            signal.set_wakeup_fd(write_end.fileno(), warn_on_full_buffer=False)  # each time: a command may have its own
            session.loop.step()
    return code


def _obey(line: str, session: AttachSession, group: click.Group, aliases: Mapping[str, str]) -> int | None:
    """Carry out one line. Returns 0, or 1 when it failed, or None for `quit`."""
    try:
        words = shlex.split(line, comments=True)
    except ValueError as error:
        click.echo(f"ivsim: expected closed quotes, got {line!r} ({error})", err=True)
        return 1
    name = aliases.get(words[0], words[0]) if words else ""
    if name == "quit":
        return None
    try:
        code = _carry_out(name, words[1:], session, group, aliases) if words else 0
        if code == INTERRUPTED:  # by a key, which is how one of these ends
            click.echo()
        return 1 if code and code != INTERRUPTED else 0
    except click.ClickException as error:
        click.echo(f"ivsim: {name}: {error.format_message()}", err=True)
    except IvshmemError as error:
        click.echo(f"ivsim: {name}: {error}", err=True)
    return 1


def _carry_out(
    name: str, arguments: list[str], session: AttachSession, group: click.Group, aliases: Mapping[str, str]
) -> object:
    """Run a command; returns None or an exit code."""
    if name == "help":
        click.echo("\n".join(_help(group, aliases)))
        return 0
    if name not in group.commands:
        known = [*group.commands, "help", "quit"]
        raise UsageError(f"expected one of {', '.join(known)}{did_you_mean(name, known)}")
    return group.commands[name].main(arguments, prog_name=name, standalone_mode=False, obj=session)


def _help(group: click.Group, aliases: Mapping[str, str]) -> Iterator[str]:
    room = max(30, shutil.get_terminal_size().columns - USAGE_COLUMNS - 1)
    for name, command in group.commands.items():
        usage = " ".join((name, *_options(command), *_arguments(command)))
        if len(usage) >= USAGE_COLUMNS:
            yield usage
            usage = ""
        yield usage.ljust(USAGE_COLUMNS) + command.get_short_help_str(room)
    yield "quit".ljust(USAGE_COLUMNS) + "Leave; so does the end of the input."
    yield f"Also: {', '.join(f'{alias} is {name}' for alias, name in aliases.items())}. COMMAND --help tells more."


def _options(command: click.Command) -> Iterator[str]:
    for option in command.params:
        if isinstance(option, click.Option):
            yield f"[{option.opts[0]}]" if option.is_flag else f"[{option.opts[0]} {option.metavar or 'N'}]"


def _arguments(command: click.Command) -> Iterator[str]:
    context = click.Context(command)
    yield from (piece for piece in command.collect_usage_pieces(context) if piece != "[OPTIONS]")


class _LineSource:
    """Lines from standard input, and output between them."""

    descriptor = 0

    def ready(self) -> None:
        """Take the next line."""

    def show(self, text: str) -> None:
        click.echo(text)


class _Terminal(_LineSource):
    """Lines that are edited with readline. It blocks, and so has a thread of its own, which never ends by itself: this
    class restores the terminal in its place.
    """

    def __init__(self, words: list[str]) -> None:
        import readline

        self._readline = readline
        readline.set_completer(lambda text, at: [*(f"{word} " for word in words if word.startswith(text)), None][at])
        readline.parse_and_bind("tab: complete")
        self._prompting = False
        self._go = threading.Semaphore(0)

    def __enter__(self) -> _Terminal:
        self._attributes = termios.tcgetattr(0)
        self.descriptor, self._write_end = os.pipe2(os.O_CLOEXEC)
        threading.Thread(target=self._read, name="readline", daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        termios.tcsetattr(0, termios.TCSADRAIN, self._attributes)
        if self._prompting and kind is not KeyboardInterrupt:  # click ends the line of that
            click.echo()
        os.close(self.descriptor)
        # The thread may still write to the other end, which ends with this process.

    def _read(self) -> None:
        while True:
            self._go.acquire()
            try:
                line = input(PROMPT)
            except EOFError:
                os.close(self._write_end)
                return
            self._prompting = False
            os.write(self._write_end, line.encode(errors="replace").replace(b"\n", b" ") + b"\n")

    def ready(self) -> None:
        self._prompting = True
        self._go.release()

    def show(self, text: str) -> None:
        if not self._prompting:
            click.echo(text)
            return
        # Above the line at hand, which is then shown again as far as it has been written.
        sys.stdout.write(f"{CLEAR_LINE}{text}\n{PROMPT}{self._readline.get_line_buffer()}")
        sys.stdout.flush()
