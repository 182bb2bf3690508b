"""sim.access: what a foreign client needs to join a run is known before the run, and is what the run then has."""

from __future__ import annotations

import os
from pathlib import Path

import sim
from sim.access import Access, access_to, name_memories, qemu_lines, shown
from sim.runner import Begun
from sim.telemetry import Subscriber
from topologies.loader import loads

TOPOLOGY = """
[run]
duration_s = 0.5
warmup_s = 0.0
[domains.left]
size = "64K"
[domains.right]
size = "1M"
kind = "memfd"
[domains.named]
name = "{name}"
[machines.a]
domains = ["left"]
program = "idle"
[machines.b]
domains = ["right"]
program = "idle"
[machines.c]
domains = ["named"]
program = "idle"
"""


def test_each_domain_has_its_socket_and_each_shared_memory_a_name() -> None:
    topology = name_memories(loads(TOPOLOGY.format(name="mine")))
    left, right, named = access_to(topology, Path("/x/s"))
    assert left.memory is not None
    assert left.memory.startswith(f"ivsim-{os.getpid()}-")
    assert left == Access("left", "/x/s", left.memory, 64 << 10)
    assert right == Access("right", "/x/s.right", None, 1 << 20)
    assert named == Access("named", "/x/s.named", "mine", 4 << 20)
    assert name_memories(topology) == topology
    assert str(left) == f"domain left: socket /x/s, memory /dev/shm/{left.memory}, 65536 bytes"
    assert str(right) == "domain right: socket /x/s.right, memory a memfd, 1048576 bytes"


def test_the_options_of_a_qemu_that_joins() -> None:
    text = TOPOLOGY.format(name="mine").replace('domains = ["right"]', 'domains = ["right"]\nvectors = 3')
    topology = name_memories(loads(text.replace('name = "mine"', 'dialect = "legacy"')))
    left, right = qemu_lines(topology, access_to(topology, Path("/x/s")))  # no QEMU of today speaks as in 2012
    device = "-device ivshmem-doorbell,chardev=ivshmem,vectors="
    assert left == f"for QEMU in left: -chardev socket,path=/x/s,id=ivshmem {device}1"
    assert right == f"for QEMU in right: -chardev socket,path=/x/s.right,id=ivshmem {device}3"
    one = loads('[machines.a]\nprogram = "idle"\nvectors = 2')
    assert qemu_lines(one, access_to(one, Path("/x,y"))) == [
        f"for QEMU: -chardev socket,path=/x,,y,id=ivshmem {device}2"
    ]


def test_a_long_list_says_how_much_is_left_out() -> None:
    accesses = [Access(f"d{number}", "s", "m", 4096) for number in range(6)]
    assert len(shown(accesses)) == 5
    assert shown(accesses)[-1] == "and 2 more domains (manifest.json)"
    assert len(shown(accesses[:4])) == 4


def test_it_is_told_while_the_run_lasts_and_is_true(tmp_path: Path, short_path: Path) -> None:
    """In the hook, in the telemetry, in the manifest; what is told exists for as long as the run lasts."""
    name = f"ivt-{os.getpid()}-access"
    told: list[tuple[Access, ...]] = []
    found: list[bool] = []

    def begin(begun: Begun) -> None:
        told.append(tuple(begun.access))
        found.extend(Path(each.socket).is_socket() for each in begun.access)
        found.extend(Path("/dev/shm", each.memory).is_file() for each in begun.access if each.memory)
        subscribers.append(Subscriber(begun.telemetry))

    subscribers: list[Subscriber] = []
    topology = loads(TOPOLOGY.format(name=name))
    run = sim.run(topology, runs=tmp_path, socket_path=short_path / "s", on_begin=begin)
    with subscribers[0] as subscriber:
        snapshot = subscriber.receive(10.0)
        assert snapshot is not None
        told.append(snapshot.access)
    told.append(tuple(sim.open(run.path).origin.access))
    assert told[0] == told[1] == told[2]
    assert found == [True] * 5
    assert [each.memory for each in told[0]][1:] == [None, name]
    assert not Path("/dev/shm", name).exists()
