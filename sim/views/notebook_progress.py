"""The progress of a run below the cell of a notebook that runs it: a bar that is drawn anew with every snapshot."""

from __future__ import annotations

import contextlib
import html
import importlib
import sys
from collections.abc import Iterator
from typing import Any

from sim.telemetry import Snapshot, following
from sim.views.rates import Rates, left_s, share_done
from sim.views.units import short_count


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook. IPython on a terminal is none."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return shell is not None and hasattr(shell, "kernel")


@contextlib.contextmanager
def progress_in_cell(endpoint: str) -> Iterator[None]:
    """Show the progress of a run until the block ends; elsewhere than in a notebook, show nothing."""
    if not in_notebook():
        yield
        return
    ipython: Any = importlib.import_module("IPython.display")
    rates, seen = Rates(), False
    handle = ipython.display(ipython.HTML("<p>starting</p>"), display_id=True)

    def show(snapshot: Snapshot, _lost: int) -> None:
        nonlocal seen
        seen = True
        rates.update(snapshot)
        handle.update(ipython.HTML(_bar(snapshot, rates)))

    try:
        with following(endpoint, show):
            yield
    finally:
        if not seen:  # so short a run has no snapshot
            handle.update(ipython.HTML(""))


def _bar(snapshot: Snapshot, rates: Rates) -> str:
    up = "" if snapshot.phase == "done" else f"{snapshot.up}/"
    words = [snapshot.phase, f"{up}{snapshot.machines} machines{' up' if up else ''}"]
    if snapshot.start_ns and snapshot.stop_ns and snapshot.phase == "running":
        known = rates.together(snapshot)
        words += [f"{short_count(known[name])} {name}/s" for name in ("rung", "interrupts") if known]
    if (left := left_s(snapshot)) is not None:
        words.append(f"{left:.1f} s left")
    share = 1.0 if snapshot.phase == "done" else share_done(snapshot)
    text = html.escape(", ".join(words))
    return f'<progress value="{share:.3f}" max="1" aria-label="{text}"></progress> <span>{text}</span>'
