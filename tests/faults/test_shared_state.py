"""Faults of what peers share: F3, F7 and F9 of tests/fault_matrix.py."""

from __future__ import annotations

import errno
import fcntl
import os
import random
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import sim
from sim.kernel.eventfd import COUNTER_MAX, EventFd, signal
from sim.kernel.memory import Region
from tests.faults.processes import wait_until

FULL = """
[run]
duration_s = {duration_s}
warmup_s = 0.0
[machines.stuck]
program = "idle"
[machines.sender]
count = 2
program = "storm"
parameters = {{ to = "stuck", rate_hz = 5000.0 }}
[[timeline]]
at_s = 0.1
do = "fill"
machines = "stuck"
[[expect]]
that = "refused > 0"
"""


@pytest.mark.fault("F3", full=10_000, sample=200, unit="doorbells at a full counter")
def test_a_full_counter_refuses_and_never_blocks(fault_count: int) -> None:
    """A peer may clear the non-blocking flag of the shared description: adopting the descriptor sets it again."""
    eventfd = EventFd.create()
    theirs = EventFd.adopt(os.dup(eventfd.descriptor))
    try:
        assert eventfd.add(COUNTER_MAX)
        for _ in range(fault_count):
            with pytest.raises(BlockingIOError):
                signal(eventfd.descriptor, 1)
        fcntl.fcntl(eventfd.descriptor, fcntl.F_SETFL, fcntl.fcntl(eventfd.descriptor, fcntl.F_GETFL) & ~os.O_NONBLOCK)
        again = EventFd.adopt(os.dup(eventfd.descriptor))
        assert not again.add(1)
        again.close()
        assert theirs.take() == COUNTER_MAX
        signal(eventfd.descriptor, 1)
        assert theirs.take() == 1
    finally:
        theirs.close()
        eventfd.close()


@pytest.mark.fault("F3", full=20, sample=1, unit="runs with a full counter")
def test_senders_go_on_beside_a_full_counter(fault_count: int, tmp_path: Path) -> None:
    """What is refused is counted, and the account balances."""
    topology = tmp_path / "full.toml"
    topology.write_text(FULL.format(duration_s=0.4))
    for cycle in range(fault_count):
        result = sim.run(topology, runs=tmp_path / str(cycle))
        summary = result.summary
        assert result.status == "finished"
        assert summary["refused"] > 0
        assert summary["rung"] == summary["delivered"] + summary["pending"] + summary["refused"]


@pytest.mark.fault("F7", full=1000, sample=20, unit="attempts to resize")
def test_sealed_memory_cannot_be_resized(seed: int, fault_count: int) -> None:
    rng, region = random.Random(seed), Region.create(1 << 20, kind="memfd")
    try:
        for _ in range(fault_count):
            with pytest.raises(OSError, match="not permitted") as refused:
                os.ftruncate(region.descriptor, rng.choice((0, 1, 4096, (1 << 20) - 1, (1 << 20) + 1, 1 << 30)))
            assert refused.value.errno == errno.EPERM
        assert os.fstat(region.descriptor).st_size == 1 << 20
    finally:
        region.close()


@pytest.mark.fault("F7", full=20, sample=1, unit="segments made smaller in a run")
def test_a_named_segment_that_is_made_smaller_is_told(fault_count: int, tmp_path: Path) -> None:
    """SIGBUS is explained: the memory became smaller, from what to what."""
    topology = tmp_path / "t.toml"
    name = f"ivt-{os.getpid()}"
    topology.write_text(f'[run]\nduration_s = 20.0\n[memory]\nname = "{name}"\n'
                        '[machines.a]\ncount = 2\nprogram = "poll"\n')  # fmt: skip
    for cycle in range(fault_count):
        runs = tmp_path / str(cycle)

        def shrink(runs: Path = runs) -> None:
            wait_until(
                lambda: any('"ready"' in file.read_text() for file in runs.glob("*/events.jsonl")), "it is ready"
            )
            os.truncate(f"/dev/shm/{name}", 0)

        thread = threading.Thread(target=shrink)
        thread.start()
        result = sim.run(topology, runs=runs)
        thread.join()
        assert result.status == "failed"
        assert "smaller, from 4194304 to 0 bytes" in result.reason, result.reason


FOREIGN_CLIENT = """
import mmap, os, sys
from sim.kernel.memory import Region
region = Region.open(sys.argv[1], int(sys.argv[2]))
with mmap.mmap(region.descriptor, region.size_bytes) as mapping:
    mapping[0] += 1
region.close()
"""


@pytest.mark.fault("F9", full=100, sample=2, unit="processes that attach and end")
def test_a_process_that_attaches_never_removes_the_segment(fault_count: int) -> None:
    region = Region.create(1 << 16)
    try:
        for count in range(1, fault_count + 1):
            command = [sys.executable, "-W", "error", "-c", FOREIGN_CLIENT, str(region.name), str(region.size_bytes)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            assert (done.returncode, done.stderr) == (0, "")
            assert os.pread(region.descriptor, 1, 0) == bytes([count % 256])
            assert os.path.exists(f"/dev/shm/{region.name}")
    finally:
        region.close()
    assert not os.path.exists(f"/dev/shm/{region.name}")
