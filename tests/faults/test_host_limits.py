"""Faults of the host: F5, F6, F8 and F20 of tests/fault_matrix.py.

File systems of a given size are tmpfs in a mount namespace of the command (unshare(1)): skipped without the right.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import sim
from tests.faults.processes import ivsim, only_directory, run_ivsim, wait_until

KIB, MIB = 1 << 10, 1 << 20
SHORT = ("--quiet", "--set", "run.duration_s=0.2", "--set", "run.warmup_s=0.0")


@pytest.fixture
def unshare() -> None:
    """Skips the test where a mount namespace cannot be made."""
    if shutil.which("unshare") is None or subprocess.run(["unshare", "--mount", "true"], check=False).returncode:
        pytest.skip("needs the right to make a mount namespace")


def with_tmpfs(directory: str | Path, size_bytes: int) -> tuple[str, ...]:
    """A prefix that runs a command with a tmpfs of that size in the place of ``directory``."""
    mount = f"mount -t tmpfs -o size={size_bytes} tmpfs '{directory}' && exec \"$@\""
    return ("unshare", "--mount", "sh", "-c", mount, "sh")


def spread(first: int, last: int, count: int) -> list[int]:
    """``count`` whole numbers from first to last, evenly."""
    return sorted({first + (last - first) * at // max(1, count - 1) for at in range(count)})


@pytest.mark.fault("F5", full=191, sample=4, unit="limits from 10 to 200")
def test_each_limit_of_descriptors(fault_count: int, tmp_path: Path) -> None:
    """A run fits and finishes, or is refused with the limit named; it never fails half-way."""
    refused = []
    for limit in spread(10, 200, fault_count):
        prefix = ("sh", "-c", f'ulimit -n {limit} && exec "$@"', "sh")
        done = run_ivsim("run", "ping_pong", *SHORT, "--runs", tmp_path / str(limit), prefix=prefix)
        assert done.returncode in (0, 3), f"{limit}: {done.stderr}"
        assert "Traceback" not in done.stderr, f"{limit}: {done.stderr}"
        if done.returncode == 3:
            assert "descriptors" in done.stderr, f"{limit}: {done.stderr}"
            refused.append(limit)
    assert refused[0] == 10
    assert refused[-1] < 200, "two machines fit into 200 descriptors"


@pytest.mark.fault("F6", full=100, sample=3, unit="sizes of /dev/shm")
def test_each_size_of_dev_shm(fault_count: int, unshare: None, tmp_path: Path) -> None:
    """Memory that does not fit is refused before the start: never a bus error, and nothing stays."""
    codes = []
    for size_bytes in spread(64 * KIB, 6 * MIB, fault_count):
        runs = tmp_path / str(size_bytes)
        prefix = with_tmpfs("/dev/shm", size_bytes)
        done = run_ivsim("run", "ping_pong", *SHORT, "--set", "memory.size=4M", "--runs", runs, prefix=prefix)
        assert done.returncode in (0, 3), f"{size_bytes}: {done.stderr}"
        assert "Traceback" not in done.stderr, f"{size_bytes}: {done.stderr}"
        codes.append(done.returncode)
    assert codes == sorted(codes, reverse=True), "a size is refused and a smaller one is not"
    assert set(codes) == {0, 3}


MISSING = {
    "no /dev/shm": "mount -t tmpfs tmpfs /dev && mknod /dev/null c 1 3 && mknod /dev/urandom c 1 9",
    "no /proc": "mount -t tmpfs tmpfs /proc",
    "a read-only /dev/shm": "mount -t tmpfs -o ro tmpfs /dev/shm",
}
RUN, SERVE = ("run", "ping_pong"), ("serve", "-F", "-S", "s", "-M", f"ivt-{os.getpid()}-missing")
HINT = 'shared memory with a name is made there. Take kind = "memfd" in [memory], or mount a tmpfs'


@pytest.mark.parametrize(
    ("missing", "command", "words"),
    [
        ("no /dev/shm", RUN, f"this host has no /dev/shm: {HINT}"),
        ("no /dev/shm", SERVE, "/dev/shm cannot hold shared memory: No such file or directory"),
        ("no /proc", RUN, "this host has no /proc: mount it, see proc(5)"),
        ("no /proc", SERVE, "this host has no /proc: mount it, see proc(5)"),
        ("no /proc", ("ps",), "this host has no /proc: mount it, see proc(5)"),
        ("a read-only /dev/shm", RUN, f"/dev/shm cannot be written: {HINT}"),
        ("a read-only /dev/shm", SERVE, "/dev/shm cannot hold shared memory: Read-only file system"),
    ],
)
def test_what_is_missing_on_a_host_is_named(
    missing: str, command: tuple[str, ...], words: str, unshare: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not full, but absent or read-only: nothing is said of room, and the path alone is no reason."""
    monkeypatch.chdir(tmp_path)
    prefix = ("unshare", "--mount", "sh", "-c", f'{MISSING[missing]} && exec "$@"', "sh")
    done = run_ivsim(*command, prefix=prefix)
    assert (done.returncode, done.stderr) == (3, f"ivsim: {words}\n")
    assert list(tmp_path.iterdir()) == []


