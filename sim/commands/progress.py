"""How a run goes, on standard error: one subscriber of its telemetry among others."""

from __future__ import annotations

import threading
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from sim.telemetry import Snapshot, Subscriber

__all__ = ["Progress"]

PLAIN_EVERY_NS = 1_000_000_000
POLL_S = 0.1
BAR_WIDTH = 24


class Progress:
    """Shows snapshots until it is left: a bar on a terminal, a line every second elsewhere.

    Works in a thread of its own, so that nothing it does delays the coordinator. ``lost`` counts the snapshots
    that were published and never seen.
    """

    def __init__(self, endpoint: str, console: Console) -> None:
        self._endpoint = endpoint
        self._console = console
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="ivsim progress")
        self.lost = 0

    def __enter__(self) -> Progress:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._done.set()
        self._thread.join()

    def _follow(self) -> None:
        with Subscriber(self._endpoint) as subscriber:
            if self._console.is_terminal:
                self._follow_live(subscriber)
            else:
                self._follow_plainly(subscriber)
            self.lost = subscriber.lost

    def _follow_live(self, subscriber: Subscriber) -> None:
        rates = _Rates()
        with Live(console=self._console, transient=True, auto_refresh=False) as live:
            while not self._done.is_set():
                snapshot = subscriber.receive(POLL_S)
                if snapshot is not None:
                    rates.update(snapshot)
                    live.update(_show(snapshot, rates, self._console.width), refresh=True)

    def _follow_plainly(self, subscriber: Subscriber) -> None:
        rates = _Rates()
        shown_ns = 0
        while not self._done.is_set():
            snapshot = subscriber.receive(POLL_S)
            if snapshot is None:
                continue
            if snapshot.time_ns - shown_ns >= PLAIN_EVERY_NS:
                shown_ns = snapshot.time_ns
                rates.update(snapshot)
                self._console.print(" ".join(_words(snapshot, rates)), markup=False, highlight=False, soft_wrap=True)


class _Rates:
    """Doorbells and interrupts a second, between the last two looks."""

    def __init__(self) -> None:
        self._last: tuple[int, int, int] | None = None
        self.doorbells = 0.0
        self.interrupts = 0.0

    def update(self, snapshot: Snapshot) -> None:
        rung = sum(group.rung for group in snapshot.groups.values())
        interrupts = sum(group.interrupts for group in snapshot.groups.values())
        if self._last is not None and snapshot.time_ns > self._last[0]:
            passed_s = (snapshot.time_ns - self._last[0]) / 1e9
            self.doorbells = (rung - self._last[1]) / passed_s
            self.interrupts = (interrupts - self._last[2]) / passed_s
        self._last = snapshot.time_ns, rung, interrupts


def _words(snapshot: Snapshot, rates: _Rates) -> list[str]:
    words = [f"{snapshot.phase:8}", f"{snapshot.up}/{snapshot.machines} machines up"]
    if snapshot.phase == "running":
        words += [f"{rates.doorbells:>13,.0f} doorbells/s", f"{rates.interrupts:>11,.0f} interrupts/s"]
        words.append(f"{_left_s(snapshot):5.1f} s left")
    if snapshot.heartbeats_late:
        words.append(f"{snapshot.heartbeats_late} late heartbeats")
    return words


def _render(snapshot: Snapshot, rates: _Rates) -> Table:
    grid = Table.grid(padding=(0, 1))
    total = snapshot.machines
    done = float(snapshot.up)
    if snapshot.start_ns and snapshot.stop_ns and snapshot.phase == "running":
        total = snapshot.stop_ns - snapshot.start_ns
        done = snapshot.time_ns - snapshot.start_ns
    bar = ProgressBar(total=total, completed=max(0, min(done, total)), width=BAR_WIDTH)
    grid.add_row(bar, *(Text(word, no_wrap=True) for word in _words(snapshot, rates)))
    return grid


def _show(snapshot: Snapshot, rates: _Rates, width: int) -> Table | Text:
    """The bar and the words; without the bar, and wrapped, where a line has no room for all."""
    words = _words(snapshot, rates)
    if sum(map(len, words)) + len(words) + BAR_WIDTH <= width:
        return _render(snapshot, rates)
    return Text(" ".join(" ".join(words).split()))


def _left_s(snapshot: Snapshot) -> float:
    return max(0, (snapshot.stop_ns or snapshot.time_ns) - snapshot.time_ns) / 1e9
