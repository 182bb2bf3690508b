"""topologies.qemu_check: what ends a real QEMU is said by `ivsim validate`."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from sim.cli import ivsim
from topologies import loads
from topologies.qemu_check import endangered

MACHINES = """
[machines.model]
count = 2
program = "idle"
[machines.real]
count = 2
kind = "qemu"
program = "idle"
[machines.linux]
kind = "qemu"
guest = { disk = "none.img" }
"""


def entry(at_s: float, do: str, machines: str, rest: str = "") -> str:
    return f'[[timeline]]\nat_s = {at_s}\ndo = "{do}"\nmachines = "{machines}"\n{rest}\n'


@pytest.mark.parametrize(
    ("timeline", "ended"),
    [
        (entry(1, "unplug", "real-0"), []),
        (entry(1, "leave", "model-0") + entry(2, "unplug", "real"), [("unplug", ("real-0", "real-1"), "device_del")]),
        (entry(1, "leave", "model-0") + entry(0.5, "unplug", "real-0"), []),
        (entry(1, "kill", "model-0") + entry(2, "unplug", "model-1"), []),
        (entry(1, "unplug", "real"), [("unplug", ("real-1",), "device_del")]),
        (entry(1, "leave", "model-0") + entry(2, "unplug", "linux"), [("unplug", ("linux",), "it is not done")]),
        (entry(1, "leave", "linux"), []),
        (entry(1, "leave", "model-0") + entry(2, "leave", "linux"), [("leave", ("linux",), "its QEMU is ended")]),
        (entry(1, "leave", "model-0") + entry(2, "leave", "real"), []),
        (entry(1, "garble", "real", 'message = "half_message"'), []),
        (entry(1, "garble", "linux", 'message = "half_message"'), [("garble", ("linux",), "from its middle")]),
        (entry(1, "garble", "linux", 'message = "left_unknown"'), []),
        (
            entry(1, "garble", "linux", 'message = "left_unknown"\nrepeat = 2\nperiod_s = 1'),
            [("garble", ("linux",), "leaves twice")],
        ),
    ],
)
def test_what_ends_a_qemu_is_found(timeline: str, ended: list[tuple[str, tuple[str, ...], str]]) -> None:
    found = endangered(loads(MACHINES + timeline))
    assert [(each.do, each.machines) for each in found] == [(do, machines) for do, machines, _ in ended]
    assert all(words in each.reason for each, (_, _, words) in zip(found, ended, strict=True))


def test_validate_notes_it(tmp_path: Path) -> None:
    file = tmp_path / "ends.toml"
    file.write_text(MACHINES + entry(1, "leave", "model-0") + entry(2, "unplug", "real-1"))
    done = CliRunner().invoke(ivsim, ["validate", str(file)])
    assert done.exit_code == 0
    assert "unplug real-1: its QEMU is ended: device_del aborts one" in done.stdout
    done = CliRunner().invoke(ivsim, ["validate", str(file), "--json"])
    assert '"endangered": [' in done.stdout
