"""sim.coordination.coordinator under virtual time: every phase, every kind of end."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from sim.coordination.coordinated_run import RunEnd
from sim.coordination.coordinator import Coordinator
from sim.coordination.monitor import Monitor
from sim.engines.messages import Act, Ended, Order, Placed, Start, Stop
from sim.engines.shared.failures import ProgramError
from sim.engines.virtual import engine
from sim.engines.virtual.counter import VirtualCounter
from sim.engines.virtual.engine import VirtualEngine
from sim.engines.virtual.loop import BEGIN_NS
from sim.engines.virtual.machine import VirtualMachine
from sim.recording.reader import vectors_so_far
from sim.views.event_text import sentence
from topologies import Topology, loads

MILLISECOND_NS = 1_000_000
SECOND_NS = 1_000_000_000
TOPOLOGY = """
[run]
duration_s = 1.0
warmup_s = 0.0
sample_every = 0
on_death = "{on_death}"
[machines.m]
count = 3
program = "idle"
[machines.late]
absent = true
program = "idle"
"""


class ScriptedMachine(VirtualMachine):
    """A machine that begins, stops and is killed as always, unless a test says otherwise."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self.orders: list[Order] = []
        self.connects = True
        self.on_stop: Callable[[], object] = super()._stop
        self.on_kill: Callable[[], object] = super().kill

    def _begin(self) -> None:
        if self.connects:
            super()._begin()
        else:
            self.report(Placed())

    def connect_after_all(self) -> None:
        self.connects = True
        self._begin()

    def tell(self, order: Order) -> bool:
        self.orders.append(order)
        return super().tell(order)

    def kill(self) -> None:
        self.on_kill()

    def end(self, how: str) -> None:
        self._end(how)

    def raise_in_program(self) -> None:
        error = ProgramError()
        error.__cause__ = ValueError("mine")
        self.fail(error)

    def stop(self) -> None:
        super()._stop()

    def _stop(self) -> None:
        self.on_stop()


class ScriptedEngine(VirtualEngine):
    """Makes such machines, and says of its work what a test wants."""

    def __init__(self, topology: Topology) -> None:
        super().__init__(topology)
        self.machines: dict[str, ScriptedMachine] = {}
        self.progress: Callable[[], int] = lambda: 0
        self.leftovers: list[str] = []

    def make_machine(self, machine: Any, name: str, *arguments: Any) -> VirtualMachine:
        made = super().make_machine(machine, name, *arguments)
        assert isinstance(made, ScriptedMachine)
        self.machines[name] = made
        return made

    def start_progress(self) -> int:
        return self.progress()

    def end_leftovers(self) -> list[str]:
        return self.leftovers


class CoordinatorSetup:
    """A coordinator with the engine that it works on, and the events that it has told."""

    def __init__(self, stack: contextlib.ExitStack, path: Path, timeline: str, on_death: str) -> None:
        topology = loads(TOPOLOGY.format(on_death=on_death) + timeline)
        self.engine = stack.enter_context(ScriptedEngine(topology))
        self.events: list[dict[str, Any]] = []
        (path / "raw").mkdir()
        self.coordinator = Coordinator(
            topology,
            self.engine,
            recording_path=lambda row: path / "raw" / f"{row}.rec",
            event=lambda kind, **fields: self.events.append({"kind": kind, **fields}),
            observe=partial(
                Monitor,
                runtime=path,
                record=lambda rows: None,
                resources_every_s=0,
                path=path,
                access=(),
                describe=sentence,
            ),
        )
        stack.callback(self.coordinator.close)

    def __getitem__(self, name: str) -> ScriptedMachine:
        return self.engine.machines[name]

    def counter(self, peer: int) -> VirtualCounter:
        client = self.engine.host.servers[0].client(peer)
        assert client is not None
        return client.eventfds[0]

    def at(self, time_s: float, callback: Callable[[], object]) -> None:
        """Call back so long after the making of the coordinator."""
        self.engine.loop.at(BEGIN_NS + round(time_s * SECOND_NS), lambda: callback() and None)

    def run(self) -> RunEnd:
        return self.coordinator.run()

    def elapsed_s(self) -> float:
        return (self.engine.loop.clock.now_ns() - BEGIN_NS) / SECOND_NS

    def told(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["kind"] == kind]


