"""Loads that reach no machine, as far as the file tells."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from sim.cli import ivsim
from topologies import loads
from topologies.ringing_check import open_loops, unreachable

MUTE = "[machines.mute]\nprofile = 'qemu-plain'\nvectors = 0\nprogram = 'idle'\n"


@pytest.mark.parametrize(
    ("text", "notes"),
    [
        (
            MUTE + "[machines.tx]\nprogram = 'storm'\nparameters = { to = 'mute' }",
            ["tx can ring no machine by its parameter to: mute has no interrupts"],
        ),
        (
            MUTE + "count = 3\n[machines.tx]\ncount = 4\nprogram = 'storm'\nparameters = { to = 'mute' }",
            ["tx-0 ... tx-3 (4) can ring no machine by its parameter to: mute-0, mute-1, mute-2 have no interrupts"],
        ),
        (MUTE + "[machines.tx]\ncount = 2\nprogram = 'storm'\nparameters = { to = ['mute', 'tx'] }", []),
        (
            "[machines.tx]\nprofile = 'qemu-plain'\nvectors = 0\nprogram = 'storm'\n[machines.rx]\nprogram = 'idle'",
            ["tx can ring no machine by its parameter to: its device, qemu-plain, has no doorbells"],
        ),
        ("[machines.tx]\nprogram = 'storm'", []),  # "others": foreign peers may come
        ("[machines.tx]\nprogram = 'storm'\nparameters = { to = 'all' }", []),
        ("[machines.tx]\ncount = 3\nprogram = 'storm'\nparameters = { to = { pairs = 'tx' } }", []),
        (MUTE, []),
    ],
)
def test_loads_that_can_ring_no_machine(text: str, notes: list[str]) -> None:
    assert list(map(str, unreachable(loads(text)))) == notes


def test_open_loops_have_a_rate_or_a_trace() -> None:
    text = (
        "[machines.a]\ncount = 2\nprogram = 'storm'\nparameters = { rate_hz = 5 }\n"
        "override.1 = { program = 'idle' }\n[machines.b]\nprogram = 'storm'\n"
    )
    assert {group: len(machines) for group, machines in open_loops(loads(text)).items()} == {"a": 1}


def test_validate_and_dry_run_note_it(tmp_path: Path) -> None:
    file = tmp_path / "mute.toml"
    file.write_text(MUTE + "[machines.tx]\nprogram = 'storm'\nparameters = { to = 'mute' }")
    for command in (["validate", str(file)], ["run", "--dry-run", "--runs", str(tmp_path), str(file)]):
        assert "note: tx can ring no machine" in CliRunner().invoke(ivsim, command).output
    result = CliRunner().invoke(ivsim, ["validate", "--json", str(file)])
    assert json.loads(result.output)["unreachable"] == [
        {"machines": ["tx"], "parameter": "to", "reason": "mute has no interrupts"}
    ]
