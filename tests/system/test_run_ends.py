"""How a run ends is what its status says, whatever goes wrong and whenever: no machine's death is a footnote."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

import sim
from sim.coordination import coordinator
from sim.runner import Begun
from topologies import loads

PATIENCE_S = 60.0

PROGRAMS = """
import os
import time

from nodes.guest import FOREVER


def checks_in_finally(guest):
    try:
        while True:
            yield FOREVER
    finally:
        raise AssertionError("protocol broken")


def refuses_to_end(guest):
    while True:
        try:
            yield FOREVER
        except GeneratorExit:
            pass


def has_statistics_that_raise(guest):
    class Name:
        def __str__(self):
            raise ValueError("a name without words")

    guest.statistics[Name()] = 1
    yield FOREVER


def loses_its_statistics(guest):
    guest.statistics = None
    yield FOREVER


def raises_what_is_no_exception(guest):
    try:
        yield FOREVER
    finally:
        raise KeyboardInterrupt("by the program")


def raises_what_has_no_words(guest):
    class Mute(BaseException):
        def __str__(self):
            raise ValueError

    try:
        yield FOREVER
    finally:
        raise Mute


def counts_too_far(guest):
    guest.statistics.update(fits=1, huge=1 << 80, nan=float("nan"), text="x")
    yield FOREVER


def sleeps(name):
    with open(os.path.join(os.path.dirname(__file__), name), "w") as file:
        print(os.getpid(), file=file)
    time.sleep(300)
    os._exit(0)


def forks(guest):
    yield guest.clock() + 20_000_000
    if os.fork() == 0:
        sleeps("plain")
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            sleeps("daemon")
        os._exit(0)
    here = os.path.dirname(__file__)
    while not all(os.path.exists(path) and os.path.getsize(path) for path in map(here.__add__, ("/plain", "/daemon"))):
        yield guest.clock() + 5_000_000
    guest.ring(next(iter(guest.peers)))  # both are there
    yield FOREVER


def rings_when_told(guest):
    while not os.path.exists(os.path.join(os.path.dirname(__file__), "told")):
        yield guest.clock() + 5_000_000
    guest.ring(next(iter(guest.peers)))
    yield FOREVER
