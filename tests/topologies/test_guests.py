"""Machines that boot an image of their own, as a file declares them."""

from __future__ import annotations

from pathlib import Path

import pytest

from topologies import TopologyError, load, loads

GUEST = '[machines.mine]\nkind = "qemu"\n[machines.mine.guest]\nkernel = "image"\n'


def test_files_are_relative_to_the_topology(tmp_path: Path) -> None:
    (tmp_path / "t.toml").write_text(GUEST)
    (machine,) = load(tmp_path / "t.toml").machines
    assert machine.guest is not None
    assert (machine.guest.files, machine.program) == ((str(tmp_path / "image"),), "guest")


def test_a_default_program_is_that_of_the_other_machines() -> None:
    topology = loads(GUEST + '[machines.other]\n[defaults]\nprogram = "idle"\n')
    assert [machine.program for machine in topology.machines] == ["guest", "idle"]


@pytest.mark.parametrize(
    ("text", "key", "got"),
    [
        (GUEST.replace('kind = "qemu"', ""), "machines.mine.kind", '"simulated"'),
        (GUEST.replace("kernel", "append"), "machines.mine.guest", "none of them"),
        (GUEST + 'ready_when = "("\n', "machines.mine.guest.ready_when", '"("'),
        (GUEST + "buses = ['a', 'b']\n", "machines.mine.guest.buses", "2"),
        (GUEST + "[run]\nengine = 'virtual'\n", "machines.mine.guest", "one"),
        (GUEST.replace("qemu", 'qemu"\nprogram = "idle'), "machines.mine.program", '"idle"'),
        (GUEST.replace("qemu", 'qemu"\nprofile = "qemu-plain'), "machines.mine.profile", '"qemu-plain"'),
        (GUEST + "[[expect]]\nconsole = '('\n", "expect[0].console", '"("'),
        (GUEST + "[[expect]]\nconsole = 'a'\nthat = 'rung > 0'\n", "expect[0].console", "rung"),
        (GUEST + "[[expect]]\n", "expect[0].that", "nothing"),
    ],
)
def test_what_cannot_be_is_reported_where_it_stands(text: str, key: str, got: str) -> None:
    with pytest.raises(TopologyError) as caught:
        loads(text)
    assert [problem.got.startswith(got) for problem in caught.value.problems if problem.key == key] == [True], str(
        caught.value
    )
