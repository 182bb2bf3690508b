"""Processes are killed, interrupted or wedged at every stage: what was measured is kept, and nothing is left."""

from __future__ import annotations

import contextlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

import sim
from nodes.errors import UsageError
from sim.cli import main
from sim.kernel.memory import map_region
from sim.kernel.signals import ENDING
from sim.recording import Recording, State, header
from sim.runner import Begun
from tests.faults.processes import is_alive, left_alive
from tests.system.test_serve import GreetedClient

PATIENCE_S = 60.0

STORM = (
    *("doorbell_storm", "--set", "machines.storm.count=4", "--set", "run.duration_s=30"),
    *("--set", "machines.storm.parameters.rate_hz=500.0"),
)
CALM = ("--set", "machines.ping.parameters.rate_hz=500.0")

PROGRAMS = """
import os, signal

def raises(guest):
    yield guest.clock() + 10_000_000
    raise ValueError("boom")

def spins(guest):
    yield 0
    open(__file__ + ".spins", "w").close()
    while True:
        pass

def yields_nonsense(guest):
    yield 1.5

def ends(guest):
    yield 0

def truncates(guest):
    # Makes its memory smaller, as any host program can, and touches the rest.
    yield guest.clock() + 50_000_000
    with open("/proc/self/maps") as maps:
        (path,) = {line.split()[5] for line in maps if "/dev/shm/ivsim-" in line}
    os.truncate(path, 4096)
    guest.memory[8192] = 1

def kills_itself(guest):
    yield guest.clock() + 50_000_000
    os.kill(os.getpid(), signal.SIGKILL)

def never_starts(guest):
    raise KeyError("no")
    yield
"""


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "fault_programs.py").write_text(PROGRAMS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    yield
    sys.modules.pop("fault_programs", None)


def topology(tmp_path: Path, program: str, *, on_death: str = "fail", duration_s: float = 0.5) -> Path:
    """Two machines that storm each other, and one with the program under test."""
    path = tmp_path / "faulty.toml"
    path.write_text(
        f"""
        title = "Faulty"
        [run]
        duration_s = {duration_s}
        warmup_s = 0.0
        on_death = "{on_death}"
        [machines.storm]
        count = 2
        program = "storm"
        parameters = {{ rate_hz = 1000.0 }}
        [machines.faulty]
        program = "fault_programs:{program}"
        """
    )
    return path


def balances(result: sim.Run) -> bool:
    summary = result.summary
    return bool(summary["rung"] == summary["delivered"] + summary["pending"] + summary["refused"])


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("raises", r"faulty died \(exit 1\): its program failed: ValueError: boom"),
        ("yields_nonsense", r"its program failed: GuestError: a program yields .*, not 1\.5"),
        ("never_starts", r"its program failed: KeyError: 'no'"),
        ("kills_itself", r"faulty died \(SIGKILL\)"),
        ("truncates", r"faulty died \(SIGBUS: the shared memory was made smaller, from \d+ to 4096 bytes: .*memfd"),
    ],
)
def test_a_program_that_dies_fails_the_run_and_says_why(
    program: str, reason: str, programs: None, tmp_path: Path
) -> None:
    result = sim.run(topology(tmp_path, program, duration_s=20), runs=tmp_path / "runs")
    assert result.status == "failed"
    assert re.search(reason, result.reason), result.reason
    assert balances(result)
    failures = [event for event in result.events() if event["kind"] == "failure"]
    if program not in ("kills_itself", "truncates"):
        assert "fault_programs.py" in failures[0]["traceback"] or program == "yields_nonsense"


def test_a_machine_that_dies_degrades_the_run_if_asked(programs: None, tmp_path: Path) -> None:
    result = sim.run(topology(tmp_path, "kills_itself", on_death="degrade"), runs=tmp_path / "runs")
    assert result.status == "degraded"
    assert balances(result)
    assert [event["kind"] for event in result.events()].count("peer_left") == 1
    # The others rang each other until the end.
    assert result.summary["elapsed_s"] >= 0.5


def test_a_program_that_never_lets_go_is_killed_and_named(programs: None, tmp_path: Path) -> None:
    result = sim.run(topology(tmp_path, "spins"), runs=tmp_path / "runs")
    assert result.status == "failed"
    assert "faulty did not stop: its program never yields" in result.reason
    assert balances(result)


def test_a_program_that_ends_leaves_an_idle_machine(programs: None, tmp_path: Path) -> None:
    result = sim.run(topology(tmp_path, "ends"), runs=tmp_path / "runs")
    assert (result.status, balances(result)) == ("finished", True)


