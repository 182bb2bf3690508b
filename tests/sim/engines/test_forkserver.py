"""sim.engines.process.forkserver: workers are forked from templates, one for each kind of machine, or without."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sim.engines.messages import Failed
from sim.engines.process import forkserver
from sim.engines.process.control import Control, Forked, Proceed
from sim.engines.process.forkserver import ForkServer
from sim.engines.shared.configuration import DeviceConfiguration, WorkerConfiguration, common_part
from sim.kernel.loop import Loop
from sim.kernel.processes import adopting_orphans, children, end_children
from sim.kernel.waiting import readable_within
from sim.recording import Recording, RecordingLayout, State, header

PATIENCE_S = 90
LAYOUT = RecordingLayout(vectors=2, edges=4, rings=4, drains=4)


def configuration(folder: Path, name: str, **changes: Any) -> WorkerConfiguration:
    """That of a machine whose server does not exist."""
    device = DeviceConfiguration(os.fspath(folder / "no server"), 0, 4096, os.fspath(folder / name), LAYOUT)
    plain = WorkerConfiguration(
        name=name,
        kind="simulated",
        machine=0,
        vectors=2,
        role="peer",
        profiles=("qemu-doorbell",),
        program="idle",
        parameters={},
        peers={},
        traces={},
        seed=f"1/{name}",
        sample_every=1,
        load=(),
        cpus=(),
        policy="other",
        priority=0,
        nice=0,
        devices=(device,),
    )
    return replace(plain, **changes)


@pytest.fixture(params=[1, 16], ids=["few machines", "many machines"])
def server(request: pytest.FixtureRequest, short_path: Path) -> Iterator[ForkServer]:
    """For few machines, and for so many that the first kind is rehearsed."""
    with adopting_orphans(), contextlib.closing(Loop()) as loop:
        known = children()
        with contextlib.closing(ForkServer(loop, short_path, lambda: None, machines=request.param)) as it:
            yield it
        end_children(known)


def report(server: ForkServer, machine: WorkerConfiguration) -> tuple[Failed, int]:
    """What a worker says at its end, and the state in its recording."""
    with Recording.create(Path(machine.devices[0].recording), LAYOUT, machine=0, sample_every=1) as recording:
        ours, theirs = Control.pair()
        with contextlib.closing(ours):
            server.fork(machine, theirs)
            while readable_within(ours.fileno(), PATIENCE_S):
                match ours.receive():
                    case Forked():
                        ours.send(Proceed())
                    case Failed() as failed:
                        return failed, recording.words[header.STATE]
        raise AssertionError(server.state())


def test_machines_of_one_kind_have_one_template(tmp_path: Path) -> None:
    first = configuration(tmp_path, "first", program="storm", parameters={"burst": 2}, cpus=(0,), nice=1)
    second = configuration(tmp_path, "second", peers={"to": (0,)}, machine=1)
    assert common_part(first) == common_part(second)
    assert common_part(first) != common_part(replace(first, vectors=3))
    larger = replace(first.devices[0], layout=replace(LAYOUT, drains=5))
    assert common_part(first) != common_part(replace(first, devices=(larger,)))


@pytest.mark.parametrize("templates_max", [0, 1, 16])
def test_a_worker_fails_alike_with_and_without_a_template(
    server: ForkServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, templates_max: int
) -> None:
    """The second kind finds no room for a template where there may be one."""
    monkeypatch.setattr(forkserver, "TEMPLATES_MAX", templates_max)
    for name, vectors in (("a", 2), ("b", 2), ("c", 1)):
        failed, state = report(server, configuration(tmp_path, name, vectors=vectors))
        assert (failed.at_fault, state) == ("server", State.FAILED)
        assert failed.summary == f"UsageError: no server listens on {tmp_path}/no server: No such file or directory"


def test_a_kind_that_no_template_can_be_made_of_is_reported_by_its_machine(server: ForkServer, tmp_path: Path) -> None:
    for name in ("a", "b"):
        failed, state = report(server, configuration(tmp_path, name, profiles=("no such device",)))
        assert "no such device" in failed.summary
        assert state == State.FAILED
    failed, _ = report(server, configuration(tmp_path, "c"))
    assert "no server listens" in failed.summary
