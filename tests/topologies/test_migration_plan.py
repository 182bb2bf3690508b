"""`ivsim migrate --plan`: verdicts in the device's words, an order of steps that works, and the losses."""

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

from nodes.device.blockers import Blocker, Blockers
from nodes.device.devices import make_device
from nodes.device.ivshmem import Ivshmem
from nodes.device.migration_texts import MigrationError
from nodes.device.profiles import PROFILES
from nodes.errors import UsageError
from sim.commands.migrate import migrate
from tests.nodes.device.test_ivshmem_state import PEER_MODE
from topologies import Domain, Group, Machine, Memory, RunSettings, Topology, load, loads
from topologies.migration_plan import MigrationPlan, PlannedMachine, Step, plan_migration, several

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


def test_machines_in_a_domain_that_stays_stay_too() -> None:
    plan = plan_migration(loads(TWO_DOMAINS))
    machines = by_name(plan)
    assert [device.peer for device in machines["bridge"].devices] == [3, 0]
    assert machines["bridge"].reason == "no master moves the memory of domain right"
    assert machines["bridge"].blockers == (PEER_MODE, PEER_MODE)
    assert plan.steps[0] == Step("detach", ("leaf-0", "leaf-1", "bridge"), "left")
    assert plan.steps[-1] == Step("reattach", ("leaf-0", "leaf-1"), "left", (1, 2))
    assert plan.memory_bytes == 1 << 20
    assert "domain left: memory shared with the machines that stay: bridge" in plan.losses


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
    plan = plan_migration(topology(machine(0, role="master"), machine(1, profile="acrn", vectors=8)))
    assert plan.machines[1].reason == "State blocked by non-migratable device 'acrn'"
    assert plan.steps[0] == Step("detach", ("m1",), "main")


def test_masters_of_2012_each_bring_the_memory() -> None:
    plan = plan_migration(topology(*(machine(at, role="master", profile="qemu-1.1") for at in range(2))))
    assert [step.do for step in plan.steps] == ["move", "move"]
    assert plan.memory_bytes == 2 * 4096
    assert (
        "domain main: what is written there before m1 arrives: each of its 2 masters copies the whole memory, and the "
        "last copy stays"
    ) in plan.losses
    assert "IntrStatus and IntrMask of m0, m1: not in the stream of qemu-1.1" in plan.losses


def test_registers_outside_the_stream_are_lost_with_the_device() -> None:
    """A peer of 2012 moves without its device, so that it does not matter which registers its stream lacks."""
    others = (machine(1, profile="qemu-1.1"), machine(2, profile="qemu-plain", vectors=0))
    plan = plan_migration(topology(machine(0, role="master", profile="qemu-1.1"), *others))
    detached = "of the devices that are detached and plugged again"
    assert plan.losses[1:] == (
        f"domain main: MSI-X table, pending bits and registers {detached}: m1",
        f"domain main: registers {detached}: m2",
        "IntrStatus and IntrMask of m0: not in the stream of qemu-1.1",
    )


def test_ids_are_lost_where_the_fresh_server_gives_out_others() -> None:
    def lost(*machines: Machine) -> list[str]:
        losses = plan_migration(topology(*machines)).losses
        return [loss.partition("the IDs of ")[2].partition(":")[0] for loss in losses if "the IDs of" in loss]

    assert lost(machine(0, role="master"), machine(1), machine(2)) == []
    blocked = machine(1, blockers=("a disk",))
    assert lost(machine(0, role="master"), blocked, machine(2), machine(3)) == ["m2, m3"]
    old = machine(2, role="master", profile="qemu-1.1")
    assert lost(machine(0, role="master"), machine(1), old, machine(3, present=False)) == ["m1, m2"]


