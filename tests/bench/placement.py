"""The CPU of a benchmark: without a fixed one, it measures the scheduler."""

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
    """Pin this process, and all processes that it starts meanwhile, to one CPU."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {cpu})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