"""


@pytest.fixture
def programs(tmp_path: Path) -> str:
    path = tmp_path / "programs.py"
    path.write_text(PROGRAMS)
    return str(path)


def one(program: str, **keys: object) -> str:
    """A topology with a machine of that program beside one that idles."""
    run = "".join(f"{key} = {value!r}\n" for key, value in {"duration_s": 0.3, "warmup_s": 0.0, **keys}.items())
    return f'[run]\n{run}[machines.m]\nprogram = "{program}"\n[machines.other]\nprogram = "idle"\n'.replace("'", '"')


def kinds(result: sim.Run) -> list[str]:
    return [event["kind"] for event in result.events()]


def until(condition: Callable[[], bool], what: str) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline_s, what
        threading.Event().wait(0.01)


@contextlib.contextmanager
def once_running(act: Callable[[], None], programs: str) -> Iterator[Callable[[Begun], None]]:
    """Gives an ``on_begin``: when the machines of the run are ready, ``act`` in a thread of its own.

    Then the program `rings_when_told` rings: conditions of a timeline see that, however late it is.
    """
    threads: list[threading.Thread] = []
    failures: list[BaseException] = []

    def watch(begun: Begun) -> None:
        try:
            until(lambda: '"ready"' in (begun.path / "events.jsonl").read_text(), "the run did not begin")
            act()
            Path(programs).with_name("told").touch()
        except BaseException as error:
            failures.append(error)

    def begin(begun: Begun) -> None:
        threads.append(threading.Thread(target=watch, args=(begun,)))
        threads[0].start()

    yield begin
    for thread in threads:
        thread.join()
    assert not failures


def fork_server() -> psutil.Process:
    """The fork server of the run in this process: the oldest of what is forked from it, itself included."""
    forked = []
    for each in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            if "ivsim-forkserver" in each.cmdline():
                forked.append(each)
    return min(forked, key=lambda each: (each.create_time(), each.pid))


# What programs do at the end


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("checks_in_finally", "its program failed: AssertionError: protocol broken"),
        ("refuses_to_end", "its program failed: RuntimeError: generator ignored GeneratorExit"),
        ("has_statistics_that_raise", "its program failed: ValueError: a name without words"),
        ("loses_its_statistics", "its program failed: AttributeError"),
        ("raises_what_is_no_exception", "its program failed: KeyboardInterrupt: by the program"),
        ("raises_what_has_no_words", "its program failed: Mute: its text raised ValueError"),
    ],
)
@pytest.mark.parametrize(("on_death", "status"), [("fail", "failed"), ("degrade", "degraded")])
def test_an_exception_at_a_program_s_end_ends_the_run(
    program: str, words: str, on_death: str, status: str, programs: str, tmp_path: Path
) -> None:
    result = sim.run(loads(one(f"{programs}:{program}", on_death=on_death)), runs=tmp_path)
    assert result.status == status
    assert result.reason.startswith(f"m died (exit 1): {words}")
    assert kinds(result).count("machine_died") == 1
    assert result.balanced


def test_statistics_that_are_no_numbers_are_named_and_fail_nothing(programs: str, tmp_path: Path) -> None:
    result = sim.run(loads(one(f"{programs}:counts_too_far")), runs=tmp_path)
    assert (result.status, result.summary["statistics"]) == ("finished", {"m": {"fits": 1}})
    assert any("3 statistics of the program are no numbers that fit" in each for each in result.warnings)


def test_every_death_at_the_end_is_named(programs: str, tmp_path: Path) -> None:
    text = (
        f'[run]\nduration_s = 0.3\nwarmup_s = 0.0\n[machines.m]\ncount = 3\nprogram = "{programs}:checks_in_finally"\n'
    )
    result = sim.run(loads(text), runs=tmp_path)
    assert result.status == "failed"
    first, _, others = result.reason.removesuffix(" ended, too").rpartition("; ")
    assert {first.split()[0], *others.split(", ")} == {"m-0", "m-1", "m-2"}


END = '[[timeline]]\nwhen = "rung > 0"\ndo = "end"\n'
KILL = '[[timeline]]\nwhen = "rung > 0"\ndo = "kill"\nmachines = "m"\n'


def test_processes_of_a_program_end_with_the_run_and_are_named(programs: str, tmp_path: Path) -> None:
    result = sim.run(loads(one(f"{programs}:forks", duration_s=300.0) + END), runs=tmp_path)
    assert result.status == "finished"
    pids = [int((tmp_path / name).read_text()) for name in ("plain", "daemon")]
    assert not [pid for pid in pids if psutil.pid_exists(pid)]
    assert any("its program left 2 processes behind" in each for each in result.warnings)


def test_processes_of_a_machine_that_is_killed_end_too(programs: str, tmp_path: Path) -> None:
    result = sim.run(loads(one(f"{programs}:forks", duration_s=300.0) + KILL + END), runs=tmp_path)
    assert result.status == "finished"
    pids = [int((tmp_path / name).read_text()) for name in ("plain", "daemon")]
    assert not [pid for pid in pids if psutil.pid_exists(pid)]
    told = [event["text"] for event in result.events() if event["kind"] == "warning"]
    assert sum("was left behind by a machine, and was ended" in each for each in told) == len(pids)


# What others do to a run


def test_a_runtime_directory_that_vanishes_costs_nothing(
    programs: str, short_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(short_path))
    with once_running(lambda: remove_directories(short_path), programs) as begin:
        result = sim.run(
            loads(one(f"{programs}:rings_when_told", duration_s=300.0) + END), runs=tmp_path, on_begin=begin
        )
    assert (result.status, result.balanced) == ("finished", True)
    assert result.summary["rung"] == 1


def remove_directories(parent: Path) -> None:
    """Those of runs."""
    for path in parent.glob("ivsim-*"):
        shutil.rmtree(path)


def when_it_has_rung(do: str, **keys: str) -> str:
    """An entry of a timeline."""
    return f'[[timeline]]\nwhen = "rung > 0"\ndo = "{do}"\n' + "".join(f'{key} = "{of}"\n' for key, of in keys.items())


def test_a_server_that_finds_no_directory_is_an_action_that_was_not_done(
    programs: str, short_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(short_path))
    text = one(f"{programs}:rings_when_told", duration_s=300.0)
    text += when_it_has_rung("stop_server") + when_it_has_rung("start_server") + END
    with once_running(lambda: remove_directories(short_path), programs) as begin:
        result = sim.run(loads(text), runs=tmp_path, on_begin=begin)
    assert result.status == "finished"
    (skipped,) = (event["skipped"] for event in result.events() if event.get("skipped"))
    assert "cannot" in skipped or "No such file" in skipped


@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGKILL])
def test_a_run_ends_without_its_fork_server(number: signal.Signals, programs: str, tmp_path: Path) -> None:
    """It is needed for machines that start, and for nothing else."""
    with once_running(lambda: fork_server().send_signal(number), programs) as begin:
        result = sim.run(
            loads(one(f"{programs}:rings_when_told", duration_s=300.0) + END), runs=tmp_path, on_begin=begin
        )
    assert (result.status, result.balanced) == ("finished", True)


def test_a_machine_that_cannot_be_started_later_fails_the_run_and_says_why(programs: str, tmp_path: Path) -> None:
    text = one(f"{programs}:rings_when_told", duration_s=300.0) + '[machines.late]\nabsent = true\nprogram = "idle"\n'
    with once_running(lambda: fork_server().kill(), programs) as begin:
        result = sim.run(loads(text + when_it_has_rung("join", machines="late")), runs=tmp_path, on_begin=begin)
    assert result.status == "failed"
    assert result.reason == "late could not be started: the fork server ended (SIGKILL)"


def test_a_fork_server_that_is_killed_amid_a_start_is_the_reason(tmp_path: Path) -> None:
    """Machines that were forked before are as good as any; the others could not be started."""

    def kill() -> None:
        until(lambda: len(psutil.Process().children()) > 2, "no machine was forked")
        fork_server().kill()

    thread = threading.Thread(target=kill)
    text = one("idle").replace("[machines.m]", "[machines.m]\ncount = 60")
    result = sim.run(loads(text), runs=tmp_path, on_begin=lambda _: thread.start())
    thread.join()
    assert result.status in ("finished", "failed")
    if result.status == "failed":
        assert "could not be started: the fork server ended (SIGKILL)" in result.reason
    assert result.balanced


# A start that fails


@pytest.fixture
def in_the_fork_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Have these lines run in the fork server before it does anything."""

    def arrange(lines: str) -> None:
        (tmp_path / "lib").mkdir()
        condition = 'import os, signal, sys\nif "ivsim-forkserver" in sys.orig_argv:\n'
        (tmp_path / "lib" / "sitecustomize.py").write_text(condition + f"    {lines}\n")
        monkeypatch.setenv("PYTHONPATH", str(tmp_path / "lib"))

    return arrange


