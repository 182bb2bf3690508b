"""Domains of ivshmem version 2: their keys, their machines' profiles, and what is refused."""

from __future__ import annotations

import pytest

from topologies import loads
from topologies.language.problems import TopologyError

DOMAIN = """
[domains.cell]
version = 2
max_peers = {peers}
size = "1M"
output_size = "64K"
protocol = 0x4001
"""
MACHINES = """
[machines.a]
count = 2
vectors = 2
program = "idle"
"""


def problems(text):
    with pytest.raises(TopologyError) as caught:
        loads(text)
    return str(caught.value)


def test_a_domain_of_version_2():
    topology = loads(DOMAIN.format(peers=3) + MACHINES)
    (domain,) = topology.domains
    assert (domain.version, domain.max_peers, domain.output_size_bytes, domain.protocol) == (2, 3, 65536, 0x4001)
    assert domain.numbers(2) == (3, 2, 0x4001, 65536)
    assert [machine.profile for machine in topology.machines] == ["qemu-v2"] * 2


def test_a_domain_is_of_version_1_unless_told():
    (domain,) = loads('[domains.left]\nsize = "1M"\n' + MACHINES).domains
    assert domain.version == 1
    assert domain.numbers(2) is None


def test_a_machine_in_both_has_a_device_of_each():
    text = DOMAIN.format(peers=2) + '[domains.old]\nsize = "1M"\n' + MACHINES + 'domains = ["old", "cell"]\n'
    machine = loads(text).machines[0]
    assert [machine.profile_in(name) for name in machine.domains] == ["qemu-doorbell", "qemu-v2"]
    assert machine.profile == "qemu-doorbell"
    machine = loads(text + 'profile = "jailhouse-v2"\n').machines[0]
    assert [machine.profile_in(name) for name in machine.domains] == ["qemu-doorbell", "jailhouse-v2"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[domains.old]\nsize = "1M"\nmax_peers = 3\n' + MACHINES, "no max_peers in a domain of version 1"),
        ('[domains.old]\nsize = "1M"\n' + MACHINES + 'profile = "qemu-v2"', "one of the profiles qemu-doorbell"),
        (DOMAIN.format(peers=2) + MACHINES + 'profile = "acrn"', "one of the profiles qemu-v2"),
        (DOMAIN.format(peers=2) + 'dialect = "legacy"' + MACHINES, "no dialect in a domain of version 2"),
        (DOMAIN.format(peers=16) + MACHINES, "sections that fit into the memory"),
        (DOMAIN.format(peers=2).replace("64K", "1000") + MACHINES, "whole pages"),
        (DOMAIN.format(peers=3).replace("0x4001", "0x8003") + MACHINES, "2, for the virtio protocol 0x8003"),
        (DOMAIN.format(peers=2) + MACHINES.replace("count = 2", "count = 3"), "at least 3, the number of its machines"),
        (DOMAIN.format(peers=13) + MACHINES + 'profile = "jailhouse-v2"', "at most 12, as jailhouse-v2 has"),
        (DOMAIN.format(peers=2) + MACHINES + 'kind = "qemu"', '"simulated", in a domain of version 2'),
        (DOMAIN.format(peers=2) + MACHINES + 'role = "master"', "role"),
        (
            DOMAIN.format(peers=4) + MACHINES + '[machines.b]\nvectors = 1\nprogram = "idle"\n',
            "2, as all machines of cell have",
        ),
    ],
)
def test_what_is_refused(text, words):
    assert words in problems(text)