@pytest.fixture
def make(short_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., CoordinatorSetup]]:
    monkeypatch.setattr(engine, "VirtualMachine", ScriptedMachine)
    with contextlib.ExitStack() as stack:
        yield lambda timeline="", on_death="fail": CoordinatorSetup(stack, short_path, timeline, on_death)


def entry(do: str, at_s: float, machines: str = "", **more: object) -> str:
    keys = {"do": do, "at_s": at_s, **({"machines": machines} if machines else {}), **more}
    return "[[timeline]]\n" + "".join(f"{key} = {value!r}\n".replace("'", '"') for key, value in keys.items())


def test_all_start_at_one_moment_and_what_is_not_taken_is_pending(make: Callable[..., CoordinatorSetup]) -> None:
    site = make()
    site["m-1"].on_stop = lambda: (site["m-1"].stop(), site.counter(1).add(7))
    ending = site.run()
    assert (ending.status, ending.reason) == ("finished", "")
    assert {peer: count for (_, peer, _), count in ending.pending.items()} == {0: 0, 1: 7, 2: 0}
    starts = {
        order for machine in site.engine.machines.values() for order in machine.orders if isinstance(order, Start)
    }
    assert starts == {Start(ending.start_ns, ending.stop_ns)}
    assert ending.stop_ns - ending.start_ns == SECOND_NS


@pytest.mark.parametrize(("on_death", "status"), [("fail", "failed"), ("degrade", "degraded")])
@pytest.mark.parametrize("when", ["running", "at the end"])
def test_a_death_is_the_runs_status_in_every_phase(
    when: str, on_death: str, status: str, make: Callable[..., CoordinatorSetup]
) -> None:
    site = make(on_death=on_death)
    if when == "running":
        site.at(0.5, site["m-1"].raise_in_program)
    else:
        site["m-1"].on_stop = site["m-1"].raise_in_program
    ending = site.run()
    assert (ending.status, ending.reason) == (status, "m-1 died (exit 1): its program failed: ValueError: mine")
    assert len(site.told("machine_died")) == 1
    assert not any(machine.is_running for machine in site.engine.machines.values())


def test_a_death_before_the_start_fails_the_run_whatever_is_asked(make: Callable[..., CoordinatorSetup]) -> None:
    site = make(on_death="degrade")
    site["m-2"].connects = False
    site.at(0.1, partial(site["m-2"].end, "exit 3"))
    assert (site.run().status, site.coordinator.ending.reason) == ("failed", "m-2 died (exit 3)")


def test_a_machine_that_never_began_says_why(make: Callable[..., CoordinatorSetup]) -> None:
    site = make()
    site["m-0"].connects = False
    site.at(0.1, lambda: site["m-0"].report(Ended("could not be started: no license", started=False)))
    assert site.run().reason == "m-0 could not be started: no license"


def test_an_end_that_was_ordered_is_none(make: Callable[..., CoordinatorSetup]) -> None:
    site = make(entry("kill", 0.3, "m-0") + entry("leave", 0.5, "m-1") + entry("join", 0.6, "m-1"))
    assert site.run().status == "finished"
    assert [(event["machine"], event["how"]) for event in site.told("machine_left")] == [
        ("m-0", "SIGKILL"),
        ("m-1", "left"),
    ]
    assert [event["machine"] for event in site.told("machine_joined")] == ["m-1.2"]


def test_a_start_is_given_up_when_nothing_makes_progress(make: Callable[..., CoordinatorSetup]) -> None:
    site = make()
    site["m-1"].connects = False
    ending = site.run()
    assert ending.status == "failed"
    assert ending.reason == "no progress for 30 s, under virtual time; not Ready: m-0, m-1, m-2"
    assert 30 <= site.elapsed_s() < 32


