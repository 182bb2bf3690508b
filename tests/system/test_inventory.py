"""`ivsim ps` and `ivsim clean`: what is there has an owner, and only what is proved to have none is removed."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from sim.commands.inventory import clean, ps
from sim.host.inventory import Item, inventory, remove
from sim.host.runtime_directory import RuntimeDirectory, runtime_directories, runtime_directory
from sim.host.runtime_directory import remove as remove_directory
from sim.kernel.memory import Region
from sim.kernel.processes import RUN_VARIABLE, run_of
from sim.kernel.segments import mappings

PATIENCE_S = 60.0
pytestmark = pytest.mark.usefixtures("orphans_alone")


def wait_until(condition: Callable[[], object], process: subprocess.Popen[Any]) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert process.poll() is None, process.stderr and process.stderr.read()
        assert time.monotonic() < deadline_s
        time.sleep(0.02)


@contextlib.contextmanager
def started(*arguments: object, **options: object) -> Iterator[subprocess.Popen[str]]:
    """`ivsim` in a process group of its own, which is killed as a whole in the end."""
    command = [sys.executable, "-m", "sim", *map(str, arguments)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True, **options) as process:  # type: ignore[call-overload]
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def items_of(pid: int, memory: str = "") -> list[Item]:
    return [item for item in inventory() if item.pid == pid or item.name == f"/dev/shm/{memory}"]


def test_a_run_is_listed_and_what_its_killed_group_leaves_is_removed(tmp_path: Path) -> None:
    """Case 15. The memory has a name of its own: one with a generated name is removed by any run that starts."""
    name = f"ivt-{os.getpid()}-killed"
    arguments = (
        "run",
        "ping_pong",
        "-q",
        "--set",
        "run.duration_s=60.0",
        "--set",
        "machines.ping.parameters.rate_hz=100.0",
        "--set",
        f'memory.name="{name}"',
    )
    with started(*arguments, "--runs", tmp_path) as process:
        wait_until(lambda: any('"ready"' in each.read_text() for each in tmp_path.glob("*/events.jsonl")), process)
        wait_until(lambda: any(item.kind == "run" and len(item.detail) > 1 for item in items_of(process.pid)), process)
        run, memory = items_of(process.pid)
        (directory,) = tmp_path.iterdir()
        assert (run.kind, run.state, run.pid, run.name) == ("run", "in use", process.pid, str(directory))
        assert run.detail[0].endswith(": running, 2 of 2 machines")
        assert (memory.kind, memory.state, memory.pid) == ("memory", "in use", process.pid)
        assert memory.name == f"/dev/shm/{name}"
        assert memory.name in run.detail[1]
        assert not remove(run)
        assert not remove(memory)
        assert Path(memory.name).exists()
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    wait_for_state("orphaned", process.pid, name)
    left = items_of(process.pid, name)
    assert {item.kind for item in left} == {"memory", "directory"}
    assert all(map(remove, left))
    assert items_of(process.pid, name) == []


def wait_for_state(state: str, pid: int, memory: str) -> None:
    """Machines of a killed group take a moment to be gone, and hold the memory until then."""
    deadline_s = time.monotonic() + PATIENCE_S
    while {item.state for item in items_of(pid, memory)} != {state}:
        assert time.monotonic() < deadline_s, items_of(pid, memory)
        time.sleep(0.02)


def test_a_server_is_listed_and_its_memory_is_removed_only_when_no_client_uses_it(short_path: Path) -> None:
    name = f"ivt-{os.getpid()}-inventory"

    def memory() -> Item:
        return next(item for item in inventory() if item.name == f"/dev/shm/{name}")

    with started("serve", "-F", "-S", short_path / "s", "-n", 2, "-l", "64K", "-M", name) as server:
        wait_until((short_path / "s").exists, server)
        (listed,) = (item for item in inventory() if item.kind == "server" and item.pid == server.pid)
        assert listed.detail == (f"listens at {short_path / 's'}",)
        assert (memory().state, memory().pid) == ("in use", server.pid)
        with started("attach", "-S", short_path / "s", "watch", stdout=subprocess.PIPE) as client:
            wait_until(lambda: any(each.pid == client.pid for each in mappings(name)), client)
            server.kill()
            server.wait()
            assert memory().state == "in use"
            assert str(client.pid) in memory().detail[1]
            assert not remove(memory())
            assert not remove(Item("memory", "orphaned", None, memory().name)), (
                "whatever was listed, it is looked at again"
            )
    assert memory().state == "orphaned"
    assert remove(memory())
    (short_path / "s").unlink()


def test_a_process_whose_run_has_ended_is_ended(tmp_path: Path) -> None:
    with runtime_directory() as runtime:
        marked = {**os.environ, RUN_VARIABLE: str(runtime)}
        with subprocess.Popen(["sleep", "60"], env=marked) as process:
            wait_until(lambda: run_of(process.pid), process)  # Popen returns when the environment is not there yet
            assert items_of(process.pid) == []
            assert not remove(Item("process", "orphaned", process.pid, "sleep 60"))
            with subprocess.Popen(["sleep", "60"], env=marked | {RUN_VARIABLE: str(tmp_path / "gone")}) as orphan:
                wait_until(lambda: run_of(orphan.pid), orphan)
                (item,) = items_of(orphan.pid)
                assert (item.kind, item.state, item.name) == ("process", "orphaned", "sleep 60")
                assert remove(item)
                assert orphan.wait() == -signal.SIGKILL
                assert remove(item)
            process.kill()


def test_a_directory_is_owned_as_long_as_its_lock_is_held() -> None:
    with runtime_directory() as path:
        (found,) = (each for each in runtime_directories() if each.path == path)
        assert (found.pid, found.owned) == (os.getpid(), True)
        assert not remove(Item("directory", "orphaned", os.getpid(), str(path))), "it is looked at again"
        assert path.is_dir()
    assert path not in [each.path for each in runtime_directories()]


MAKER = """
import os, signal, sys, fcntl, tempfile
from pathlib import Path
from sim.host import runtime_directory as module

