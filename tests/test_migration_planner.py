"""`ivsim migrate --plan`: verdicts in the device's words, an order that can be carried out, and what is lost."""

from __future__ import annotations

import contextlib
import json
import re
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from nodes.device.ivshmem import Ivshmem
from nodes.device.migration import Blocker, Blockers, MigrationError
from nodes.device.profiles import PROFILES
from nodes.errors import UsageError
from sim.commands.migrate import migrate
from tests.test_ivshmem_state import PEER_MODE
from topologies import Domain, Group, Machine, Memory, RunSettings, Topology, load, loads
from topologies.planner import MigrationPlan, PlannedMachine, Step, plan_migration, several

MASTER = {"machines.receiver.role": "master"}
STATE_BYTES = 1 + 16 + 8 + 4 + 256 + 16 + 4 * 16 + 1 + 8  # of a doorbell device with four vectors


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(click.Group(commands=[migrate]), ["migrate", *arguments])


def by_name(plan: MigrationPlan) -> dict[str, PlannedMachine]:
    return {machine.name: machine for machine in plan.machines}


def test_peers_let_go_the_master_moves_the_peers_come_back() -> None:
    plan = plan_migration(load("fan_in", MASTER))
    senders = tuple(f"sender-{number}" for number in range(8))
    assert plan.steps == (
        Step("detach", senders, "main"),
        Step("move", ("receiver",), memory_bytes=4 << 20, state_bytes=STATE_BYTES),
        Step("move", senders),
        Step("reattach", senders, "main", tuple(range(1, 9))),
    )
    assert (plan.memory_bytes, plan.state_bytes) == (4 << 20, STATE_BYTES)
    machines = by_name(plan)
    assert (machines["receiver"].fate, machines["receiver"].refusal) == ("moves", "")
    assert machines["sender-3"].fate == "moves without its peers' devices"
    assert machines["sender-3"].refusal == PEER_MODE
    assert machines["sender-3"].blockers == (PEER_MODE,)
    assert any("36 eventfds" in loss for loss in plan.losses)


def test_without_a_master_nothing_moves() -> None:
    plan = plan_migration(load("fan_in"))
    assert (plan.steps, plan.losses, plan.memory_bytes) == ((), (), 0)
    assert {machine.fate for machine in plan.machines} == {"stays"}
    assert {machine.reason for machine in plan.machines} == {"no master moves the memory of domain main"}


def test_reason_of_its_own_holds_a_machine_and_its_domain() -> None:
    text = """
        [machines.hub]
        role = "master"
        program = "idle"
        blockers = ["an older one", "a passed-through disk"]
        [machines.leaf]
        program = "idle"
        """
    plan = plan_migration(loads(text))
    assert [machine.reason for machine in plan.machines] == [
        "a passed-through disk",
        "no master moves the memory of domain main",
    ]
    assert plan.machines[0].refusal == "a passed-through disk"
    assert plan.machines[0].blockers == ("a passed-through disk", "an older one")
    assert not plan.steps


TWO_DOMAINS = """
    [domains.left]
    size = "1M"
    [domains.right]
    size = "2M"
    [machines.hub]
    role = "master"
    vectors = 2
    program = "idle"
    domains = ["left"]
    [machines.leaf]
    count = 2
    program = "idle"
    domains = ["left"]
    [machines.bridge]
    program = "idle"
    domains = ["left", "right"]
    """


def test_who_is_in_a_domain_that_stays_stays_too() -> None:
    plan = plan_migration(loads(TWO_DOMAINS))
    machines = by_name(plan)
    assert [device.peer for device in machines["bridge"].devices] == [3, 0]
    assert machines["bridge"].reason == "no master moves the memory of domain right"
    assert machines["bridge"].blockers == (PEER_MODE, PEER_MODE)
    assert plan.steps[0] == Step("detach", ("leaf-0", "leaf-1", "bridge"), "left")
    assert plan.steps[-1] == Step("reattach", ("leaf-0", "leaf-1"), "left", (1, 2))
    assert plan.memory_bytes == 1 << 20
    assert any(loss.endswith("who stay behind without their device: bridge") for loss in plan.losses)