def test_a_start_may_take_as_long_as_it_makes_progress(make: Callable[..., CoordinatorSetup]) -> None:
    site = make()
    site["m-1"].connects = False
    site.at(600, site["m-1"].connect_after_all)
    site.engine.progress = lambda: round(site.elapsed_s()) // 20
    assert site.run().status == "finished"
    assert site.elapsed_s() > 600


def test_a_machine_that_does_not_stop_is_killed_and_named(make: Callable[..., CoordinatorSetup]) -> None:
    site = make()
    site["m-1"].on_stop = lambda: None
    ending = site.run()
    assert (ending.status, ending.reason) == ("failed", "m-1 did not stop: its program never yields")
    assert [event["machine"] for event in site.told("machine_killed")] == ["m-1"]
    assert 3 < site.elapsed_s() - 1 < 5


def test_a_machine_that_waits_for_a_cpu_is_given_time(make: Callable[..., CoordinatorSetup]) -> None:
    site = make()
    site["m-1"].on_stop = lambda: None
    site["m-1"].is_starved = True
    site.at(40, site["m-1"].stop)
    assert site.run().status == "finished"


def test_a_machine_that_a_signal_has_stopped_is_said_to_be(make: Callable[..., CoordinatorSetup]) -> None:
    site = make()
    site["m-1"].on_stop = site["m-1"].stall
    assert site.run().reason == "m-1 did not stop: it is stopped by a signal"


def test_a_machine_that_cannot_even_be_killed_does_not_hold_the_run(make: Callable[..., CoordinatorSetup]) -> None:
    site = make()
    site["m-1"].on_stop = site["m-1"].on_kill = lambda: None
    ending = site.run()
    assert ending.status == "failed"
    assert site.elapsed_s() < 12


def test_the_second_interrupt_kills(make: Callable[..., CoordinatorSetup]) -> None:
    site = make()
    for name in ("m-0", "m-1", "m-2"):
        site[name].on_stop = lambda: None
    site.at(0.5, lambda: site.coordinator.stop("interrupted", "SIGINT"))
    site.at(0.6, lambda: site.coordinator.kill_all("SIGINT"))
    ending = site.run()
    assert (ending.status, ending.reason) == ("interrupted", "SIGINT")
    assert site.elapsed_s() < 0.7


def test_leftovers_of_machines_are_a_warning(make: Callable[..., CoordinatorSetup]) -> None:
    site = make()
    site.engine.leftovers = ["process 7 was left behind"]
    site.run()
    assert [(event["machine"], event["text"]) for event in site.told("warning")] == [
        ("the run", "process 7 was left behind")
    ]


def test_a_stall_is_the_engines_and_a_mask_is_the_machines(make: Callable[..., CoordinatorSetup]) -> None:
    site = make(entry("stall", 0.2, "m-0") + entry("mask", 0.2, "m-1", vectors=[0]))
    stalled: list[bool] = []
    site.at(0.4, lambda: stalled.append(site["m-0"].is_still))
    assert site.run().status == "finished"
    assert stalled == [True]
    assert not site["m-0"].is_still
    assert [order for order in site["m-1"].orders if isinstance(order, Act)] == [Act("mask", {"vectors": (0,)})]
    assert isinstance(site["m-0"].orders[-1], Stop)


def test_a_full_counter_holds_again_what_it_held(make: Callable[..., CoordinatorSetup]) -> None:
    site = make(entry("stall", 0.1, "m-0") + entry("fill", 0.2, "m-0"))
    site.at(0.15, lambda: site.counter(0).add(3))
    filled: list[int] = []
    site.at(0.5, lambda: filled.append(site.counter(0).value))
    ending = site.run()
    assert filled[0] > 1 << 60
    assert ending.pending[0, 0, 0] == 0
    assert vectors_so_far(site["m-0"].devices[0].recording).tolist() == [[3, 1]]


def test_time_is_the_engines(make: Callable[..., CoordinatorSetup]) -> None:
    """A run of a second takes no second of this process: nothing in the coordinator asks another clock."""
    site = make()
    site.run()
    assert site.coordinator.ending.ready_ns < BEGIN_NS + 50 * MILLISECOND_NS
