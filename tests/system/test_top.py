"""`ivsim top`: the runs that go on are found, what they tell is shown, and it ends with them."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner, Result

from nodes.errors import UsageError
from sim.commands.top import top
from sim.results import RunDirectory
from sim.telemetry import Group, Publisher, RecentEvent, Snapshot, running
from sim.views.rates import Rates, left_s, pending, plain, ran_s
from tests.synthetic import finish, pair, topology

PATIENCE_S = 60.0
SECOND_NS = 1_000_000_000


def snapshot(number: int, **changed: object) -> Snapshot:
    made = Snapshot(
        number=number,
        time_ns=(10 + number) * SECOND_NS // 2,
        phase="running",
        machines=3,
        up=3,
        start_ns=5 * SECOND_NS,
        stop_ns=100 * SECOND_NS,
        heartbeats_late=0,
        groups={
            "storm": Group(2, 2, 1000 * number, 0, 0, number),
            "idle": Group(1, 1, 0, 900 * number, 300 * number, 0),
        },
    )
    return msgspec.structs.replace(made, **changed)


class Run:
    """A publisher that goes on saying how it goes, until it is told what to say last."""

    def __init__(self, at: Path, /, **changed: object) -> None:
        self._publisher = Publisher(at)
        self._changed = changed
        self._told = threading.Event()
        self.last: Snapshot | None = None
        self._thread = threading.Thread(target=self._publish)
        self._thread.start()

    def _publish(self) -> None:
        number = 0
        while not self._told.wait(0.01):
            number += 1
            self._publisher.publish(snapshot(number, **self._changed))
        if self.last is not None:
            # Twice: a subscriber that connects just now may miss the first.
            self._publisher.publish(msgspec.structs.replace(self.last, number=number + 1))

    def end(self, last: Snapshot | None) -> None:
        self.last = last
        self._told.set()
        self._thread.join()

    def close(self) -> None:
        self.end(self.last)
        self._publisher.close()


@contextlib.contextmanager
def goes_on(directory: Path, /, **changed: object) -> Iterator[Run]:
    directory.mkdir(exist_ok=True)
    run = Run(directory / "telemetry.zmq", **changed)
    try:
        yield run
    finally:
        run.close()


@pytest.fixture
def place(short_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only place where runs are looked for: other runs are not found."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(short_path))
    monkeypatch.setattr("sim.telemetry.discovery.runtime_parents", lambda: [short_path])
    return short_path


def call(*arguments: str) -> Result:
    return CliRunner().invoke(top, arguments)


def test_a_run_is_found_and_shown_once(place):
    with goes_on(place / "ivsim-a", title="A title", path="/runs/a"):
        done = call("--once")
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[0] == "A title  /runs/a"
    assert "running" in lines[1]
    assert "3/3 up" in lines[1]
    assert lines[2].split() == [
        "group",
        "up",
        "rung/s",
        "delivered/s",
        "interrupts/s",
        "per",
        "int.",
        "rung",
        "delivered",
        "refused",
    ]
    assert lines[3].split()[:2] == ["storm", "2/2"]
    # Two snapshots that are half a second apart: 1000 doorbells each.
    assert lines[3].split()[2:4] == ["2", "k"]
    assert [line.split()[0] for line in lines[2:]] == ["group", "storm", "idle"]


def test_json_is_one_object_with_rates(place):
    with goes_on(place / "ivsim-a"):
        done = call("--json")
    told = json.loads(done.stdout)
    assert told["groups"]["storm"]["rung_per_s"] == 2000
    assert told["groups"]["idle"]["delivered_per_s"] == 1800
    assert told["groups"]["idle"]["interrupts_per_s"] == 600
    assert told["pending"] == 99 * told["number"]
    assert (told["phase"], told["lost"]) == ("running", 0)


def test_without_a_run_that_is_said(place):
    for arguments in ((), ("--once",), ("--json",)):
        error = call(*arguments).exception
        assert isinstance(error, UsageError)
        assert "no run of yours is in progress" in str(error)
        assert str(place) in str(error)


def test_a_socket_that_was_left_behind_is_no_run(place):
    directory = place / "ivsim-dead"
    directory.mkdir()
    code = f"import socket; socket.socket(socket.AF_UNIX).bind({str(directory / 'telemetry.zmq')!r})"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    assert (directory / "telemetry.zmq").is_socket()
    assert running() == []
    assert isinstance(call("--once").exception, UsageError)
    assert "expected the telemetry socket" in str(call(str(directory)).exception)
    (directory / "telemetry.zmq").unlink()


def test_the_latest_run_is_watched_and_any_can_be_named(place):
    with goes_on(place / "ivsim-old", title="old"):
        os.utime(place / "ivsim-old" / "telemetry.zmq", (1, 1))
        with goes_on(place / "ivsim-new", title="new"):
            assert [found.path.parent.name for found in running()] == ["ivsim-new", "ivsim-old"]
            done = call("--once")
            assert done.stdout.startswith("new\n")
            assert "ivsim-old" in done.stderr
            for named in (place / "ivsim-old", place / "ivsim-old" / "telemetry.zmq"):
                done = call(str(named), "--once")
                assert (done.stdout.splitlines()[0], done.stderr) == ("old", "")


def test_a_run_directory_names_its_process(place, tmp_path):
    directory = RunDirectory.create(tmp_path, topology({"a": (1, 1)}), {})
    try:
        # Ours, but it publishes nothing yet.
        assert "telemetry socket is not" in str(call(str(directory.path), "--once").exception)
        with goes_on(place / "ivsim-a", title="mine"):
            assert call(str(directory.path), "--once").stdout.startswith("mine\n")
        # The last that a coordinator says: its socket is gone, what comes of it is not there yet.
        directory.event("telemetry", snapshots=1)
        error = call(str(directory.path), "--once").exception
        assert isinstance(error, UsageError)
        assert str(error).endswith(f"its results are being computed; `ivsim show {directory.path}` prints them then")
    finally:
        directory.close()
    over = finish(pair(tmp_path), {(1, 1): 1})
    assert "the run is over (finished)" in str(call(str(over.path)).exception)
    assert "no such" in str(call(str(tmp_path / "none")).exception)


def follow(place: Path, *arguments: str) -> subprocess.Popen[str]:
    """`ivsim top` as a process; it looks for runs where this one does."""
    return subprocess.Popen(
        [sys.executable, "-m", "sim", "top", str(place), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_it_ends_with_its_run_and_leaves_the_metrics(place):
    metrics = place / "ivsim.prom"
    with goes_on(place / "ivsim-a") as run:
        with follow(place / "ivsim-a", "--prometheus", str(metrics)) as process:
            deadline = time.monotonic() + PATIENCE_S
            while not metrics.exists():
                assert time.monotonic() < deadline
                time.sleep(0.01)
            run.end(snapshot(1000, phase="done"))
            out, err = process.communicate(timeout=PATIENCE_S)
        assert (process.returncode, err) == (0, "")
    assert out.splitlines()[-1].startswith("done")
    assert 'ivsim_phase{phase="done"} 1' in metrics.read_text()


def test_ctrl_c_is_a_good_end(place):
    with goes_on(place / "ivsim-a"), follow(place / "ivsim-a") as process:
        assert process.stdout is not None
        assert "running" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=PATIENCE_S)
        assert (process.returncode, err) == (0, "")


def test_a_run_that_breaks_off_is_said(place):
    with goes_on(place / "ivsim-a") as run, follow(place / "ivsim-a") as process:
        assert process.stdout is not None
        assert "running" in process.stdout.readline()
        run.close()
        _, err = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 1
        assert "broken off" in err


def test_on_a_terminal_it_is_a_table(place):
    ours, theirs = pty.openpty()
    with goes_on(place / "ivsim-a", title="A title") as run:
        environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
        command = [sys.executable, "-m", "sim", "top", str(place / "ivsim-a")]
        with subprocess.Popen(command, stdout=theirs, stderr=theirs, env=environment) as process:
            os.close(theirs)
            shown = b""
            with os.fdopen(ours, "rb", buffering=0) as terminal, contextlib.suppress(OSError):  # its other end closes
                while piece := terminal.read(4096):
                    shown += piece
                    if b"per int." in shown and run.last is None:
                        run.end(snapshot(1000, phase="done"))
        assert process.returncode == 0
    for said in (b"A title", b"rung/s", b"storm", b"done"):
        assert said in shown


def test_events_and_latencies_are_shown_when_a_run_tells_them(place):
    happened = (RecentEvent(6 * SECOND_NS, "action", "kill \x1b[31mstorm-1"),)
    with goes_on(place / "ivsim-a", happened=happened, latency_ns={"p50": 12_300, "p99": 2_000_000}):
        out = call("--once").stdout
    assert "delivery p50 12.3 us, p99 2 ms" in out
    assert "1.000 s  kill" in out
    assert "\x1b" not in out


def test_rates_are_of_the_last_second():
    rates = Rates()
    assert rates.of("storm") is None
    for number in range(1, 8):
        rates.update(snapshot(number, groups={"storm": Group(1, 1, number**2, 0, 0, 0)}))
    # Half a second between snapshots: the last second is from 5 to 7.
    assert rates.of("storm") == {"rung": 49 - 25, "delivered": 0, "interrupts": 0, "refused": 0}
    assert rates.of("none") is None
    rates.update(snapshot(7))  # the same moment again
    rates.update(snapshot(3))  # and one that comes too late
    assert rates.of("storm")["rung"] == 24


def test_times_and_debts_of_a_snapshot():
    its = snapshot(2)
    assert (ran_s(its), left_s(its), pending(its)) == (1.0, 94.0, 2000 - 2 - 1800)
    assert ran_s(snapshot(1, start_ns=None)) is None
    assert left_s(snapshot(1, phase="stopping")) is None
    # Delivered and counted there before it is counted as rung.
    assert pending(snapshot(1, groups={"a": Group(1, 1, 5, 6, 6, 0)})) == 0
    assert plain(its, Rates(), 3)["lost"] == 3