def machine(index: int, **given: object) -> Machine:
    values = {"vectors": 1, "role": "peer", "profile": "qemu-doorbell", "blockers": (), **given}
    return Machine(index=index, name=f"m{index}", group=f"m{index}", program="idle", parameters={}, **values)  # type: ignore[arg-type]


def topology(*machines: Machine, domains: tuple[str, ...] = ("main",), only_migratable: bool = False) -> Topology:
    return Topology(
        title="planned",
        seed=1,
        run=RunSettings(only_migratable=only_migratable),
        groups=tuple(Group(name=each.name, program="idle") for each in machines),
        machines=machines,
        domains=tuple(Domain(name=name, memory=Memory(size_bytes=4096)) for name in domains),
    )


def test_master_that_is_not_first_does_not_start() -> None:
    plan = plan_migration(topology(machine(0), machine(1, role="master")))
    assert plan.machines[1].fate == "does not start"
    assert plan.machines[1].reason.startswith("master must connect to the server before any peers")
    assert plan.machines[0].fate == "stays"


def test_only_migratable_refuses_at_the_start() -> None:
    plan = plan_migration(topology(machine(0, role="master"), machine(1), only_migratable=True))
    assert plan.machines[1].reason == f"disallowing migration blocker (--only-migratable) for: {PEER_MODE}"
    assert [step.do for step in plan.steps] == ["move"]


def test_device_that_is_never_migrated_stays() -> None:
    plan = plan_migration(topology(machine(0, role="master"), machine(1, profile="acrn")))
    assert plan.machines[1].reason == "State blocked by non-migratable device 'acrn'"
    assert plan.steps[0] == Step("detach", ("m1",), "main")


def test_masters_of_2012_each_bring_the_memory() -> None:
    plan = plan_migration(topology(*(machine(at, role="master", profile="qemu-1.1") for at in range(2))))
    assert [step.do for step in plan.steps] == ["move", "move"]
    assert plan.memory_bytes == 2 * 4096
    assert any("2 masters each bring the memory" in loss for loss in plan.losses)
    assert "IntrStatus and IntrMask of m0, m1: not in the stream of qemu-1.1" in plan.losses


def test_who_joins_later_has_no_id_yet() -> None:
    plan = plan_migration(topology(machine(0, role="master"), machine(1, present=False), machine(2)))
    assert [each.devices[0].peer for each in plan.machines] == [0, None, 1]


MACHINES = st.lists(
    st.fixed_dictionaries(
        {
            "profile": st.sampled_from(sorted(PROFILES)),
            "role": st.sampled_from(["peer", "master"]),
            "blockers": st.sampled_from([(), (), (), ("a disk",)]),
            "domains": st.sampled_from([("a",), ("b",), ("a", "b")]),
            "present": st.sampled_from([True, True, True, False]),
        }
    ),
    min_size=1,
    max_size=6,
)


class Host:
    """A topology's machines with real devices, on the servers that they begin on and on the fresh ones."""

    def __init__(self, made: Topology, plan: MigrationPlan) -> None:
        self.machines = {each.name: each for each in made.machines}
        self.blockers: dict[str, Blockers] = {}
        self.devices: dict[tuple[str, str], Ivshmem] = {}
        self.landed = {domain.name: 0 for domain in made.domains}
        for each, planned in zip(made.machines, plan.machines, strict=True):
            self.blockers[each.name] = gate = Blockers(only_migratable=made.run.only_migratable)
            if planned.fate == "does not start":
                with pytest.raises(UsageError) as caught:
                    self.begin(made, each, gate)
                assert str(caught.value) == planned.reason
            else:
                self.begin(made, each, gate)

    def begin(self, made: Topology, each: Machine, gate: Blockers) -> None:
        for reason in each.blockers:
            gate.add(Blocker(reason))
        for domain in each.domains:
            there = [other.index for other in made.machines if domain in other.domains and other.present]
            later = [other.index for other in made.machines if domain in other.domains and not other.present]
            self.devices[each.name, domain] = device = fresh(each, [*there, *later].index(each.index))
            gate.plug(device)

    def carry_out(self, step: Step) -> None:
        for place, name in enumerate(step.machines):
            if step.do == "detach":
                self.blockers[name].unplug(self.devices.pop((name, step.domain)))
            elif step.do == "move":
                self.blockers[name].begin()
                self.blockers[name].end()
                for domain in [domain for owner, domain in self.devices if owner == name]:
                    self.land(name, domain).load(self.devices[name, domain].save())
            else:
                assert step.peers[place] == self.landed[step.domain]
                self.blockers[name].plug(self.land(name, step.domain))

    def land(self, name: str, domain: str) -> Ivshmem:
        self.landed[domain] += 1
        return fresh(self.machines[name], self.landed[domain] - 1)


