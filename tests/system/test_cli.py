"""The `ivsim` command: help, exit codes, what goes where."""

from __future__ import annotations

import io
import json
import os
import pty
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import click
import pytest
from rich.console import Console

import sim
from sim import cli
from sim.commands import progress
from sim.commands.catalogue import COMMANDS, INNER_EXAMPLES
from sim.exit_codes import BROKEN_PIPE, INTERRUPTED
from sim.telemetry import Group, Snapshot
from sim.views.rates import Rates
from tests.command import invoke
from topologies.scenario_files import scenario_names

CALM = ["--set", "machines.ping.parameters.rate_hz=1000.0"]
"""Leaves other tests some of the CPUs."""
QUICK = ["--set", "run.duration_s=0.3", "--set", "run.warmup_s=0.1", *CALM]


def ivsim(*arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "sim", *arguments], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done


def test_help_names_every_command() -> None:
    help_text = ivsim("-h").stdout
    for name in COMMANDS:
        assert f"\n  {name}" in help_text


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    cli.ivsim.main([name, "--help"], prog_name="ivsim", standalone_mode=False)
    assert f"Usage: ivsim {name}" in capsys.readouterr().out


@pytest.mark.parametrize("name", [*COMMANDS, *INNER_EXAMPLES])
def test_every_command_shows_an_example_that_it_understands(name: str) -> None:
    example = INNER_EXAMPLES.get(name) or COMMANDS[name].example
    program, *words = example.partition(" >")[0].split()
    assert (program, words[0]) == ("ivsim", name.partition(" ")[0])
    with cli.ivsim.make_context("ivsim", words) as context:
        _, command, arguments = cli.ivsim.resolve_command(context, words)
        assert command is not None
        with command.make_context(name, arguments, parent=context) as inner:
            topology = inner.params.get("topology")
            assert topology in (None, "topology.toml", *scenario_names())  # `ivsim init` writes topology.toml
            if isinstance(command, click.Group):
                _, sub, others = command.resolve_command(inner, [*inner._protected_args, *inner.args])
                assert sub is not None
                assert {name} <= {words[0], f"{words[0]} {sub.name}"}
                command = sub if " " in name else command
                sub.make_context(str(sub.name), others, parent=inner).close()
        assert str(command.epilog).endswith(f"Example: {example}")


@pytest.mark.parametrize("name", ["attach", "device"])
def test_the_help_of_a_group_says_all_of_what_each_command_does(name: str) -> None:
    assert "..." not in invoke(name, "--help").stdout.partition("\nCommands:")[2].partition("\n\n")[0]


def test_every_command_of_a_group_has_an_example() -> None:
    with cli.ivsim.make_context("ivsim", ["list"], resilient_parsing=True) as context:
        found = [(name, cli.ivsim.get_command(context, name)) for name in COMMANDS]
    groups = [(name, its.commands) for name, its in found if isinstance(its, click.Group)]
    assert {f"{name} {each}" for name, commands in groups for each in commands} == INNER_EXAMPLES.keys()


@pytest.mark.parametrize("command", ["validate", "graph", "migrate", "run", "sweep"])
def test_each_command_that_loads_a_topology_takes_programs_and_warns_that_they_run(command: str) -> None:
    told = " ".join(ivsim(command, "--help").stdout.split())
    assert "--program FILE" in told
    assert "its code runs with full trust" in told


def test_a_plan_of_migration_knows_programs_of_a_file(tmp_path: Path) -> None:
    topology, programs = tmp_path / "t.toml", tmp_path / "mine.py"
    topology.write_text("[machines.a]\nprogram = 'mine'\n")
    programs.write_text("def mine(guest):\n    yield\n")
    ivsim("migrate", "--plan", str(topology), code=2)
    assert "moves" in ivsim("migrate", "--plan", str(topology), "--program", str(programs)).stdout


@pytest.mark.parametrize("option", ["--junit", "--prometheus"])
def test_a_report_that_cannot_be_written_is_told_before_the_run(option: str, tmp_path: Path) -> None:
    done = ivsim("run", "ping_pong", "--runs", str(tmp_path / "runs"), option, str(tmp_path / "no" / "it"), code=2)
    assert f"there is no directory {tmp_path / 'no'}" in done.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("width", [60, 200])