def die(*_: object, **__: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)

setattr({"open": Path, "flock": fcntl, "print": module}[sys.argv[1]], sys.argv[1], die)
with module.runtime_directory():
    pass
"""


@pytest.mark.parametrize("step", ["open", "flock", "print"])
def test_a_maker_killed_at_any_step_leaves_a_directory_that_is_removed(
    step: str, short_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(short_path))
    with subprocess.Popen([sys.executable, "-c", MAKER, step]) as maker:
        assert maker.wait(PATIENCE_S) == -signal.SIGKILL
    (left,) = short_path.iterdir()
    (listed,) = (item for item in inventory() if item.name == str(left))
    assert (listed.kind, listed.state, listed.pid) == ("directory", "orphaned", None)
    with runtime_directory() as path:
        assert list(short_path.iterdir()) == [path]


@pytest.mark.parametrize("step", ["open", "flock"])
def test_a_clean_up_between_two_steps_makes_the_maker_start_again(
    step: str, short_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise two processes could take the same directory, or a run would have none."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(short_path))
    owner: Any = {"open": Path, "flock": fcntl}[step]
    original, removed = getattr(owner, step), []

    def interrupted(*arguments: Any) -> Any:
        monkeypatch.setattr(owner, step, original)
        removed.extend(each for each in runtime_directories([short_path]) if remove_directory(each))
        return original(*arguments)

    monkeypatch.setattr(owner, step, interrupted)
    with runtime_directory() as path:
        assert [each.path for each in removed] != [path]
        assert len(removed) == 1
        (found,) = runtime_directories([short_path])
        assert found == (path, os.getpid(), True)
    assert list(short_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["a FIFO", "a link", "a directory"])
def test_a_directory_whose_owner_s_file_is_none_is_left_alone_and_not_waited_for(
    kind: str, short_path: Path, tmp_path: Path
) -> None:
    (there := short_path / "ivsim-0123abcd").mkdir(mode=0o700)
    match kind:
        case "a FIFO":
            os.mkfifo(there / "owner.pid")
        case "a link":
            (there / "owner.pid").symlink_to(tmp_path / "elsewhere")
        case _:
            (there / "owner.pid").mkdir()
    assert runtime_directories([short_path]) == []
    assert not remove_directory(RuntimeDirectory(there, 0, owned=False))
    assert list(tmp_path.iterdir()) == []


def test_memory_of_unknown_origin_is_named_and_left_alone() -> None:
    path = Path(f"/dev/shm/ivsim-{os.getpid()}-0123abcd")
    path.write_bytes(bytes(4096))
    try:
        (item,) = (item for item in inventory() if item.name == str(path))
        assert item.state == "unknown"
        assert "by hand" in item.detail[1]
        assert not remove(item)
        assert path.exists()
    finally:
        path.unlink()


ITEMS = [
    Item("run", "in use", 7, "/runs/a", ("A title: running, 2 of 2 machines",)),
    Item("memory", "orphaned", None, "/dev/shm/ivsim-1-00000000", ("4096 bytes",)),
    Item("process", "orphaned", 2**22 + 1, "sleep 60", ("of the run with /x, which has ended",)),
]


@pytest.fixture
def listed(monkeypatch: pytest.MonkeyPatch) -> list[Item]:
    items = list(ITEMS)
    monkeypatch.setattr("sim.host.inventory.inventory", lambda: items)
    return items


def test_ps_is_a_table_or_json(listed: list[Item]) -> None:
    assert [line.split()[:3] for line in CliRunner().invoke(ps).stdout.splitlines()[:3]] == [
        ["what", "state", "process"],
        ["run", "in", "use"],
        ["A", "title:", "running,"],
    ]
    told = json.loads(CliRunner().invoke(ps, ["--json"]).stdout)
    assert [each["kind"] for each in told] == ["run", "memory", "process"]
    listed.clear()
    assert CliRunner().invoke(ps).stdout == "nothing of yours is here\n"
    assert CliRunner().invoke(clean).stdout == "nothing was left behind\n"


def test_clean_says_what_it_does_and_fails_when_something_stays(
    listed: list[Item], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def gone(item: Item) -> bool:
        asked.append(item.kind)
        return item.kind == "process"

    monkeypatch.setattr("sim.host.inventory.remove", gone)
    would = CliRunner().invoke(clean, ["--dry-run"])
    assert (would.exit_code, asked) == (0, [])
    assert would.stdout == "would remove process sleep 60\nwould remove memory /dev/shm/ivsim-1-00000000\n"
    done = CliRunner().invoke(clean)
    assert (done.exit_code, asked) == (1, ["process", "memory"])
    assert done.stdout == "removed process sleep 60\ncould not remove memory /dev/shm/ivsim-1-00000000\n"


def test_memory_of_this_process_is_its_own() -> None:
    with contextlib.closing(Region.create(4096)) as region:
        (item,) = (item for item in inventory() if item.name == f"/dev/shm/{region.name}")
        assert (item.state, item.pid) == ("in use", os.getpid())
