"""examples/: each file runs and prints what its .out file shows; the ring buffer is tested as a protocol."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sim
from examples import ring_buffer
from nodes.errors import GuestError
from tests.fabric import Fabric
from tests.system.transcripts import ROOT, compare, execute, sessions
from topologies import load

EXAMPLES = ROOT / "examples"
TRANSCRIPTS = {command: output for path in EXAMPLES.glob("*.out") for command, output in sessions(path.read_text())}
SEEDS = st.integers(0, (1 << 32) - 1)


@pytest.mark.parametrize("command", TRANSCRIPTS)
def test_an_example_prints_what_its_out_file_shows(command: str, tmp_path: Path) -> None:
    compare(command, TRANSCRIPTS[command], execute(command, tmp_path))


def test_every_example_is_run() -> None:
    commands = " ".join(TRANSCRIPTS)
    for path in EXAMPLES.iterdir():
        assert path.suffix in (".out", ".pyc") or path.is_dir() or f"examples/{path.name}" in commands, path


def ring_buffer_on_fabric(seed, *, offset=0, size_bytes=4096, rate_hz=10_000.0, spin_us=50.0, slower=1):
    fabric = Fabric(seed, memory_bytes=8192, slower=slower)
    where = {"offset": offset, "size_bytes": size_bytes}
    consumer = functools.partial(ring_buffer.consumer, spin_us=spin_us, **where)
    producer = functools.partial(ring_buffer.producer, to=[0], rate_hz=rate_hz, **where)
    machines = [fabric.join(program, start=False) for program in (consumer, producer)]
    fabric.settle()
    for machine in machines:
        machine.start()
    return fabric, *machines


def slots_of(size_bytes):
    return (size_bytes // 8 - ring_buffer.SLOTS) // ring_buffer.SLOT


@settings(max_examples=30)
@given(
    SEEDS,
    st.sampled_from([0, 8, 4096]),
    st.sampled_from([256, 512, 4096]),
    st.sampled_from([5_000.0, 100_000.0, 1_000_000.0]),
    st.sampled_from([0.0, 50.0]),
)
def test_the_ring_buffer_carries_every_message_once_and_whole(seed, offset, size_bytes, rate_hz, spin_us):
    fabric, consumer, producer = ring_buffer_on_fabric(
        seed, offset=offset, size_bytes=size_bytes, rate_hz=rate_hz, spin_us=spin_us
    )
    fabric.run_for(0.005)
    fabric.check_balance()
    sent, taken = producer.vm.guest.statistics, consumer.vm.guest.statistics
    assert taken["messages"] > 20
    assert 0 <= sent["messages"] - taken["messages"] <= slots_of(size_bytes)
    assert taken["wrong_checksums"] == 0
    assert taken["bytes"] == ring_buffer.MESSAGE_BYTES * taken["messages"]
    assert sent["doorbells"] + sent["doorbells_saved"] == sent["messages"]
    assert sent["doorbells"] == len(producer.ledger.samples)


def test_a_ring_buffer_that_is_never_empty_needs_no_doorbells():
    _, busy = run_at(100_000.0)
    _, calm = run_at(1_000.0)
    assert busy["doorbells"] < busy["messages"] / 10
    assert calm["doorbells"] == calm["messages"]


def run_at(rate_hz):
    fabric, consumer, producer = ring_buffer_on_fabric(3, rate_hz=rate_hz)
    fabric.run_for(0.02)
    return consumer.vm.guest.statistics, producer.vm.guest.statistics


def test_a_message_that_is_damaged_is_found():
    fabric, consumer, _ = ring_buffer_on_fabric(3)
    fabric.run_for(0.001)
    words = memoryview(fabric.memory).cast("Q")
    taken = consumer.vm.guest.statistics["messages"]
    consumer.present = False  # the consumer is stopped while a byte of a message changes
    fabric.run_for(0.001)
    assert taken < words[ring_buffer.PRODUCED] < slots_of(4096)
    words[ring_buffer.SLOTS + taken * ring_buffer.SLOT + 3] ^= 1
    consumer.present = True
    consumer._expire(consumer._turn)
    fabric.run_for(0.001)
    assert consumer.vm.guest.statistics["wrong_checksums"] == 1


def test_a_producer_finds_the_ring_buffer_full_and_goes_on_later():
    fabric, consumer, producer = ring_buffer_on_fabric(5, size_bytes=512, rate_hz=1_000_000.0)
    fabric.run_for(0.005)
    assert producer.vm.guest.statistics["found_full"] > 0
    assert consumer.vm.guest.statistics["messages"] > 50


@pytest.mark.parametrize(("offset", "size_bytes"), [(0, 248), (4, 4096), (8192, 256), (0, 16384)])
def test_a_ring_buffer_that_does_not_fit_is_refused(offset, size_bytes):
    with pytest.raises(GuestError, match="expected a ring buffer of at least 256 bytes"):
        ring_buffer_on_fabric(1, offset=offset, size_bytes=size_bytes)


def test_the_ring_buffer_between_real_processes(tmp_path: Path) -> None:
    files = [EXAMPLES / "ring_buffer.py"]
    topology = load(EXAMPLES / "ring_buffer.toml", {"run.duration_s": "0.5"}, files)
    run = sim.run(topology, runs=tmp_path, resources_every_s=0)  # sampling processes is slow on a busy host
    assert (run.status, run.reason, run.balanced) == ("finished", "", True)
    given = {event["machine"]: event["values"] for event in run.events() if event["kind"] == "statistics"}
    sent, taken = given["producer"], given["consumer"]
    assert 0 < taken["messages"] <= sent["messages"] <= 1000
    assert taken["wrong_checksums"] == 0
    assert sent["doorbells"] + sent["doorbells_saved"] == sent["messages"]
    assert run.summary["groups"]["producer"]["sent"] == sent["doorbells"]
