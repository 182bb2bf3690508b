"""Frequent looks: what they read of a process, of CPUs, of other processes and of cgroups."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from sim.host.process_looks import (
    LOOK_DESCRIPTORS,
    OtherProcesses,
    ProcessLook,
    ProcessLooks,
    Throttling,
    look_at_cpus,
    page_fault_ns,
)

WAITS = [sys.executable, "-c", "print(flush=True); input()"]


def look_until(looks: ProcessLooks, state: str) -> ProcessLook:
    """The first look at process 1 in that state."""
    while (found := looks.look()[1]).state != state:
        time.sleep(0.001)
    return found


def test_a_process_sleeps_and_is_stopped_and_is_gone() -> None:
    with (
        subprocess.Popen(WAITS, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child,
        contextlib.closing(ProcessLooks(time.monotonic_ns)) as looks,
    ):
        assert child.stdout is not None
        child.stdout.readline()
        before = len(os.listdir("/proc/self/fd"))
        looks.watch(1, child.pid)
        assert len(os.listdir("/proc/self/fd")) == before + LOOK_DESCRIPTORS
        # A process that is about to sleep has the state already, and is not in a function yet.
        while not (asleep := look_until(looks, "S")).blocked_in and not os.geteuid():
            time.sleep(0.001)
        assert asleep.ran_ns > 0 < asleep.faults
        assert asleep.memory_bytes > 1 << 20
        child.send_signal(signal.SIGSTOP)
        assert look_until(looks, "T").blocked_in == ""
        child.send_signal(signal.SIGCONT)
        looks.watch(1, child.pid)  # once more: nothing changes
        child.kill()
        child.wait()
        assert looks.look() == {} == looks.pids()
        looks.watch(1, child.pid)
        assert looks.look() == {}


def test_a_process_that_computes_runs() -> None:
    with contextlib.closing(ProcessLooks(time.monotonic_ns)) as looks:
        looks.watch(1, os.getpid())
        first = looks.look()[1]
        while (last := looks.look()[1]).ran_ns - first.ran_ns < 20_000_000:
            pass
        assert last.state == "R"
        assert last.time_ns > first.time_ns
        looks.watch(1, None)
        assert looks.look() == {}


def test_the_cpus_of_this_host() -> None:
    rows = look_at_cpus(5)
    assert [row.cpu for row in rows] == sorted({row.cpu for row in rows})
    assert {row.time_ns for row in rows} == {5}
    assert all(row.user_ns + row.system_ns + row.idle_ns > 0 for row in rows)


def test_a_line_of_a_cpu_is_read_by_its_columns(tmp_path: Path) -> None:
    (tmp_path / "stat").write_text("cpu  9 9 9 9 9 9 9 9 9 9\ncpu3 1 2 3 4 5 6 7 8 9 10\nintr 1 0\n")
    (row,) = look_at_cpus(1, tmp_path)
    ten_ms = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
    assert row == (1, 3, 3 * ten_ms, 3 * ten_ms, 9 * ten_ms, 6 * ten_ms, 7 * ten_ms, 8 * ten_ms)


def test_other_processes_by_what_they_ran(tmp_path: Path) -> None:
    def process(pid: int, ran_ns: int) -> None:
        (tmp_path / str(pid)).mkdir(exist_ok=True)
        (tmp_path / str(pid) / "schedstat").write_text(f"{ran_ns} 0 1\n")
        (tmp_path / str(pid) / "stat").write_text(f"{pid} (a b) c{pid}) R " + "0 " * 35 + "4 0\n")

    (tmp_path / "meminfo").write_text("")
    now = iter((100, 200))
    others = OtherProcesses(lambda: next(now), tmp_path)
    for pid in (1, 2, 3):
        process(pid, 1000)
    others.look(1000)
    process(2, 1500)
    process(3, 9000)
    process(4, 200)
    others.look(1000)
    assert others.ran_since(150, {3}) == [(2, "a b) c2", 4, 500, False), (4, "a b) c4", 4, 200, False)]


def test_the_quota_of_a_cgroup(tmp_path: Path) -> None:
    proc, two, one = tmp_path / "proc", tmp_path / "two", tmp_path / "one"
    for pid, text in ((7, "0::/a/b\n"), (8, "5:cpu,cpuacct:/a\n0::/\n"), (9, "0::/nowhere\n")):
        (proc / str(pid)).mkdir(parents=True)
        (proc / str(pid) / "cgroup").write_text(text)
    for place in (two, two / "a", two / "a" / "b"):
        place.mkdir()
        (place / "cpu.stat").write_text("usage_usec 1\nnr_periods 3\nnr_throttled 2\nthrottled_usec 5\n")
    (one / "cpu" / "a").mkdir(parents=True)
    (one / "cpu" / "a" / "cpu.stat").write_text("nr_periods 3\nnr_throttled 2\nthrottled_time 5\n")
    assert Throttling(proc, two).groups_of(7) == [place / "cpu.stat" for place in (two / "a" / "b", two / "a", two)]
    assert Throttling(proc, one).groups_of(8) == [one / "cpu" / "a" / "cpu.stat"]
    assert Throttling.throttled(two / "a" / "cpu.stat") == (2, 5000)
    assert Throttling.throttled(one / "cpu" / "a" / "cpu.stat") == (2, 5)
    assert Throttling.throttled(one / "cpu.stat") == (0, 0)
    assert Throttling(proc, one).groups_of(6) == []


def test_a_page_fault_costs_something() -> None:
    assert 10 < page_fault_ns() < 1_000_000
