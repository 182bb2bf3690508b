"""Machines with a guest of their own: a boot sector of a few instructions, and the Linux guest that is included."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

import sim
from nodes.errors import HostError
from sim.kernel.processes import children
from sim.results.store import files
from sim.runner import Begun
from tests.clusters import until
from topologies import Topology, load, loads

pytestmark = pytest.mark.qemu

ROOT = Path(__file__).parents[2]
SECTOR_BYTES, DISK_BYTES = 512, 1 << 20  # SeaBIOS boots no smaller virtio disk
PRINT = bytes.fromhex("fa 31c0 8ed8 be167c baf803 ac 84c0 7403 ee ebf8 f4 ebfd")
"""cli; ds = 0; si = the text behind this code; write each byte of it to COM1 (0x3f8) up to a 0; halt."""
HOST = """
[run]
duration_s = 1.0
warmup_s = 0.0
on_death = "fail"

[machines.peer]
count = 2
program = "storm"
parameters = { to = "mine", rate_hz = 1000 }

[machines.mine]
kind = "qemu"
vectors = 1

[machines.mine.guest]
disk = "disk.img"
accel = "tcg"
memory_mib = 32
"""


SLOWER_S = (3, 6, 20, 60)
"""Durations in which a guest boots: one after the other until it has, for a host may be busy."""


def boots(
    text: str,
    folder: Path,
    rest: str = "",
    duration_s: float = 1.0,
    on_begin: Callable[[Begun], None] = lambda begun: None,
) -> sim.Run:
    """A run with a guest that prints ``text``; ``rest`` are further keys of its table, and tables."""
    before = children()
    (folder / "disk.img").write_bytes(
        (PRINT + text.encode() + b"\0").ljust(SECTOR_BYTES - 2, b"\0") + b"\x55\xaa" + bytes(DISK_BYTES - SECTOR_BYTES)
    )
    (folder / "guest.toml").write_text(HOST + rest)
    overrides = {"run.duration_s": duration_s}
    result = sim.run(folder / "guest.toml", runs=folder / "runs", overrides=overrides, on_begin=on_begin)
    assert not children() - before, "a process was left"
    return result


def test_a_bare_metal_guest_takes_part_and_its_counts_balance(tmp_path: Path) -> None:
    run = boots(
        "hello\nivsim: rung=0 interrupts=7\n",
        tmp_path,
        'ready_when = "^hello$"\n[[expect]]\nconsole = "hello"\nof = "mine"\n'
        '[[expect]]\nconsole = "BUG"\nthat = "console_lines == 0"\n[[expect]]\nthat = "guest_difference == 0"\n'
        '[[expect]]\nthat = "statistics.interrupts == 7"\nof = "mine"\n',
    )
    summary = run.summary
    assert (run.status, run.reason) == ("finished", "")
    assert summary["groups"]["mine"]["rung"] > 0
    assert summary["rung"] == summary["delivered"] + summary["pending"] + summary["refused"]
    assert summary["settled"] == 0
    assert [each["met"] for each in summary["expectations"]] == [True] * 4
    assert files.console(run.path, "mine").read_text().splitlines()[0] == "hello"
    assert "mine: its device could not interrupt it at the end of the run: MSI-X is off" in summary["warnings"]


@pytest.fixture
def bare_metal(tmp_path: Path) -> Path:
    """A copy of the example, built for 200 doorbells."""
    if shutil.which("cc") is None or shutil.which("make") is None:
        pytest.skip("needs make and a C compiler")
    folder = shutil.copytree(ROOT / "examples" / "bare_metal", tmp_path / "examples" / "bare_metal")
    subprocess.run(["make", "-s", "-C", folder, "CPPFLAGS=-DAWAITED=200"], check=True)
    return folder


def test_the_bare_metal_guest_answers_each_doorbell_once(tmp_path: Path, bare_metal: Path) -> None:
    file = bare_metal / "bare_metal.toml"
    file.write_text(file.read_text().replace("1000", "200"))
    run = sim.run(file, runs=tmp_path / "runs")
    summary = run.summary
    assert (run.status, run.reason) == ("finished", "")
    assert [each for each in summary["expectations"] if not each["met"]] == []
    assert summary["rung"] == summary["delivered"] == 400
    assert summary["statistics"]["metal"] == {"rung": 200, "interrupts": 200}
    assert not any("could not interrupt" in each for each in summary["warnings"])


@pytest.mark.full  # a driver answers in `test_a_linux_guest_migrates_and_then_lets_go_of_its_device`, too
@pytest.mark.parametrize("example", ["uio_guest", "kernel_driver"])
def test_a_driver_in_a_linux_guest_answers_each_doorbell_once(example: str, tmp_path: Path) -> None:
    topology = load(ROOT / "examples" / example / f"{example}.toml")
    if not all(Path(file).is_file() for machine in topology.machines if machine.guest for file in machine.guest.files):
        pytest.skip(f"examples/{example}/build.py builds it")
    run = sim.run(topology, runs=tmp_path)
    summary = run.summary
    assert (run.status, run.reason) == ("finished", "")
    assert [each for each in summary["expectations"] if not each["met"]] == []
    assert summary["rung"] == summary["delivered"] == 2000
    assert summary["statistics"]["linux"] == {"rung": 1000, "interrupts": 1000}


def test_a_guest_that_says_something_else_is_held_against_what_came_from_it(tmp_path: Path) -> None:
    run = boots("ivsim: rung=5 interrupts=7\n", tmp_path, 'ready_when = "ivsim"\n')
    assert run.summary["guest_difference"] == 5
    assert any("5 doorbells more than came from them" in each for each in run.summary["warnings"])


def test_a_guest_that_does_not_become_ready_is_named_with_its_last_lines(tmp_path: Path) -> None:
    for patience_s in SLOWER_S:
        run = boots("one\ntwo\n", tmp_path, f'ready_when = "three"\nready_timeout_s = {patience_s}\n')
        assert run.status == "failed"
        assert "mine" in run.reason
        assert f"no line has matched 'three' within {patience_s} s; its " in run.reason
        assert run.summary["ready_s"] is None
        if run.reason.endswith("two"):
            break
    assert run.reason.endswith(": one | two")


def test_a_guest_that_panics_is_named_with_its_panic(tmp_path: Path) -> None:
    run = boots("ready\nKernel panic - not syncing: no init\n", tmp_path, 'ready_when = "ready"\n')
    assert run.status == "failed"
    reason = "mine died (ended by the run): its guest failed: Kernel panic - not syncing: no init"
    assert run.reason == reason
    assert "mine died: ended by the run" in run.summary["warnings"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_qemu_that_is_ended_from_outside_has_not_left_but_died(number: signal.Signals, tmp_path: Path) -> None:
    """QEMU exits with 0 at SIGTERM, as it does when its guest powers itself off."""
    threads: list[threading.Thread] = []

    def end(console: Path) -> None:
        until(lambda: console.is_file() and "up" in console.read_text(), what="the guest's first line")
        for pid in children():
            with contextlib.suppress(OSError):  # another one that has just ended
                if b"disk.img" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    os.kill(pid, number)

    def begin(begun: Begun) -> None:
        threads.append(threading.Thread(target=end, args=[files.console(begun.path, "mine")], daemon=True))
        threads[0].start()

    if_it_has_left = '[[timeline]]\nwhen = "up == 2"\ndo = "end"\n'
    run = boots("up\n", tmp_path, f'ready_when = "up"\n{if_it_has_left}', 300.0, on_begin=begin)
    threads[0].join()
    assert run.status == "failed"
    how, why = ("exit 0", " (host-signal): ") if number == signal.SIGTERM else ("SIGKILL", "; ")
    assert run.reason.startswith(f"mine died ({how}): its guest failed: QEMU ended{why}")


def test_a_qemu_that_does_not_start_is_told_in_its_own_words(tmp_path: Path) -> None:
    run = boots("", tmp_path, 'arguments = ["-device", "no-such-device"]\n')
    assert run.status == "failed"
    assert "no-such-device" in run.reason


@pytest.mark.parametrize("do", ["kill", "reset"])
def test_a_timeline_acts_on_a_guest(do: str, tmp_path: Path) -> None:
    entry = f'ready_when = "up"\n[[timeline]]\nat_s = 0.3\ndo = "{do}"\nmachines = "mine"\n'
    expected = ["up"] * (2 if do == "reset" else 1)
    for duration_s in SLOWER_S if do == "reset" else (1,):
        run = boots("up\n", tmp_path, entry, duration_s)
        summary = run.summary
        assert (run.status, run.reason) == ("finished", "")
        assert summary["balanced"]
        assert summary["rung"] == summary["delivered"] + summary["pending"] + summary["refused"] > 0
        lines = files.console(run.path, "mine").read_text().split()
        if lines == expected:
            break
    assert lines == expected


def test_a_run_ends_when_a_guest_has_printed_a_line(tmp_path: Path) -> None:
    entry = 'ready_when = "up"\n[[timeline]]\nconsole = "^done [0-9]"\nwhen = "elapsed_s > 0"\ndo = "end"\n'
    run = boots("up\ndone 1\n", tmp_path, entry, 100.0)
    assert (run.status, run.reason) == ("finished", "")
    assert run.summary["duration_s"] < 100
    assert [event["pattern"] for event in run.events() if event["kind"] == "console"] == ["^done [0-9]"]


def test_a_missing_image_is_told_with_the_command_that_makes_it(tmp_path: Path) -> None:
    topology = loads(HOST.replace("disk.img", str(tmp_path / "none.img")) + 'build = "make guest"\n')
    with pytest.raises(HostError, match=r"mine: there is no file .*none.img: `make guest` makes it"):
        sim.run(topology, runs=tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_console_command_prints_what_is_kept(tmp_path: Path) -> None:
    run = boots("up\n", tmp_path, 'ready_when = "up"\n')
    command = [sys.executable, "-m", "sim", "console", str(run.path)]
    done = subprocess.run([*command, "mine"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "up\n")
    done = subprocess.run([*command, "peer-0"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "there are those of mine" in done.stderr


def linux_guest() -> Topology:
    """The scenario; a test is skipped where the image of its guest has not been built."""
    shipped = load("linux_guest")
    images = [image.files for machine in shipped.machines if (image := machine.guest) is not None]
    if not all(Path(file).is_file() for files in images for file in files):
        pytest.skip("make guest builds it")
    return shipped


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_linux_guest_answers_each_doorbell_and_misses_none_of_a_storm(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """With a tenth of the doorbells; as many as the scenario has in `make full`."""
    shipped = linux_guest()
    topology, part = (shipped, 1) if request.config.getoption("--full") else (a_tenth(shipped, tmp_path), 10)
    run = sim.run(topology, runs=tmp_path / "runs")
    summary = run.summary
    assert (run.status, run.reason) == ("finished", "")
    assert len(summary["expectations"]) >= 6
    assert [each for each in summary["expectations"] if not each["met"]] == []
    assert summary["rung"] == summary["delivered"] == 220_000 // part + 5
    assert (summary["pending"], summary["refused"], summary["settled"], summary["guest_difference"]) == (0, 0, 0, 0)
    timer, linux = summary["statistics"]["timer"], summary["statistics"]["linux"]
    assert timer["rounds"] == 10_000 // part
    assert timer["to_peer_samples"] == timer["from_peer_samples"] == timer["rounds"]
    assert timer["clock_error_us"] >= 0  # of a line through few exchanges: large on a busy host
    assert 0 < timer["round_trip_p50_us"] <= timer["round_trip_p99_us"] <= timer["round_trip_max_us"]
    assert 10_000 // part < linux["interrupts"] <= linux["rung"] == 110_000 // part
    assert linux["missed"] == 0
    if part > 1:
        assert "ivsim: unplugged" in files.console(run.path, "linux").read_text()


@pytest.mark.full
@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_linux_guest_leaves_in_the_middle_of_its_storm(tmp_path: Path) -> None:
    shipped = linux_guest()
    text = shipped.source_text.partition("[[timeline]]")[0].replace("../../build", f"{ROOT}/build")
    for few, many in (("count = 20000,", "count = 10000000,"), ("storm=100000", "storm=10000000"), ("100.0", "300.0")):
        assert few in text
        text = text.replace(few, many)
    text = text.replace("rounds = 10000", "rounds = 100") + LEAVES_IN_ITS_STORM
    (tmp_path / "linux_guest.toml").write_text(text)
    run = sim.run(tmp_path / "linux_guest.toml", runs=tmp_path / "runs")
    assert (run.status, run.reason, run.balanced) == ("finished", "", True)
    assert not [event for event in run.events() if event["kind"] == "warning" and event["machine"] == "linux"]
    summary = run.summary
    assert (summary["pending"], summary["settled"], summary["guest_difference"]) == (0, 0, 0)
    assert summary["refused"] > 0
    assert summary["statistics"]["linux"]["rung"] > 1000
    assert [event["machine"] for event in run.events() if event["kind"] == "machine_left"] == ["linux"]


LEAVES_IN_ITS_STORM = """
[[timeline]]
when = "rung >= 20000"
of = "linux"
do = "leave"
machines = "linux"

[[timeline]]
console = "^ivsim: unplugged"
when = "up == 8"
do = "end"
"""
LEAVES_AT_ITS_END = """do = "leave"
machines = "linux"

[[timeline]]
console = "^ivsim: unplugged"
when = "up == 8"
do = "end"
"""


def a_tenth(shipped: Topology, folder: Path) -> Topology:
    """The scenario with a tenth of its doorbells, at the end of which the guest leaves."""
    text = re.sub(r"\b(1|2|10|11)0000\b", r"\g<1>000", shipped.source_text).replace("110005", "11005")
    assert 'do = "end"\n' in text
    text = text.replace('do = "end"\n', LEAVES_AT_ITS_END)
    (folder / "linux_guest.toml").write_text(text.replace("../../build", f"{ROOT}/build"))
    return load(folder / "linux_guest.toml")
