"""The clock of this host."""

from __future__ import annotations

import time


class MonotonicClock:
    """CLOCK_MONOTONIC, which all processes of a host share, and the CPU clock of the calling thread."""

    now_ns = staticmethod(time.monotonic_ns)
    cpu_ns = staticmethod(time.thread_time_ns)
