"""The output of `ivsim top`: it finds a run, follows it, and draws it as a table, as lines or as JSON."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import click
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from nodes.errors import UsageError
from sim.access import shown
from sim.host.runtime_directory import runtime_parents
from sim.telemetry import SOCKET, Found, Snapshot, Subscriber, running
from sim.views.printable import printable
from sim.views.prometheus import write_metrics
from sim.views.rates import Rates, left_s, pending, plain, ran_s
from sim.views.units import NOTHING
from sim.views.units import short_count as count
from sim.views.units import short_ns as duration
from sim.views.units import short_seconds as seconds

PATIENCE_S = 5.0
POLL_S = 0.25
LINE_EVERY_NS = 1_000_000_000
HAPPENED_SHOWN = 6


def show_top(
    run: Path | None, *, once: bool, as_json: bool, quiet: bool, prometheus: Path | None, port: int | None = None
) -> None:
    """Follow a run until it ends.

    Args:
        run: a run directory or a telemetry socket; None is the run that this user began last.
        prometheus: the file that gets every snapshot.
        port: serve the page of `sim.commands.top_web` there, and show no table.

    Raises:
        UsageError: there is no such run, or it is over.
    """
    found = _find(run)
    console = Console()
    with contextlib.suppress(KeyboardInterrupt), Subscriber(found.endpoint) as subscriber:
        seen = _Seen(found, subscriber, prometheus)
        if once or as_json:
            _show_once(seen, as_json)
        elif port is not None:
            _show_page(seen, port)
        elif quiet:
            for _ in seen.follow():
                pass
        elif console.is_terminal:
            with Live(console=console, auto_refresh=False) as live:
                for now in seen.follow():
                    live.update(_table(now), refresh=True)
        else:
            _print_lines(seen)


def _find(run: Path | None) -> Found:
    """Find the run that is meant. Raises ``UsageError`` when it is not running."""
    if run is None:
        found = running()
        if not found:
            raise UsageError(f"no run of yours is in progress: no process listens on ivsim-*/{SOCKET} in {_places()}")
        if len(found) > 1:
            others = ", ".join(str(other.path) for other in found[1:])
            click.echo(f"watching the latest of {len(found)} runs, {found[0].path}; others: {others}", err=True)
        return found[0]
    if not run.exists():
        from sim.results.store.opening import no_such_run

        raise no_such_run(run)
    if not run.is_dir() or (run / SOCKET).exists():
        found = running([run / SOCKET if run.is_dir() else run])
        if not found:
            raise UsageError(f"{run}: expected the telemetry socket of a run of yours in progress")
        return found[0]
    return _of_directory(run)


def _of_directory(path: Path) -> Found:
    """Find the socket of the process that a run directory belongs to."""
    from sim.results import Run

    run = Run(path)
    owner = run.origin.owner
    if run.status == "running" and owner.is_running():
        if any(event.get("kind") == "telemetry" for event in run.events()):  # the last that a run says
            raise UsageError(f"{path}: its results are being computed; `ivsim show {path}` prints them then")
        for each in running():
            if each.held_by(owner.pid):
                return each
        raise UsageError(f"{path}: runs in process {owner.pid}, whose telemetry socket is not in {_places()}")
    raise UsageError(f"{path}: the run is over ({run.status}); `ivsim show` prints its result")


def _places() -> str:
    return ", ".join(map(str, runtime_parents()))


class _Seen:
    """The known state of a run: the last snapshot (none before `follow`), rates, and the number of lost snapshots."""

    snapshot: Snapshot

    def __init__(self, found: Found, subscriber: Subscriber, prometheus: Path | None) -> None:
        self.found = found
        self.rates = Rates()
        self.lost = 0
        self._subscriber = subscriber
        self._prometheus = prometheus

    def follow(self) -> Iterator[_Seen]:
        """Yield itself with every snapshot that comes, until the run is over. Raises ``UsageError`` when none comes."""
        deadline = time.monotonic() + PATIENCE_S
        came = False
        while True:
            snapshot = self._subscriber.receive(POLL_S)
            if snapshot is not None:
                came, self.lost = True, self._subscriber.lost
                self.snapshot = snapshot
                self.rates.update(snapshot)
                if self._prometheus is not None:
                    write_metrics(self._prometheus, snapshot, self.lost)
                yield self
                if snapshot.phase == "done":
                    return
            elif not running([self.found.path]):
                click.echo(f"{self.found.path}: the run has broken off", err=True)
                raise click.exceptions.Exit(1)
            elif not came and time.monotonic() > deadline:
                raise UsageError(f"{self.found.path}: nothing came in {PATIENCE_S:g} s: is that a run's telemetry?")


def _show_once(seen: _Seen, as_json: bool) -> None:
    """Show the second snapshot, as rates need two; the first where no other follows."""
    *_, now = islice(seen.follow(), 2)
    if as_json:
        click.echo(json.dumps(plain(now.snapshot, now.rates, now.lost)))
        return
    console = Console()
    for line in _lines(now):
        console.print(Text(printable(line)), soft_wrap=True)


def _show_page(seen: _Seen, port: int) -> None:
    from sim.commands.top_web import LiveServer

    with LiveServer(port) as server:
        click.echo(server.address)
        for now in seen.follow():
            server.publish(plain(now.snapshot, now.rates, now.lost))


def _print_lines(seen: _Seen) -> None:
    """Print a line every second, and one for each event, until the run is over."""
    shown_ns = told_ns = 0
    for now in seen.follow():
        snapshot = now.snapshot
        for event in snapshot.happened:
            if event.time_ns > told_ns:
                told_ns = event.time_ns
                click.echo(printable(f"! {event.text or event.kind}"))
        shown_ns = shown_ns or snapshot.time_ns  # the first snapshot alone has no rates
        if snapshot.phase == "done" or snapshot.time_ns - shown_ns >= LINE_EVERY_NS:
            shown_ns = snapshot.time_ns
            click.echo(printable("  ".join(_summary(now))))


def _summary(now: _Seen) -> list[str]:
    """The whole run in a few words."""
    snapshot = now.snapshot
    words = [f"{snapshot.phase:8}", f"{snapshot.up}/{snapshot.machines} up"]
    rates = now.rates.together(snapshot)
    words += [f"{name} {count(rates[name])}/s" for name in ("rung", "interrupts") if rates]
    words.append(f"pending {pending(snapshot):,}")
    refused = sum(group.refused for group in snapshot.groups.values())
    words += [f"refused {refused:,}"] if refused else []
    words += [f"delivery {_latencies(snapshot)}"] if snapshot.latency_ns else []
    ran, left = ran_s(snapshot), left_s(snapshot)
    words += [seconds(ran)] if ran is not None and left is None else []
    words += [f"{seconds(left)} left"] if left is not None else []
    words += [f"{snapshot.heartbeats_late} late heartbeats"] if snapshot.heartbeats_late else []
    words += [f"{now.lost} snapshots lost"] if now.lost else []
    return words


def _latencies(snapshot: Snapshot) -> str:
    return ", ".join(f"{level} {duration(value)}" for level, value in snapshot.latency_ns.items())


HEAD = ("group", "up", "rung/s", "delivered/s", "interrupts/s", "per int.", "rung", "delivered", "refused")


def _rows(now: _Seen) -> Iterator[tuple[str, ...]]:
    for name, group in now.snapshot.groups.items():
        rates = now.rates.of(name)
        fast = [NOTHING] * 4
        if rates is not None:
            fast = [count(rates[counted]) for counted in ("rung", "delivered", "interrupts")]
            fast.append(f"{rates['delivered'] / rates['interrupts']:,.2f}" if rates["interrupts"] else NOTHING)
        yield (
            name,
            f"{group.up}/{group.machines}",
            *fast,
            f"{group.rung:,}",
            f"{group.delivered:,}",
            f"{group.refused:,}",
        )


def _happened(snapshot: Snapshot) -> Iterator[str]:
    for event in snapshot.happened[-HAPPENED_SHOWN:]:
        at_s = (event.time_ns - (snapshot.start_ns or snapshot.time_ns)) / 1e9
        yield f"{at_s:9.3f} s  {event.text or event.kind}"


def _title(now: _Seen) -> str:
    return "  ".join(filter(None, (now.snapshot.title, now.snapshot.path)))


def _lines(now: _Seen) -> Iterator[str]:
    """All that is known, as plain columns."""
    if _title(now):
        yield _title(now)
    yield from shown(now.snapshot.access)
    yield "  ".join(_summary(now))
    rows = [HEAD, *_rows(now)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *rest in rows:
        cells = [cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)]
        yield "  ".join([first.ljust(widths[0]), *cells])
    yield from _happened(now.snapshot)


def _table(now: _Seen) -> Group:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for place, name in enumerate(HEAD):
        table.add_column(name, justify="right" if place else "left", no_wrap=True)
    for name, up, *rest in _rows(now):
        alive, _, all_of_them = up.partition("/")
        table.add_row(Text(printable(name)), Text(up, "" if alive == all_of_them else "yellow"), *map(Text, rest))
    parts: list[Text | Table] = [Text(printable(_title(now)), "bold")] if _title(now) else []
    parts += [Text(printable(line)) for line in shown(now.snapshot.access)]
    parts += [Text(printable("  ".join(_summary(now)))), Text(), table]
    happened = [Text(printable(line)) for line in _happened(now.snapshot)]
    return Group(*parts, *([Text(), *happened] if happened else []))