def test_a_device_without_a_server_has_no_id() -> None:
    plain = {"profile": "qemu-plain", "vectors": 0}
    plan = plan_migration(topology(machine(0, role="master"), machine(1, **plain), machine(2), machine(3, **plain)))
    assert [each.devices[0].peer for each in plan.machines] == [0, None, 2, None]
    assert plan.steps[3:] == (
        Step("reattach", ("m1",), "main"),
        Step("reattach", ("m2",), "main", (2,)),
        Step("reattach", ("m3",), "main"),
    )


def test_a_role_that_is_left_to_the_id() -> None:
    """The master is peer 0; a machine that reattaches with another ID is a peer. Without a server, each has ID 0."""
    plan = plan_migration(topology(machine(0, role="auto"), machine(1, role="auto"), machine(2)))
    assert [(each.devices[0].role, each.devices[0].master) for each in plan.machines[:2]] == [
        ("auto", True),
        ("auto", False),
    ]
    assert [each.refusal for each in plan.machines] == ["", PEER_MODE, PEER_MODE]
    assert [(step.do, step.machines, step.peers) for step in plan.steps] == [
        ("detach", ("m1", "m2"), ()),
        ("move", ("m0",), ()),
        ("move", ("m1", "m2"), ()),
        ("reattach", ("m1", "m2"), (1, 2)),
    ]
    plan = plan_migration(topology(*(machine(at, role="auto", profile="qemu-plain", vectors=0) for at in range(2))))
    assert [each.fate for each in plan.machines] == ["moves", "moves"]


def test_machines_that_join_later_have_no_id_yet() -> None:
    plan = plan_migration(topology(machine(0, role="master"), machine(1, present=False), machine(2)))
    assert [each.devices[0].peer for each in plan.machines] == [0, None, 1]
    assert [each.present for each in plan.machines] == [True, False, True]


MACHINES = st.lists(
    st.fixed_dictionaries(
        {
            "profile": st.sampled_from(sorted(name for name, made in PROFILES.items() if made.version == 1)),
            "role": st.sampled_from(["peer", "master", "auto"]),
            "blockers": st.sampled_from([(), (), (), ("a disk",)]),
            "domains": st.sampled_from([("a",), ("b",), ("a", "b")]),
            "present": st.sampled_from([True, True, True, False]),
        }
    ),
    min_size=1,
    max_size=6,
)


class Host:
    """The machines of a topology with real devices, on their first servers and on the fresh ones."""

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
                served = PROFILES[self.machines[name].profile].server
                assert step.peers[place : place + 1] == ((self.landed[step.domain],) if served else ())
                self.blockers[name].plug(self.land(name, step.domain))

    def land(self, name: str, domain: str) -> Ivshmem:
        self.landed[domain] += 1
        return fresh(self.machines[name], self.landed[domain] - 1)


def fresh(each: Machine, peer: int) -> Ivshmem:
    profile = PROFILES[each.profile]
    size_bytes = 4096 if profile.memory_container else None
    made = make_device(
        profile, vectors=each.vectors, ring=lambda peer, vector: None, role=each.role, size_bytes=size_bytes
    )
    made.set_peer(peer)
    made.set_memory(memoryview(bytearray(4096)))
    return made


@given(drawn=MACHINES, only_migratable=st.booleans())
def test_every_plan_can_be_carried_out(drawn: list[dict[str, object]], only_migratable: bool) -> None:
    """Step by step on real devices: no migration of the plan is refused, and every ID is that of the plan."""
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
    assert lines[2].startswith("leaf-0, leaf-1  peer    1 ... 2  moves after detaching its device: Migration is")
    assert lines[3].startswith("bridge          peer    3/0      stays: no master moves the memory of domain right; by")
    assert "  1. detach leaf-0, leaf-1, bridge from domain left" in lines
    assert "to another host, with a fresh server for each domain:" in lines
    assert "  2. move hub: 342 bytes of state, 1,048,576 bytes of memory" in lines
    assert "  4. reattach leaf-0, leaf-1 to domain left, as peers 1 and 2" in lines
    assert "copied: 342 bytes of devices' state, 1,048,576 bytes of memory" in lines
    assert [line.partition(": ")[2].partition(": ")[2] for line in lines if line.startswith("lost: ")] == [
        "doorbells pending in its 5 eventfds: a fresh server makes new ones",
        "memory shared with the machines that stay: bridge",
        "MSI-X table, pending bits and registers of the devices that are detached and plugged again: leaf-0, leaf-1",
    ]