def fresh(each: Machine, peer: int) -> Ivshmem:
    profile = PROFILES[each.profile]
    size_bytes = 4096 if profile.memory_container else None
    made = Ivshmem(profile, vectors=each.vectors, ring=lambda peer, vector: None, role=each.role, size_bytes=size_bytes)
    made.set_peer(peer)
    return made


@given(drawn=MACHINES, only_migratable=st.booleans())
def test_every_plan_can_be_carried_out(drawn: list[dict[str, object]], only_migratable: bool) -> None:
    """Step by step on real devices: nobody who moves is refused, and every ID is the one that was foretold."""
    machines = [machine(at, **values) for at, values in enumerate(drawn)]
    made = topology(*machines, domains=("a", "b"), only_migratable=only_migratable)
    plan = plan_migration(made)
    host = Host(made, plan)
    for planned in plan.machines:
        if planned.fate != "does not start":
            text = f"^{re.escape(planned.refusal)}$"
            with pytest.raises(MigrationError, match=text) if planned.refusal else contextlib.nullcontext():
                host.blockers[planned.name].check()
    for step in plan.steps:
        host.carry_out(step)
    moved = [name for step in plan.steps if step.do == "move" for name in step.machines]
    assert sorted(moved) == [planned.name for planned in plan.machines if planned.fate.startswith("moves")]


# The command.


def test_text_of_a_plan(tmp_path: Path) -> None:
    file = tmp_path / "two.toml"
    file.write_text(TWO_DOMAINS)
    result = invoke("--plan", str(file))
    assert (result.exit_code, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["machine", "role", "peer", "fate"]
    assert lines[1].split(maxsplit=3) == ["hub", "master", "0", "moves with its device"]
    assert lines[2].startswith("leaf-0, leaf-1  peer    1 ... 2  moves when it has let go of its device: Migration is")
    assert lines[3].startswith("bridge          peer    3/0      stays: no master moves the memory of domain right; by")
    assert "  1. detach leaf-0, leaf-1, bridge from domain left" in lines
    assert "  2. move hub to a fresh server: 342 bytes of state, 1,048,576 bytes of memory" in lines
    assert "  4. reattach leaf-0, leaf-1 to domain left, as peers 1 to 2" in lines
    assert sum(line.startswith("lost: ") for line in lines) == 4


def test_plan_for_machines_says_all_of_it() -> None:
    result = invoke("--plan", "fan_in", "--set", "machines.receiver.role=master", "--json")
    assert result.exit_code == 0
    told = json.loads(result.stdout)
    assert [step["do"] for step in told["steps"]] == ["detach", "move", "move", "reattach"]
    assert told["machines"][1]["blockers"] == [PEER_MODE]
    assert told["memory_bytes"] == 4 << 20


def test_nothing_can_move() -> None:
    result = invoke("--plan", "ping_pong")
    assert result.exit_code == 0
    assert result.stdout.rstrip().endswith("nothing can move")


def test_what_the_command_does_not_do() -> None:
    result = invoke("ping_pong")
    assert result.exit_code == 2
    assert "expected --plan; in a run, machines move by" in result.stderr
    result = invoke("--plan", "no_such_topology")
    assert result.exit_code == 2
    assert "no_such_topology" in result.stderr
    assert "Traceback" not in result.stderr


def test_many_names_are_told_in_short() -> None:
    assert several(["a", "b", "c"]) == "a, b, c"
    assert several([f"m{number}" for number in range(64)]) == "m0 ... m63 (64)"