def test_progress_hides_no_figure_on_a_narrow_terminal(width: int) -> None:
    first, then = (
        Snapshot(
            number=number,
            time_ns=number * 1_000_000_000,
            phase="running",
            machines=64,
            up=64,
            start_ns=1,
            stop_ns=9_000_000_000,
            heartbeats_late=0,
            groups={"storm": Group(64, 64, rung, 0, interrupts, 0)},
        )
        for number, rung, interrupts in ((1, 0, 0), (2, 1_234_567, 234_567))
    )
    rates = Rates()
    rates.update(first)
    rates.update(then)
    file = io.StringIO()
    Console(file=file, width=width).print(progress._show(then, rates, width))
    words = " ".join(file.getvalue().split())
    assert "1,234,567 doorbells/s" in words
    assert "234,567 interrupts/s 7.0 s left" in words


def test_run_shows_progress_on_stderr_and_the_result_on_stdout(tmp_path: Path) -> None:
    done = ivsim("run", "ping_pong", "--runs", str(tmp_path), "--set", "run.duration_s=1.5", *CALM)
    assert "machines up" in done.stderr
    assert "doorbells/s" in done.stderr
    assert "s left" in done.stderr
    assert done.stdout.startswith("Ping and echo: the price of one interrupt: finished\n")
    (directory,) = tmp_path.iterdir()
    assert f"\nrun: {directory}\n" in done.stdout
    assert ivsim("show", str(directory)).stdout == done.stdout


def test_a_terminal_gets_a_bar_that_leaves_nothing(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "sim", "run", "ping_pong", "--runs", str(tmp_path), *QUICK],
        stdout=subprocess.PIPE,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "120"},
    ) as run:
        os.close(theirs)
        shown = b""
        with os.fdopen(ours, "rb", buffering=0) as terminal:
            while chunk := _read(terminal.fileno()):
                shown += chunk
        run.communicate(timeout=60)
    assert run.returncode == 0
    assert b"machines up" in shown
    assert "━".encode() in shown
    assert b"\x1b[2K" in shown  # the bar is erased


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 4096)
    except OSError:  # EIO: the other end of the terminal is closed
        return b""


def test_a_process_of_its_own_looks_at_resources_from_the_start(tmp_path: Path) -> None:
    """Whatever has to be loaded for the first look: it does not put off the next ones, by fifty times what it took.

    A look costs a busy host more, and the next one comes later for that: then a longer run has to hold four.
    """
    for duration_s in (1.5, 3.0, 6.0):
        settings = ("--set", f"run.duration_s={duration_s}", *CALM, "--resources-every", "0.2")
        runs = tmp_path / str(duration_s)
        ivsim("run", "ping_pong", "--quiet", "--runs", str(runs), *settings)
        (directory,) = runs.iterdir()
        if (looks := sim.open(directory).resources()["machine"].to_pylist().count(0)) >= 4:
            break
    assert looks >= 4


def test_json_is_all_there_is_on_stdout(tmp_path: Path) -> None:
    done = ivsim("run", "ping_pong", "--json", "--seed", "7", "--runs", str(tmp_path), *QUICK)
    summary = json.loads(done.stdout)
    for key in ("schema_version", "machines", "rung", "delivered", "pending", "refused", "interrupts"):
        assert isinstance(summary[key], int)
    assert set(summary["latency_ns"]) == {"lag", "delivery", "handling", "raw", "total"}
    for figures in summary["latency_ns"].values():
        assert set(figures) == {"p50", "p90", "p99", "p99_9", "p99_99", "max", "samples", "intervals"}
    assert summary["rung"] == summary["delivered"] + summary["pending"] + summary["refused"]
    assert summary["seed"] == 7
    assert set(summary["groups"]) == {"ping", "echo"}
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["run", "no_such_topology"], 2, "no_such_topology"),
        (["run", "ping_pong", "--set", "machines.ping.vectors=0"], 2, "machines.ping.vectors"),
        (["run", "ping_pong", "--seed", "-1"], 2, "--seed"),
        (
            ["run", "ping_pong", "--set", "machines.echo.count=9000", "--set", "machines.echo.vectors=2048"],
            3,
            "descriptors",
        ),
        (["show", "no/such/run"], 2, "no such run directory"),
        (["show", "."], 2, "not a run directory"),
        (["run", "ping_pong", "--resources-every", "x"], 2, "expected a number (0<=x<=3600), got 'x'"),
        (["conformance", "--seed", "x"], 2, "expected a whole number (x>=0), got 'x'"),
        (["frobnicate"], 2, "No such command 'frobnicate': `ivsim -h` lists the commands"),
        (["validat"], 2, "No such command 'validat': did you mean \"validate\"?"),
        (["sweeps"], 2, 'did you mean "sweep"?'),
        (["run", "ping_pon"], 2, 'did you mean "ping_pong"?'),
        ([], 2, "Usage"),
    ],
)
def test_mistakes_are_explained(arguments: list[str], code: int, message: str, tmp_path: Path) -> None:
    if arguments[:1] == ["run"]:
        arguments = [*arguments, "--runs", str(tmp_path / "runs")]
    done = invoke(*arguments)
    assert done.returncode == code, done.stderr
    assert message in done.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "arguments", [["list"], ["list", "-h"], ["run", "ping_pong", "--dry-run"], ["validate", "ping_pong"]]
)
def test_a_reader_that_has_seen_enough_sees_no_traceback(arguments: list[str]) -> None:
    """Whatever prints, click or rich: the exit code is that of a broken pipe."""
    read_end, write_end = os.pipe()
    os.close(read_end)
    done = subprocess.run(
        [sys.executable, "-m", "sim", *arguments],
        stdout=write_end,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        timeout=60,
    )
    os.close(write_end)
    assert (done.returncode, done.stderr) == (BROKEN_PIPE, "")