def workers_of(pid: int) -> list[psutil.Process]:
    """The machines of a run, oldest first: children of its coordinator, forked by one that is the oldest of them."""
    forked = []
    for child in psutil.Process(pid).children():
        with contextlib.suppress(psutil.Error):
            if "ivsim-forkserver" in child.cmdline():
                forked.append(child)
    return sorted(forked, key=lambda each: (each.create_time(), each.pid))[1:]


@contextlib.contextmanager
def when(condition: Callable[[], bool], action: Callable[[], None]) -> Iterator[None]:
    """In a thread: wait until ``condition`` holds, then act; the run goes on in this one."""

    def watch() -> None:
        deadline_s = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline_s:
            with contextlib.suppress(psutil.Error):
                if condition():
                    action()
                    return
            stop.wait(0.01)

    stop = threading.Event()
    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


NOT_STARTED = "could not be started: its process ended at once"


@pytest.mark.parametrize("delay_s", [0.0, 0.05, 0.3])
def test_a_worker_that_is_killed_at_any_moment_is_announced_and_settled(delay_s: float, tmp_path: Path) -> None:
    """From its fork on; its recording is what it had measured."""
    count = 4

    def kill() -> None:
        threading.Event().wait(delay_s)
        workers_of(os.getpid())[-1].kill()

    with when(lambda: len(workers_of(os.getpid())) == count, kill):
        result = sim.run(
            "doorbell_storm",
            runs=tmp_path,
            overrides={"machines.storm.count": str(count), "run.duration_s": "20.0"},
        )
    assert result.status == "failed"
    assert balances(result)
    (how,) = [event["how"] for event in result.events() if event["kind"] == "machine_died"]
    # Killed before it has said its process ID, it has no exit status that the coordinator could read.
    assert how in ("SIGKILL", NOT_STARTED)
    assert ("died (SIGKILL)" if how == "SIGKILL" else NOT_STARTED) in result.reason


def wait_for(path: Path) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while not path.exists():
        assert time.monotonic() < deadline_s, f"no {path}"
        threading.Event().wait(0.01)


class Ivsim:
    """`ivsim run` as a process of its own, in a session of its own."""

    def __init__(self, tmp_path: Path, *arguments: str) -> None:
        self.runs = tmp_path / "runs"
        command = [sys.executable, "-m", "sim", "run", *arguments, "--runs", str(self.runs)]
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def wait_for_machines(self, count: int) -> list[psutil.Process]:
        deadline_s = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline_s:
            with contextlib.suppress(psutil.Error):
                workers = workers_of(self.process.pid)
                if len(workers) == count and self.is_running():
                    return workers
            assert self.process.poll() is None, self.process.communicate()
            threading.Event().wait(0.05)
        raise AssertionError("the run did not begin")

    def is_running(self) -> bool:
        """The storm has begun, and some of its doorbells are counted."""
        for path in self.runs.glob("*/raw/0.rec"):
            with contextlib.suppress(UsageError), Recording.open(path) as recording:
                rung_at = range(recording.layout.edges_at + 1, recording.layout.rings_at, 3)
                return any(recording.words[at] for at in rung_at)
        return False

    @property
    def directory(self) -> Path:
        (path,) = self.runs.iterdir()
        return path


