"""Looking at processes from outside: one row each, the host's, and memory by turns when there are many."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sim.host import resources
from sim.host.resource_row import COORDINATOR, FIRST_CPU, HOST, Resources
from sim.host.resources import Sampler
from sim.recording import Recording, RecordingLayout
from sim.results.store.schemas import RESOURCES


@pytest.fixture
def own(tmp_path: Path) -> Sampler:
    sampler = Sampler(tmp_path)
    sampler.watch(COORDINATOR, "coordinator", os.getpid())
    return sampler


def machines(sampler):
    """The machines of a sample, without the CPUs."""
    return [row.machine for row in sampler.sample() if row.machine > FIRST_CPU]


def test_a_process_and_its_host(own):
    mine, host, *cpus = own.sample()
    assert (mine.machine, mine.name, mine.instrument_bytes) == (COORDINATOR, "coordinator", None)
    assert 0 < mine.uss_bytes <= mine.rss_bytes
    assert 0 < mine.pss_bytes <= mine.rss_bytes
    assert mine.descriptors >= 3
    assert mine.threads >= 1
    assert mine.faults_minor > 100
    assert mine.faults_major >= 0
    assert (host.machine, host.name, host.uss_bytes) == (HOST, "host", None)
    assert host.cpu_user_s > mine.cpu_user_s
    assert host.load_1 >= 0
    assert host.switches_voluntary > mine.switches_voluntary
    assert [cpu.name for cpu in cpus] == [f"CPU {FIRST_CPU - cpu.machine}" for cpu in cpus]
    assert len(cpus) >= 1
    for name in ("cpu_user_s", "cpu_system_s", "steal_s", "irq_s", "softirq_s"):
        assert sum(getattr(cpu, name) for cpu in cpus) == pytest.approx(getattr(host, name))
    (_, later, *_) = own.sample()
    assert later.sampling_s > host.sampling_s > 0
    assert later.time_ns > host.time_ns


def test_the_pages_of_recordings_are_the_instruments(tmp_path):
    """Pages that only this process has; those that the coordinator has read, too, are shared."""
    sampler = Sampler(tmp_path)
    sampler.watch(0, "machine", os.getpid())
    with Recording.create(
        tmp_path / "0.rec", RecordingLayout(1, 1, 100_000, 1), machine=0, sample_every=1
    ) as recording:
        (mine, *_) = sampler.sample()
        touched = mine.instrument_bytes
        for word in range(recording.layout.rings_at, recording.layout.rings_at + 200_000):
            recording.words[word] = 1
        (mine, *_) = sampler.sample()
        assert mine.instrument_bytes - touched >= 8 * 200_000 - 8192
        assert mine.uss_bytes > mine.instrument_bytes


def test_without_a_recording_the_instruments_share_is_not_known(tmp_path):
    sampler = Sampler(tmp_path)
    sampler.watch(0, "machine", os.getpid())
    (mine, *_) = sampler.sample()
    assert mine.uss_bytes > 0
    assert mine.instrument_bytes is None


def test_pages_that_another_process_has_too_are_not_private(tmp_path):
    sampler, layout = Sampler(tmp_path), RecordingLayout(1, 1, 100_000, 1)
    sampler.watch(0, "machine", os.getpid())
    with Recording.create(tmp_path / "0.rec", layout, machine=0, sample_every=1) as recording:
        for word in range(layout.rings_at, layout.rings_at + 200_000):
            recording.words[word] = 1
        (alone, *_) = sampler.sample()
        reads = "import mmap, os, sys; m = mmap.mmap(os.open(sys.argv[1], os.O_RDWR), 0); m[::4096]; print(); input()"
        command = [sys.executable, "-c", reads, str(recording.path)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
            assert child.stdout.readline() == b"\n"
            (shared, *_) = sampler.sample()
            child.kill()
    assert alone.instrument_bytes - shared.instrument_bytes >= 8 * 200_000 - 8192
    assert shared.instrument_bytes >= 0
    assert shared.uss_bytes > shared.instrument_bytes


def test_rows_are_those_of_the_table():
    assert list(Resources._fields) == RESOURCES.names


def test_the_memory_of_many_is_summed_up_by_turns(monkeypatch, tmp_path):
    monkeypatch.setattr(resources, "MEMORY_LOOKS", 2)
    sampler = Sampler(tmp_path)
    for machine in range(5):
        sampler.watch(machine, f"m-{machine}", os.getpid())
    looked = [[row.machine for row in sampler.sample() if row.uss_bytes is not None] for _ in range(5)]
    assert looked == [[0, 1], [2, 3], [0, 4], [1, 2], [3, 4]]
    assert all(row.rss_bytes > 0 and row.faults_minor is not None for row in sampler.sample() if row.machine >= 0)


def test_an_ended_process_is_left_out(own):
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        own.watch(0, "child", child.pid)
        assert machines(own) == [COORDINATOR, 0, HOST]
        child.kill()
    assert machines(own) == [COORDINATOR, HOST]
    own.watch(1, "never", child.pid)
    own.forget(COORDINATOR)
    assert machines(own) == [HOST]


def test_a_kernel_without_pressure_says_nothing(own, monkeypatch, tmp_path):
    assert resources._pressure_s("no such thing") is None
    (tmp_path / "cpu").write_text("some avg10=0.00 avg60=0.00 avg300=0.00 total=1500000\nfull avg10=0.00 total=7\n")
    monkeypatch.setattr(resources, "PRESSURE", tmp_path)
    (_, host, *_) = own.sample()
    assert (host.pressure_cpu_s, host.pressure_io_s) == (1.5, None)
