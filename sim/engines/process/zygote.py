"""What the fork server loads once for all workers.

Everything a worker needs is imported here and frozen, so that a worker is a fork that shares its pages and not a
new interpreter. What a worker touches it gets a page of its own for, if only because it counts references in it;
so the standard library comes first and what workers run stays close together behind it, and nothing is
collected, and no hole torn, in between. Measured with CPython 3.11: half a megabyte less for each machine.

What a terminal or a supervisor sends to the whole group is the coordinator's business, who ends everybody in
order: the fork server ignores it, and workers inherit that.
"""

# ruff: noqa: E402, F401  (the order is the purpose)
from __future__ import annotations

import gc

gc.disable()

import contextlib
import ctypes
import multiprocessing.popen_forkserver
import multiprocessing.shared_memory
import multiprocessing.spawn
import pathlib
import random
import signal
import traceback

import msgspec

import nodes.programs
import sim.engines.process.main
import sim.kernel.signals

for number in sim.kernel.signals.ENDING:
    signal.signal(number, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_UNBLOCK, sim.kernel.signals.ENDING)
gc.freeze()
gc.enable()
