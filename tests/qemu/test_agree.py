"""`ivsim agree`: the included topologies, simulated and with real QEMUs, have no difference that nothing explains.

A sample is drawn by the session's seed. AGREE_SEEDS=20 runs all of them with so many seeds.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from nodes.errors import UsageError
from sim.cli import ivsim
from sim.exit_codes import MISSED
from sim.oracle.agree import Pair, agree, pair
from topologies import load, shipped
from topologies.actions import Migrate

pytestmark = pytest.mark.qemu

SEEDS = int(os.environ.get("AGREE_SEEDS", "0"))
SHORT: dict[str, object] = {"run.duration_s": 0.5, "run.warmup_s": 0.1}
SAMPLED = ("doorbell_storm", "fan_in", "ring", "storm_64")
OPTIONS = ["--machines", "2", *(word for key, value in SHORT.items() for word in ("--set", f"{key}={value}"))]


WHY_NOT = {
    "a guest of its own has nothing to be simulated by": lambda topology: any(
        machine.guest is not None for machine in topology.machines
    ),
    "no host alone runs all of its domains": lambda topology: any(domain.host for domain in topology.domains),
    "no QEMU has version 2 of the device": lambda topology: any(domain.version == 2 for domain in topology.domains),
    "no QEMU since 2.5 runs before it has its memory": lambda topology: any(
        isinstance(entry.action, Migrate) and entry.action.fault == "late_memory" for entry in topology.timeline
    ),
}
"""Why an included topology is not compared."""


def compared(name: str, overrides: dict[str, object] | None = None) -> Pair | None:
    """Both sides of an included topology: with its own profiles, or with today's where it has no machine of these.

    What does not depend on how long it takes is short.
    """
    topology = load(name)
    if any(why(topology) for why in WHY_NOT.values()):
        return None
    changes = overrides or {}
    if not topology.timeline and not topology.has_own_phases:
        changes = SHORT | changes
    try:
        return pair(name, changes)
    except UsageError:
        return pair(name, changes, every_profile=True)


def test_an_included_topology_is_compared_or_it_is_said_why_not() -> None:
    # Those that are large are of the other engine, and take long to read.
    names = [name for name, _ in shipped() if not name.startswith("virtual_")]
    left_out = {name for name in names if compared(name) is None}
    of_version_2 = {"v2_console", "v2_ethernet", "v2_peer_dies", "v2_states"}
    assert left_out == {"linux_guest", "migration_abort", "two_hosts", *of_version_2}


def test_a_sample_of_the_included_topologies_agrees(seed: int, tmp_path: Path) -> None:
    name = random.Random(seed).choice(SAMPLED)
    arguments = ["agree", name, *OPTIONS, "--seed", str(seed % 1000), "--runs", str(tmp_path), "--json"]
    done = CliRunner().invoke(ivsim, arguments)
    assert done.exit_code == 0, done.output
    (line,) = done.stdout.splitlines()
    found = json.loads(line)
    assert found["machines"]
    assert found["edges"] > 0
    assert all(each["explained"] for each in found["differences"])


@pytest.mark.timeout(7200)
@pytest.mark.parametrize("name", [name for name, _ in shipped()] if SEEDS else [])
def test_every_included_topology_agrees(name: str, tmp_path: Path) -> None:
    for seed in range(SEEDS):
        both = compared(name, {"run.sample_every": 1, "seed": seed})
        if both is None:
            return
        found = agree(both, runs=tmp_path)
        print(
            f"{name}, seed {seed}: {found.edges} edges, {found.doorbells} doorbells, {len(found.differences)} explained"
        )
        assert found.agrees, (seed, [str(each) for each in found.differences])
        for run in (found.simulated, found.real):
            shutil.rmtree(run)


BROKEN = '''
"""A program that rings another vector on a real QEMU than in a model."""
import sim.engines.qemu.device
from nodes.guest import OTHERS, Peers

def differs(guest, *, to: Peers = OTHERS):
    real = isinstance(guest.device, sim.engines.qemu.device.QemuIvshmem)
    yield guest.clock() + 1_000_000
    for peer in to:
        guest.ring(peer, int(real))
    yield None
'''
DIFFERS = """
[machines.one]
vectors = 2
program = "broken:differs"
[machines.other]
vectors = 2
program = "idle"
"""


def test_a_difference_that_nothing_explains_has_an_exit_code(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text(BROKEN)
    (tmp_path / "differs.toml").write_text(DIFFERS)
    arguments = ["agree", str(tmp_path / "differs.toml"), "--program", str(tmp_path / "broken.py")]
    done = CliRunner().invoke(ivsim, [*arguments, *OPTIONS, "--runs", str(tmp_path)])
    assert done.exit_code == MISSED, done.output
    assert "rings, one -> other (ID 1), vector 0: simulated 1, real 0: NOT EXPLAINED" in done.stdout


def test_a_topology_without_a_machine_that_can_be_real_is_refused() -> None:
    with pytest.raises(UsageError, match="--every-profile makes it real"):
        pair("legacy_2012")