def segments_of(pid: int) -> list[str]:
    """The names of the memory of runs of this process."""
    return [name for name in os.listdir("/dev/shm") if name.startswith(f"ivsim-{pid}-")]


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where runs make their sockets; nothing stays there."""
    with tempfile.TemporaryDirectory(prefix="iv-", dir="/tmp") as path:
        monkeypatch.setenv("XDG_RUNTIME_DIR", path)
        yield Path(path)
        assert os.listdir(path) == []


@pytest.mark.parametrize("with_spinner", [False, True])
def test_the_coordinator_is_killed(with_spinner: bool, programs: None, runtime: Path, tmp_path: Path) -> None:
    """All processes end within two seconds, and opening the run computes its results from the recordings."""
    if with_spinner:
        ivsim = Ivsim(tmp_path, str(topology(tmp_path, "spins", duration_s=30)))
        family = ivsim.wait_for_machines(3)
        wait_for(tmp_path / "fault_programs.py.spins")
    else:
        ivsim = Ivsim(tmp_path, *STORM)
        family = ivsim.wait_for_machines(4)
    family += psutil.Process(ivsim.process.pid).children()
    with pytest.raises(UsageError, match="running"):
        sim.open(ivsim.directory)
    ivsim.process.kill()
    ivsim.process.communicate()
    assert left_alive(family) == []
    assert segments_of(ivsim.process.pid) == []
    recovered = sim.open(ivsim.directory)
    assert recovered.status == "died"
    assert balances(recovered)
    assert recovered.summary["rung"] > 0
    assert recovered.summary["pending_derived"]


@pytest.mark.usefixtures("orphans_alone")
def test_the_next_run_removes_the_leftovers_of_a_coordinator_killed_at_its_start(runtime: Path, tmp_path: Path) -> None:
    """Its fork server has not begun to serve, and cannot clean up. Directories of other runs and unsigned ones stay."""
    code = "import os, sys, sim; sim.run('ping_pong', runs=sys.argv[1], on_begin=lambda _: os.kill(os.getpid(), 9))"
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "killed")]) as killed:
        killed.wait(PATIENCE_S)
    assert len(segments_of(killed.pid)) <= 1  # another test's run may have removed it already
    (orphaned,) = runtime.iterdir()
    for name, signed in (("ivsim-empty", None), ("ivsim-not-signed", ""), ("ivsim-open", "1")):
        (runtime / name).mkdir(mode=0o700)
        if signed is not None:
            (runtime / name / "owner.pid").write_text(signed)
    (runtime / "ivsim-open").chmod(0o770)
    (runtime / "ivsim-link").symlink_to(orphaned)
    others = sorted(path.name for path in runtime.iterdir() if path != orphaned)

    def begin(begun: Begun) -> None:
        (own,) = (path for path in runtime.iterdir() if path.name not in others)
        with pytest.raises(RuntimeError, match="second"):
            sim.run("ping_pong", runs=tmp_path, on_begin=lambda _: refuse("second"))
        assert own.is_dir()
        assert (own / "owner.pid").read_text() == f"{os.getpid()}\n"
        refuse("first")

    def refuse(which: str) -> None:
        raise RuntimeError(which)

    with pytest.raises(RuntimeError, match="first"):
        sim.run("ping_pong", runs=tmp_path, on_begin=begin)
    assert segments_of(killed.pid) == []
    assert sorted(path.name for path in runtime.iterdir()) == others
    for name in others:
        path = runtime / name
        path.unlink() if path.is_symlink() else shutil.rmtree(path)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_ends_the_run_with_what_was_measured(
    number: signal.Signals, code: int, runtime: Path, tmp_path: Path
) -> None:
    ivsim = Ivsim(tmp_path, *STORM)
    family = ivsim.wait_for_machines(4)
    os.killpg(ivsim.process.pid, number)
    stdout, stderr = ivsim.process.communicate(timeout=PATIENCE_S)
    assert ivsim.process.returncode == code, stderr
    assert left_alive(family) == []
    assert "Traceback" not in stderr + stdout
    result = sim.open(ivsim.directory)
    assert (result.status, result.reason) == ("interrupted", number.name)
    assert balances(result)
    assert result.summary["settled"] == 0
    assert result.summary["rung"] > 0


def test_a_second_signal_does_not_wait(programs: None, runtime: Path, tmp_path: Path) -> None:
    ivsim = Ivsim(tmp_path, str(topology(tmp_path, "spins", duration_s=30)))
    family = ivsim.wait_for_machines(3)
    wait_for(tmp_path / "fault_programs.py.spins")
    os.killpg(ivsim.process.pid, signal.SIGINT)
    while all(map(is_alive, family)):  # two signals at once are one: the first one has ended another machine
        assert ivsim.process.poll() is None
        threading.Event().wait(0.01)
    os.killpg(ivsim.process.pid, signal.SIGINT)
    _, stderr = ivsim.process.communicate(timeout=PATIENCE_S)
    assert ivsim.process.returncode == 130, stderr
    assert "Traceback" not in stderr
    assert left_alive(family) == []
    result = sim.open(ivsim.directory)
    assert result.status == "interrupted"
    # The signal has killed the one that never yields; one whose patience was over would have an event of its own.
    assert not [event for event in result.events() if event["kind"] == "machine_killed"]
    assert balances(result)


def test_a_third_signal_gives_up_and_says_what_is_kept(
    runtime: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def account(*_: object) -> None:
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("the third one was taken, too")

    before = {number: signal.getsignal(number) for number in ENDING}  # `main` ends with them ignored
    monkeypatch.setattr("sim.results.finalize.account", account)
    with pytest.raises(SystemExit) as ended:
        main(["run", "ping_pong", *CALM, "--set", "run.duration_s=0.2", "--runs", str(tmp_path), "-q"])
    monkeypatch.undo()
    for number, handler in before.items():
        signal.signal(number, handler)
    (path,) = tmp_path.iterdir()
    assert ended.value.code == 130
    assert capsys.readouterr().err.endswith(f"by: ivsim show {path}\n")
    result = sim.open(path)
    assert result.status == "finished"
    assert balances(result)


def test_a_signal_at_any_moment_leaves_nothing_and_no_traceback(runtime: Path, tmp_path: Path) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    moments = random.Random(seed)
    for number in range(6):
        ivsim = Ivsim(tmp_path / str(number), "ping_pong", *CALM, "--set", "run.duration_s=20")
        threading.Event().wait(moments.random() * 1.2)
        os.killpg(ivsim.process.pid, signal.SIGINT)
        stdout, stderr = ivsim.process.communicate(timeout=PATIENCE_S)
        assert ivsim.process.returncode != 0
        # Before its first line runs, an interpreter that is interrupted says so in its own way.
        if ivsim.runs.exists():
            assert (ivsim.process.returncode, "Traceback" in stderr) == (130, False), (stdout, stderr)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_before_the_first_machine_starts_is_noted(number: int, tmp_path: Path) -> None:
    topology = Path("topologies/scenarios/doorbell_storm.toml")
    result = sim.run(
        topology, runs=tmp_path, overrides={"run.duration_s": "60.0"}, on_begin=lambda _: os.kill(os.getpid(), number)
    )
    assert (result.status, result.reason) == ("interrupted", signal.Signals(number).name)
    assert balances(result)
    # One that was already being forked is killed where it does not get a CPU to stop in time.
    assert not [event for event in result.events() if event["kind"] in ("ready", "machine_died")]


def test_the_server_socket_takes_no_place_that_is_taken(tmp_path: Path) -> None:
    taken = tmp_path / "file"
    taken.write_text("mine")
    with pytest.raises(UsageError, match="is not a socket"):
        sim.run("ping_pong", runs=tmp_path / "runs", socket_path=taken)
    assert taken.read_text() == "mine"


def test_a_caller_whose_callback_fails_gets_its_error_and_nothing_is_left(tmp_path: Path) -> None:
    def begin(begun: Begun) -> None:
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        sim.run("ping_pong", runs=tmp_path, on_begin=begin)


@pytest.mark.fault("F21", full=20, sample=1, unit="stopped coordinators")
def test_machines_stop_in_time_while_the_coordinator_sleeps(runtime: Path, fault_count: int, tmp_path: Path) -> None:
    """The end of a run is its time on the monotonic clock, not the coordinator's turn on a CPU."""
    for cycle in range(fault_count):
        run_beside_a_stopped_coordinator(tmp_path / str(cycle))