def test_a_fork_server_that_dies_is_told_with_its_last_words(
    in_the_fork_server: Callable[[str], None], tmp_path: Path
) -> None:
    in_the_fork_server('print("no license", file=sys.stderr); sys.stderr.flush(); os._exit(7)')
    result = sim.run("ping_pong", runs=tmp_path / "runs")
    assert result.status == "failed"
    # The other one has been asked for by then, or has not.
    why = r"(ping|echo) could not be started: the fork server ended \(exit 7\): no license(; (ping|echo) ended, too)?"
    assert re.fullmatch(why, result.reason), result.reason
    assert (result.path / "status").read_text() == f"failed\n{result.reason}\n"


def test_output_of_the_fork_server_is_not_lost(
    in_the_fork_server: Callable[[str], None], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    in_the_fork_server('print("a deprecation", file=sys.stderr)')
    result = sim.run("ping_pong", runs=tmp_path / "runs", overrides={"run.duration_s": "0.2", "run.warmup_s": "0.0"})
    assert result.status == "finished"
    assert "a deprecation" in capfd.readouterr().err


def test_a_start_without_progress_is_given_up_with_the_reason(
    in_the_fork_server: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_the_fork_server("os.kill(os.getpid(), signal.SIGSTOP)")
    monkeypatch.setattr(coordinator, "START_LOOKS", 8)
    result = sim.run("ping_pong", runs=tmp_path / "runs")
    assert result.status == "failed"
    assert result.reason.startswith("no progress for 2 s, the fork server (process ")
    assert result.reason.endswith(" is stopped; not Ready: ping, echo")


def test_an_interrupt_ends_a_start_that_hangs(in_the_fork_server: Callable[[str], None], tmp_path: Path) -> None:
    in_the_fork_server("os.kill(os.getpid(), signal.SIGSTOP)")
    timer = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT))
    result = sim.run("ping_pong", runs=tmp_path / "runs", on_begin=lambda _: timer.start())
    timer.join()
    assert (result.status, result.reason) == ("interrupted", "SIGINT")
