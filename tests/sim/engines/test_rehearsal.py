"""sim.engines.process.rehearsal: whole machines run in the fork server, and nothing of them stays."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from nodes.device import profiles
from sim.engines.process.rehearsal import VECTORS_MAX

# Rehearses twice, the first time to load all that is loaded once, and prints what the second one has left behind, and
# how far its machines came. In a process of its own: a machine ends the children of its process at its end.
REHEARSED = """
import gc, json, os, pathlib, signal, sys
from sim.engines.process import main, rehearsal
from sim.engines.shared.configuration import DeviceConfiguration, WorkerConfiguration
from sim.recording import RecordingLayout, State, header
from sim.recording.reader import totals_so_far

folder, names, vectors, role = pathlib.Path(sys.argv[1]), sys.argv[2].split(), int(sys.argv[3]), sys.argv[4]
layout = RecordingLayout(vectors=vectors, edges=4 * vectors, rings=4, drains=4)
configuration = WorkerConfiguration(
    name="", kind="simulated", machine=0, vectors=vectors, role=role, profiles=tuple(names), program="",
    parameters={}, peers={}, traces={}, seed="", sample_every=1, load=(), cpus=(), policy="other", priority=0, nice=0,
    devices=tuple(DeviceConfiguration("", 0, 4096, "", layout) for _ in names),
)
made, ended = rehearsal.make_template, []

def noticed(machine):
    worker = made(machine)
    recording = worker.recordings[0]
    leave = worker.close

    def close():
        rung, delivered, *_ = totals_so_far(recording)
        ended.append((recording.words[header.STATE] == State.STOPPED, rung > 0, delivered))
        leave()

    worker.close = close
    return worker

def left():
    gc.collect()
    mappings = len(pathlib.Path("/proc/self/maps").read_text().splitlines())
    descriptors, files = sorted(os.listdir("/proc/self/fd")), sorted(map(str, folder.iterdir()))
    alarm = str(signal.getsignal(signal.SIGALRM)), signal.getitimer(signal.ITIMER_REAL)
    return descriptors, files, mappings, alarm

rehearsal.make_template = noticed
rehearsal.TIMES, rehearsal.RUN_NS, rehearsal.PATIENCE_S = 2, 300_000_000, 60  # for a host that is busy
rehearsal.rehearse(configuration, folder)
before = left()
ended.clear()
rehearsal.rehearse(configuration, folder)
print(json.dumps({"before": before, "after": left(), "ended": ended, "wakes": signal.set_wakeup_fd(-1)}))
"""


def rehearse(folder: Path, names: str, vectors: int) -> dict[str, list[object]]:
    role = profiles.profile(names.split(maxsplit=1)[0]).default_role
    command = [sys.executable, "-P", "-c", REHEARSED, str(folder), names, str(vectors), role]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert not ran.returncode, ran.stderr
    told: dict[str, list[object]] = json.loads(ran.stdout)
    return told


@pytest.mark.parametrize(
    ("names", "vectors"),
    [("qemu-doorbell", 1), ("qemu-doorbell", 2048), ("qemu-doorbell qemu-doorbell", 4), ("qemu-1.1", 2)],
)
def test_machines_are_rehearsed_to_their_end_and_leave_nothing(short_path: Path, names: str, vectors: int) -> None:
    told = rehearse(short_path, names, vectors)
    assert told["after"] == told["before"]
    assert told["wakes"] == -1
    # It has rung, and taken its interrupts; its time may be over before.
    assert [True, True, min(vectors, VECTORS_MAX)] in told["ended"]
    assert len(told["ended"]) == 2


def test_a_device_of_ivshmem_v2_is_not_rehearsed(short_path: Path) -> None:
    name = next(name for name, profile in profiles.PROFILES.items() if profile.version == 2)
    assert rehearse(short_path, name, 2)["ended"] == []