@pytest.mark.parametrize(
    ("streams", "code"), [(">&-", {0}), ("2>&-", {0}), ("> /dev/full", {1, 3}), ("< /dev/null", {0}), ("<&-", {0})]
)
@pytest.mark.parametrize("arguments", [["list"], ["validate", "ping_pong"], ["run", "ping_pong", "--dry-run"]])
def test_streams_that_are_closed_or_full_bring_no_traceback(arguments: list[str], streams: str, code: set[int]) -> None:
    command = f"{shlex.join([sys.executable, '-m', 'sim', *arguments])} {streams}"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode in code, done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("arguments", [["list"], ["device", "list"], ["run", "ping_pong", "--dry-run"]])
def test_a_narrow_terminal_without_a_language_is_enough(arguments: list[str]) -> None:
    narrow = {**os.environ, "LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "COLUMNS": "20"}
    command = [sys.executable, "-m", "sim", *arguments]
    done = subprocess.run(command, capture_output=True, env=narrow, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout


# What the user names is no file, or not such a file.
WRONG_INPUTS = {
    "directory": lambda path: path.mkdir(),
    "binary": lambda path: path.write_bytes(bytes(range(256)) * 12),
    "empty": lambda path: path.touch(),
    "loop": lambda path: path.symlink_to(path.name),
    "missing": lambda path: None,
}


@pytest.mark.parametrize("kind", WRONG_INPUTS)
def test_no_command_answers_wrong_input_with_a_traceback(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "signals_too_late", lambda: None)  # this process goes on
    WRONG_INPUTS[kind](Path("it"))
    Path("ok.toml").write_text("[machines.a]\nprogram = 'idle'\n")
    for text in (
        "run it",
        "validate it",
        "graph it",
        "sweep it --repeat 2",
        "migrate it",
        "show it",
        "report it",
        "trace it",
        "compare it it",
        "explain it",
        "replay it -S s",
        "top it",
        "run ok.toml --program it",
        "sweep --resume it",
        "attach -S it peers",
        "run ok.toml --runs it/x/y --dry-run" if kind in ("binary", "empty") else "show it/x",
        "report it -o it/x",
    ):
        with pytest.raises(SystemExit) as ended:
            cli.main(text.split())
        told = capsys.readouterr()
        assert ended.value.code == 2, (text, told)
        assert told.err or told.out
        assert "Traceback" not in told.err
    assert {each.name for each in tmp_path.iterdir()} <= {"it", "ok.toml"}


@pytest.mark.parametrize("command", COMMANDS)
def test_an_interrupt_speaks_of_results_where_there_would_be_some(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.ivsim, "main", interrupted)
    monkeypatch.setattr("signal.signal", lambda *_: None)  # this process goes on
    with pytest.raises(SystemExit) as ending:
        cli.main([command, "--anything"])
    assert ending.value.code == INTERRUPTED
    what = " before there was anything to keep" if command in ("run", "sweep") else ""
    assert capsys.readouterr().err == f"ivsim: interrupted{what}\n"


INTERRUPTED_WHILE_IT_LOADS = """
import os, signal, sys

class Interrupts:
    def find_spec(self, name, path=None, target=None):
        if name == "click":
            os.kill(os.getpid(), signal.SIGINT)

if sys.argv.pop(1) == "ignored":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
sys.meta_path.insert(0, Interrupts())
from sim.__main__ import main
main()
"""


@pytest.mark.parametrize(("interrupts", "code"), [("default", -signal.SIGINT), ("ignored", 0)])
def test_an_interrupt_while_the_command_loads_leaves_no_traceback(interrupts: str, code: int) -> None:
    """A shell shows 130 for it. A shell's background job, which ignores interrupts, goes on."""
    ran = subprocess.run(
        [sys.executable, "-P", "-c", INTERRUPTED_WHILE_IT_LOADS, interrupts, "--version"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (ran.returncode, ran.stderr) == (code, "")
