"""The progress of a run on standard error, from its telemetry."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from sim.telemetry import Snapshot, following
from sim.views.rates import Rates, left_s, share_done

PLAIN_EVERY_NS = 1_000_000_000
BAR_WIDTH = 24


@contextlib.contextmanager
def progress(endpoint: str, console: Console) -> Iterator[None]:
    """Show the progress of a run until the block ends: a bar on a terminal, a line every second elsewhere."""
    rates, shown_ns = Rates(), 0

    def show_bar(snapshot: Snapshot, _lost: int) -> None:
        rates.update(snapshot)
        live.update(_show(snapshot, rates, console.width), refresh=True)

    def show_line(snapshot: Snapshot, _lost: int) -> None:
        nonlocal shown_ns
        rates.update(snapshot)
        if snapshot.time_ns - shown_ns >= PLAIN_EVERY_NS:
            shown_ns = snapshot.time_ns
            console.print(" ".join(_words(snapshot, rates)), markup=False, highlight=False, soft_wrap=True)

    if console.is_terminal:
        with Live(console=console, transient=True, auto_refresh=False) as live, following(endpoint, show_bar):
            yield
    else:
        with following(endpoint, show_line):
            yield


def _words(snapshot: Snapshot, rates: Rates) -> list[str]:
    if snapshot.phase == "done":
        words = ["done", f"{snapshot.machines} machines"]
    else:
        words = [f"{snapshot.phase:8}", f"{snapshot.up}/{snapshot.machines} machines up"]
    if snapshot.phase == "running":
        known = rates.together(snapshot)
        doorbells, interrupts = (known.get(name, 0) for name in ("rung", "interrupts"))
        words += [f"{doorbells:>13,.0f} doorbells/s", f"{interrupts:>11,.0f} interrupts/s"]
    if (left := left_s(snapshot)) is not None:
        words.append(f"{left:5.1f} s left")
    if snapshot.heartbeats_late:
        words.append(f"{snapshot.heartbeats_late} late heartbeats")
    return words


def _show(snapshot: Snapshot, rates: Rates, width: int) -> Table | Text:
    """Return the bar and the words; the words alone where a line has no room for both."""
    words = _words(snapshot, rates)
    if sum(map(len, words)) + len(words) + BAR_WIDTH > width:
        return Text(" ".join(" ".join(words).split()))
    grid = Table.grid(padding=(0, 1))
    bar = ProgressBar(total=1.0, completed=share_done(snapshot), width=BAR_WIDTH)
    grid.add_row(bar, *(Text(word, no_wrap=True) for word in words))
    return grid
