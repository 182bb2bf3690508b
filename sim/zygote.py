"""What the fork server loads once for all workers.

Everything a worker needs is imported here and frozen, so that a worker is a fork that shares its pages and not a
new interpreter. Interrupts of the terminal are the coordinator's business: workers inherit that they ignore them.
"""

from __future__ import annotations

import gc
import signal

import nodes.programs
import sim.worker  # noqa: F401

signal.signal(signal.SIGINT, signal.SIG_IGN)
gc.collect()
gc.freeze()