def test_a_removed_current_directory_is_named(tmp_path: Path) -> None:
    (there := tmp_path / "there").mkdir()
    prefix = ("sh", "-c", f"cd '{there}' && rmdir '{there}' && exec \"$@\"", "sh")
    done = run_ivsim("run", "ping_pong", prefix=prefix)
    assert (done.returncode, done.stderr) == (
        2,
        "ivsim: the current directory has been removed: change to another one\n",
    )


@pytest.mark.fault("F8", full=100, sample=1, unit="kills of a process group")
def test_a_killed_group_leaves_nothing_after_clean(
    fault_count: int, orphans_alone: None, short_path: Path, tmp_path: Path
) -> None:
    """No process of the group could clean up: `ivsim clean` removes its segment and sockets, and none of other runs."""
    env = {"XDG_RUNTIME_DIR": str(short_path)}
    for cycle in range(fault_count):
        runs = tmp_path / str(cycle)
        with ivsim("run", "ping_pong", "--quiet", "--set", "run.duration_s=600", "--runs", runs,
                   env={**os.environ, **env}) as process:  # fmt: skip
            wait_until(lambda: segments_of(process.pid), "the memory was made")
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        done = run_ivsim("clean", env=env)
        assert done.returncode == 0, done.stderr
        assert segments_of(process.pid) == []
        assert os.listdir(short_path) == []


def segments_of(pid: int) -> list[str]:
    """The segments that a process has made. Others make and remove theirs meanwhile."""
    return [name for name in os.listdir("/dev/shm") if name.startswith(f"ivsim-{pid}-")]


OWNERS = """
import os, random, signal, sys, time
from sim.kernel.memory import Region
from sim.kernel.segments import remove_orphaned

rng = random.Random(int(sys.argv[1]))
for cycle in range(int(sys.argv[2])):
    pid = os.fork()
    if not pid:
        while True:
            Region.create(1 << 16).close()
    time.sleep(rng.random() * 0.002)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    remove_orphaned()
    deadline_s = time.monotonic() + 60
    while left := [name for name in os.listdir("/dev/shm") if name.startswith(f"ivsim-{pid}-")]:
        assert time.monotonic() < deadline_s, (cycle, left)
        remove_orphaned()  # the run of another test looks at it just now, and has it locked
"""


@pytest.mark.fault("F8", full=1000, sample=20, unit="kills of an owner of memory")
def test_an_owner_killed_at_any_moment_leaves_no_segment(seed: int, fault_count: int) -> None:
    """Also between two steps of making one: what has a name and no lock is removed, what has no name is nowhere."""
    command = [sys.executable, "-c", OWNERS, str(seed), str(fault_count)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


RUN_ON_A_SMALL_DISK = """
mount -t tmpfs -o size=$1 tmpfs "$2" || exit 77
disk=$2 kept=$3
shift 3
"$@"
code=$?
cp -r "$disk" "$kept"
exit $code
"""


@pytest.mark.fault("F20", full=60, sample=3, unit="sizes of the disk")
def test_each_size_of_the_disk(fault_count: int, unshare: None, tmp_path: Path) -> None:
    """A run that does not fit is refused, or fails and says that no space was left; it never reads as finished."""
    disk, script = tmp_path / "disk", tmp_path / "script"
    disk.mkdir()
    script.write_text(RUN_ON_A_SMALL_DISK)
    for size_bytes in spread(64 * KIB, 24 * MIB, fault_count):
        kept = tmp_path / str(size_bytes)
        prefix = ("unshare", "--mount", "sh", str(script), str(size_bytes), str(disk), str(kept))
        done = run_ivsim("run", "doorbell_storm", *SHORT, "--set", "machines.storm.count=4", "--set",
                         "run.sample_every=1", "--json", "--runs", disk, prefix=prefix)  # fmt: skip
        assert "Traceback" not in done.stderr, f"{size_bytes}: {done.stderr}"
        assert done.returncode in (0, 1, 3), f"{size_bytes}: {done.stderr}"
        if done.returncode == 0:
            assert json.loads(done.stdout)["status"] == "finished"
        else:
            reason = done.stderr.replace(os.fspath(disk), "")  # the path has the word, too
            assert "space" in reason or "disk" in reason, f"{size_bytes}: {done.stderr}"
        if list(kept.iterdir()):
            assert sim.open(only_directory(kept)).status == ("failed" if done.returncode else "finished")
