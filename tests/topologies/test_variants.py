"""``[machines.NAME.variant]``: read, checked with its place in the file, and part of the machine."""

from __future__ import annotations

import pytest

from topologies import TopologyError, loads

HEAD = '[machines.a]\nprogram = "idle"\n'


def test_a_variant_is_the_machine_s_profile() -> None:
    topology = loads(
        HEAD
        + "count = 2\n[machines.a.variant]\nrevision = 2\nmemory_wide = false\n"
        + "[machines.a.override.1]\nvariant = { fixed_vectors = 4 }\nvectors = 4\n"
    )
    assert [machine.profile for machine in topology.machines] == [
        "qemu-doorbell+revision=0x2,memory_wide=false",
        "qemu-doorbell+fixed_vectors=0x4",
    ]
    assert [machine.vectors for machine in topology.machines] == [1, 4]


@pytest.mark.parametrize(
    ("variant", "place", "expected"),
    [
        ("revison = 1", "machines.a.variant.revison", 'did you mean "revision"?'),
        ("revision = 256", "machines.a.variant.revision", "0x0 to 0xff"),
        ("msix = 1", "machines.a.variant.msix", "true or false"),
        ("memory_bar = 1", "machines.a.variant", "BARs of their own"),
        ('revision = "2"', "machines.a.variant", "expected"),
    ],
)
def test_a_variant_that_cannot_be_is_reported_where_it_stands(variant: str, place: str, expected: str) -> None:
    with pytest.raises(TopologyError) as error:
        loads(f"{HEAD}[machines.a.variant]\n{variant}\n")
    assert place in str(error.value)
    assert expected in str(error.value)


def test_a_real_qemu_has_no_variants() -> None:
    with pytest.raises(TopologyError, match="QEMU has no options for its cells"):
        loads(f'{HEAD}kind = "qemu"\nvariant = {{ revision = 2 }}\n')