def test_text_of_absent_machines_and_of_machines_with_several_devices(tmp_path: Path) -> None:
    file = tmp_path / "two.toml"
    file.write_text(
        TWO_DOMAINS.replace("[machines.leaf]", "[machines.leaf]\nabsent = true")
        + '[machines.first]\nprogram = "idle"\nprofile = "qemu-1.1"\nrole = "master"\ndomains = ["right"]\n'
    )
    lines = invoke("--plan", str(file)).stdout.splitlines()
    assert lines[2].startswith("leaf-0, leaf-1  peer    later  ")
    assert lines[3].split(maxsplit=3)[3].startswith("moves after detaching its device in left, right: Migration")
    assert "to another host, with a fresh server for each domain, once leaf-0, leaf-1 have joined:" in lines
    assert "  6. reattach leaf-0, leaf-1, bridge to domain left, as peers 1 to 3" in lines


def test_text_of_what_the_timeline_comes_to() -> None:
    lines = invoke("--plan", "migrate_peer_refused").stdout.splitlines()
    place = lines.index("in a run, by its timeline:")
    assert lines[place - 1] == ""
    assert [line.split(" (")[0].partition(": ")[2] for line in lines[place + 1 :]] == [
        "migrate master: fails: master must connect to the server before any peers",
        f"migrate peer, old_peer: refused: {PEER_MODE}",
    ]
    assert "timeline has it" not in invoke("--plan", "migration_abort").stdout


def test_plan_for_machines_says_all_of_it() -> None:
    result = invoke("--plan", "fan_in", "--set", "machines.receiver.role=master", "--json")
    assert result.exit_code == 0
    told = json.loads(result.stdout)
    assert [step["do"] for step in told["steps"]] == ["detach", "move", "move", "reattach"]
    assert told["machines"][1]["blockers"] == [PEER_MODE]
    assert told["memory_bytes"] == 4 << 20
    assert told["timeline"] == []
    (foretold,) = json.loads(invoke("--plan", "evacuate", "--json").stdout)["timeline"]
    assert (foretold["machines"], foretold["verdict"], foretold["reason"]) == (["stays"], "refused", PEER_MODE)


def test_text_counts_one_as_one(tmp_path: Path) -> None:
    file = tmp_path / "one.toml"
    file.write_text('[machines.hub]\nrole = "master"\nprogram = "idle"\n')
    lines = invoke("--plan", str(file)).stdout.splitlines()
    assert lines[-1] == ("lost: domain main: doorbells pending in its only eventfd: a fresh server makes new ones")


def test_a_plan_without_movable_machines() -> None:
    result = invoke("--plan", "ping_pong")
    assert result.exit_code == 0
    assert result.stdout.rstrip().endswith("nothing can move")


def test_the_command_refuses_to_migrate() -> None:
    result = invoke("ping_pong")
    assert result.exit_code == 2
    assert "expected --plan; in a run, the action" in result.stderr
    result = invoke("--plan", "no_such_topology")
    assert result.exit_code == 2
    assert "no_such_topology" in result.stderr
    assert "Traceback" not in result.stderr


def test_many_names_are_told_in_short() -> None:
    assert several(["a", "b", "c"]) == "a, b, c"
    numbered = [f"m{number}" for number in range(64)]
    assert several(numbered) == "m0 ... m63 (64)"
    assert several([*numbered, "n-0", "n-1", "hub"]) == "m0 ... m63 (64), n-0, n-1, hub"
    assert several(["a", "b", "c", "d", "e0", "f", "g", "h", "i"]) == "a, b, c and 6 others"