def run_beside_a_stopped_coordinator(tmp_path: Path) -> None:
    # Long enough that a busy host sees the machines run before their end.
    settings = ("machines.storm.count=3", "machines.storm.parameters.rate_hz=500.0", "run.duration_s=4.0")
    ivsim = Ivsim(tmp_path, "doorbell_storm", *(word for each in settings for word in ("--set", each)))
    ivsim.wait_for_machines(3)
    ivsim.process.send_signal(signal.SIGSTOP)
    deadline_s = time.monotonic() + PATIENCE_S
    for path in ivsim.runs.glob("*/raw/*.rec"):
        with Recording.open(path) as recording:
            while recording.words[header.STATE] != State.STOPPED:
                assert time.monotonic() < deadline_s, "still running"
                threading.Event().wait(0.01)
    ivsim.process.send_signal(signal.SIGCONT)
    _, stderr = ivsim.process.communicate(timeout=PATIENCE_S)
    assert ivsim.process.returncode == 0, stderr
    result = sim.open(ivsim.directory)
    assert balances(result)
    assert result.summary["settled"] == 0
    assert result.summary["elapsed_s"] == pytest.approx(4.5, abs=0.001)


@pytest.mark.usefixtures("orphans_alone")
def test_a_run_does_not_take_memory_that_clients_of_a_killed_run_use(
    runtime: Path, tmp_path: Path, short_path: Path
) -> None:
    """Otherwise two runs would share a name and not the memory; and a run begins with memory that is zero."""
    path, name = short_path / "s", f"ivt-{os.getpid()}-{short_path.name}"
    named = ["ping_pong", *CALM, "--set", f'memory.name="{name}"', "--set", "run.duration_s=30", "--socket", str(path)]
    ivsim = Ivsim(tmp_path, *named)
    family = [*ivsim.wait_for_machines(2), *psutil.Process(ivsim.process.pid).children()]
    with contextlib.closing(GreetedClient(path, 2)) as visitor:
        ivsim.process.kill()
        ivsim.process.communicate()
        assert left_alive(family) == []
        with map_region(visitor.memory) as memory:
            memory[0:4] = b"kept"
            again = Ivsim(tmp_path / "again", *named)
            _, told = again.process.communicate(timeout=PATIENCE_S)
            assert again.process.returncode == 2
            assert f"shared memory '{name}' exists already: clients of a server that was killed still use it" in told
            assert f"[{os.getpid()}]" in told
            assert memory[0:4] == b"kept"
    path.unlink(missing_ok=True)
    result = sim.run(
        "ping_pong", runs=tmp_path, overrides={"memory.name": name, "run.duration_s": 0.2, "run.warmup_s": 0.0}
    )
    assert result.status == "finished"
    assert not Path("/dev/shm", name).exists()
