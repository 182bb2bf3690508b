"""Where a benchmark runs: without a fixed place, the scheduler is what is measured."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

__all__ = ["allowed_cpus", "pinned"]


def allowed_cpus() -> list[int]:
    """The CPUs that this process may run on."""
    return sorted(os.sched_getaffinity(0))


@contextlib.contextmanager
def pinned(cpu: int) -> Iterator[None]:
    """On this CPU, with every process that is born meanwhile."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {cpu})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
