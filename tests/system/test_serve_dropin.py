"""`ivsim serve` where ivshmem-server stood: the daemon, its pid file, what a dead one left, its socket."""

from __future__ import annotations

import contextlib
import fcntl
import grp
import json
import os
import resource
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sim.kernel.memory import Region, map_region
from sim.wire.event_log import EventLog
from tests.system.test_serve import PATIENCE_S, GreetedClient, serve, serving

SHM = Path("/dev/shm")


def until(condition: Callable[[], object]) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline_s, "it never happened"
        time.sleep(0.005)


def start(*arguments: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """What a shell sees: it returns when the daemon is there, or is not going to be."""
    return subprocess.run(
        [sys.executable, "-m", "sim", "serve", *arguments],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
        env={**os.environ, **(environment or {})},
    )


def end(pid: int, number: signal.Signals = signal.SIGTERM) -> None:
    """End a daemon. It is an orphan that these tests have adopted, and theirs to wait for."""
    os.kill(pid, number)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) in (0, -number)


@pytest.fixture
def options(short_path: Path) -> list[str]:
    return ["-S", str(short_path / "s"), "-p", str(short_path / "pid"), "-M", short_path.name]


@contextlib.contextmanager
def daemon(options: list[str], *more: str) -> Iterator[int]:
    """A daemon of one's own; its number. At the end nothing of it is left."""
    started = start(*options, *more)
    assert (started.returncode, started.stdout, started.stderr) == (0, "", "")
    path, pid_file, name = Path(options[1]), Path(options[3]), options[5]
    pid = int(pid_file.read_text())
    try:
        yield pid
    finally:
        end(pid)
    assert not any(file.exists() for file in (path, pid_file, SHM / name))


def test_a_daemon_is_on_its_own_when_the_shell_goes_on(options: list[str]) -> None:
    with daemon(options) as pid, contextlib.closing(GreetedClient(Path(options[1]), 1)) as visitor:
        assert visitor.client.peer == 0
        assert os.getsid(pid) not in (os.getsid(0), pid)  # no leader: it never gets a terminal
        assert {os.readlink(f"/proc/{pid}/fd/{stream}") for stream in range(3)} == {"/dev/null"}


def test_a_second_daemon_is_told_of_the_first(options: list[str], short_path: Path) -> None:
    with daemon(options) as pid:
        same_pid_file = start("-S", str(short_path / "t"), "-p", options[3], "-M", short_path.name + "-2")
        assert same_pid_file.returncode == 2
        assert f"another server has it, process {pid}\n" in same_pid_file.stderr
        same_socket = start("-S", options[1], "-p", str(short_path / "pid2"), "-M", short_path.name + "-2")
        assert same_socket.returncode == 2
        assert "another server is listening" in same_socket.stderr
        same_memory = start("-S", str(short_path / "t"), "-p", str(short_path / "pid2"), "-M", short_path.name)
        assert same_memory.returncode == 2
        assert "another server uses it" in same_memory.stderr
        assert sorted(os.listdir(short_path)) == ["pid", "s"]
        assert int(Path(options[3]).read_text()) == pid


@pytest.mark.usefixtures("orphans_alone")
def test_leftovers_of_a_killed_daemon_are_taken_over(options: list[str]) -> None:
    """The whole session is killed, as when the host's container crashes: no process is left to clean up."""
    for _ in range(2):
        started = start(*options)
        assert started.returncode == 0, started.stderr
        pid = int(Path(options[3]).read_text())
        os.killpg(os.getpgid(pid), signal.SIGKILL)
        os.waitpid(pid, 0)
        assert Path(options[1]).exists()
        assert (SHM / options[5]).exists()
    with daemon(options), contextlib.closing(GreetedClient(Path(options[1]), 1)) as visitor:
        assert visitor.client.peer == 0


@pytest.mark.parametrize("content", ["root:x:0:0", "12 monkeys", "-1\n"])
def test_a_file_that_is_no_pid_file_is_not_written_to(options: list[str], content: str) -> None:
    Path(options[3]).write_text(content)
    refused = start(*options)
    assert refused.returncode == 2
    assert "is not a pid file" in refused.stderr
    assert Path(options[3]).read_text() == content


def test_the_pid_file_of_a_server_that_locks_nothing(options: list[str]) -> None:
    """QEMU's own server: it runs, or another process has its number by now."""
    Path(options[3]).write_text(f"{os.getpid()}\n")
    with daemon(options):
        pass
    code = "import time; open('/proc/self/comm', 'w').write('ivshmem-server'); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code]) as renamed:
        until(lambda: Path(f"/proc/{renamed.pid}/comm").read_text().strip() == "ivshmem-server")
        Path(options[3]).write_text(f"{renamed.pid}\n")
        refused = start(*options)
        renamed.kill()
    assert refused.returncode == 2
    assert f"process {renamed.pid} is an ivshmem-server that runs" in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["-v"], 2, "cannot use -v in daemon mode"),
        (["--log", "-"], 2, "a daemon has no standard output"),
        (["-p", "/nonexistent/pid"], 2, "cannot write pid file /nonexistent/pid"),
        (["--max-clients", "65536", "-n", "2048"], 3, "65536 clients need 134283296 descriptors (2049 each"),
        (["-l", "1024G"], 3, "bytes"),
    ],
)
def test_a_daemon_that_cannot_start_tells_the_shell(
    options: list[str], arguments: list[str], code: int, message: str, short_path: Path
) -> None:
    refused = start(*options, *arguments)
    assert refused.returncode == code, refused.stderr
    assert message in refused.stderr
    assert "Traceback" not in refused.stderr
    assert os.listdir(short_path) == []
    assert not (SHM / short_path.name).exists()


# Memory


@pytest.mark.usefixtures("orphans_alone")
def test_memory_of_unknown_origin_stays_or_is_shared(short_path: Path) -> None:
    memory = SHM / short_path.name
    memory.write_bytes(b"precious" + bytes(8184))
    try:
        refused = start("-F", "-S", str(short_path / "s"), "-M", short_path.name, "-l", "8K")
        assert refused.returncode == 2
        assert "it is not known who made it" in refused.stderr
        refused = start("-F", "-S", str(short_path / "s"), "-M", short_path.name, "-l", "4K", "--reuse-memory")
        assert refused.returncode == 2
        assert "has 8192 bytes, expected 4096" in refused.stderr
        with serving(short_path / "s", "-l", "8K", "--reuse-memory"):
            GreetedClient(short_path / "s", 1).close()
        assert memory.read_bytes()[:8] == b"precious"
    finally:
        memory.unlink()


@pytest.mark.parametrize("kind", ["directory", "memfd"])
def test_memory_without_a_name(kind: str, short_path: Path) -> None:
    path = short_path / "s"
    chosen = ["--memfd"] if kind == "memfd" else ["-m", str(short_path)]
    with serve("-F", "-S", str(path), "-l", "64K", *chosen) as server:
        assert server.stderr is not None
        assert "serving 65536 bytes" in server.stderr.readline()
        with contextlib.closing(GreetedClient(path, 1)) as visitor:
            (memory,) = [event.descriptor for event in visitor.events if type(event).__name__ == "MemoryShared"]
            found = os.fstat(memory)
            assert (found.st_size, found.st_nlink) == (65536, 0)
            assert found.st_blocks * 512 >= 65536
            if kind == "memfd":
                with pytest.raises(PermissionError):
                    os.ftruncate(memory, 0)
            assert os.listdir(short_path) == ["s"]
        server.terminate()


@pytest.mark.usefixtures("orphans_alone")
def test_memory_outlives_a_killed_server_with_its_clients(short_path: Path) -> None:
    """The client keeps the memory; the next server shares it, and says so."""
    path, name = short_path / "s", short_path.name
    with contextlib.ExitStack() as stack:
        with serve("-F", "-S", str(path), "-M", name, "-l", "64K") as server:
            assert server.stderr is not None
            assert server.stderr.readline().startswith("serving")
            old = stack.enter_context(contextlib.closing(GreetedClient(path, 1)))
            memory = stack.enter_context(map_region(old.memory))
            memory[0:4] = b"kept"
            server.kill()
        assert (SHM / name).exists()
        with serve("-F", "-S", str(path), "-M", name, "-l", "128K") as server:
            _, told = server.communicate(timeout=PATIENCE_S)
            assert server.returncode == 2
            assert "has 65536 bytes, and clients of a server that was killed still use it" in told
            assert f"[{os.getpid()}]): share it with -l 65536" in told
        with serve("-F", "-S", str(path), "-M", name, "-l", "64K") as server:
            assert server.stderr is not None
            assert server.stderr.readline().startswith("serving 65536 bytes")
            warning = server.stderr.readline()
            assert f"memory '{name}' is shared, with its content, with clients of a server that was killed" in warning
            assert f"[{os.getpid()}])" in warning
            with contextlib.closing(GreetedClient(path, 1)) as new, map_region(new.memory) as same:
                assert same[0:4] == b"kept"
            server.terminate()
        assert not (SHM / name).exists()
        # Now the name is gone with its server; a new one has other memory, and says so.
        with serving(path, "-l", "64K") as server:
            assert server.stderr is not None
            assert f"memory '{name}' is new: clients of an earlier server have another" in server.stderr.readline()


@pytest.mark.usefixtures("orphans_alone")
def test_a_daemon_tells_the_shell_which_processes_have_other_memory(options: list[str]) -> None:
    region = Region.create(4096, name=options[5])
    with map_region(region.descriptor):
        region.close()
        started = start(*options)
        end(int(Path(options[3]).read_text()))
    assert started.returncode == 0
    assert f"ivsim: memory '{options[5]}' is new" in started.stderr


# The socket


def test_the_sockets_rights_are_there_before_anyone_can_connect(short_path: Path) -> None:
    path = short_path / "s"
    group = grp.getgrgid(os.getgid()).gr_name
    with serving(path, "--mode", "660", "--group", group):
        found = path.stat()
        assert stat.S_IMODE(found.st_mode) == 0o660
        assert found.st_gid == os.getgid()
        memory = (SHM / short_path.name).stat()  # who may connect may map it by name too
        assert stat.S_IMODE(memory.st_mode) & 0o777 == 0o660
        assert memory.st_gid == os.getgid()


def test_one_after_the_other_when_two_look_for_a_stale_socket(short_path: Path) -> None:
    """A server waits for the lock of the directory, but not for ever."""
    path = short_path / "s"
    holder = os.open(short_path, os.O_RDONLY)
    fcntl.flock(holder, fcntl.LOCK_EX)
    with serve("-F", "-S", str(path), "--memfd") as server:
        assert server.stderr is not None
        assert "serving" in server.stderr.readline()
        server.terminate()
    os.close(holder)


# Clients


def test_ids_begin_where_they_are_told_to_and_end(short_path: Path) -> None:
    path, log = short_path / "s", short_path / "log"
    with serving(path, "--ids", "65535", "--log", str(log)):
        with contextlib.closing(GreetedClient(path, 1)) as last:
            assert last.client.peer == 65535
            with socket.socket(socket.AF_UNIX) as refused:
                refused.connect(os.fspath(path))
                refused.settimeout(PATIENCE_S)
                assert int.from_bytes(refused.recv(8), "little", signed=True) == -87
                assert refused.recv(8) == b""
        until(lambda: len(log.read_text().splitlines()) == 4)
    events = [json.loads(line) for line in log.read_text().splitlines()]
    log.unlink()
    assert [event["event"] for event in events] == ["listening", "joined", "refused", "left", "ended"]
    assert "all 65536 peer IDs have been given" in events[2]["reason"]
    assert events[3]["peer"] == 65535
    assert (events[3]["pid"], events[3]["uid"]) == (os.getpid(), os.getuid())


def test_an_id_is_given_again_if_asked(short_path: Path) -> None:
    path = short_path / "s"
    with serve("-F", "-S", str(path), "--memfd", "--reuse-ids") as server:
        assert server.stderr is not None
        assert "corrupts its heap" in server.stderr.readline()
        assert "serving" in server.stderr.readline()
        with contextlib.closing(GreetedClient(path, 1)) as first:
            assert first.client.peer == 0
            for _ in range(3):
                with contextlib.closing(GreetedClient(path, 1)) as second:
                    assert second.client.peer == 1
                seen: list[str] = []
                while "PeerLeft" not in seen:  # then the server knows
                    first.channel.socket.settimeout(PATIENCE_S)
                    received = first.channel.receive(8)
                    assert received is not None
                    events = list(first.client.receive(*received))
                    first.events += events
                    seen += [type(event).__name__ for event in events]
        server.terminate()


def test_one_client_too_many_is_told_so(short_path: Path) -> None:
    path = short_path / "s"
    with (
        serving(path, "--max-clients", "1"),
        contextlib.closing(GreetedClient(path, 1)),
        socket.socket(socket.AF_UNIX) as refused,
    ):
        refused.connect(os.fspath(path))
        refused.settimeout(PATIENCE_S)
        assert int.from_bytes(refused.recv(8), "little", signed=True) == -87
        assert refused.recv(8) == b""


def test_as_many_clients_are_let_in_as_there_are_descriptors(short_path: Path) -> None:
    log = short_path / "log"
    script = f"ulimit -n 64; exec {sys.executable} -m sim serve -F -S {short_path / 's'} --memfd -n 7 --log {log}"
    with subprocess.Popen(["sh", "-c", script], stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        assert "serving" in server.stderr.readline()
        assert json.loads(log.read_text())["clients_max"] == 4
        server.terminate()
    log.unlink()
    refused = subprocess.run(["sh", "-c", script + " --max-clients 5"], capture_output=True, text=True, check=False)
    assert refused.returncode == 3
    assert "5 clients need 72 descriptors (8 each, 32 for the server), the limit is 64" in refused.stderr
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 64


# The log


def test_a_log_without_a_reader_loses_lines_and_never_waits() -> None:
    read_end, write_end = os.pipe()
    log = EventLog(write_end, owned=True)
    while not log.dropped:
        log.write("joined", peer=1, reason=None)
    log.write("joined", peer=2)
    assert log.dropped == 2
    lines = os.read(read_end, 1 << 20).decode().splitlines()
    assert all(json.loads(line)["event"] == "joined" for line in lines)
    log.write("left", peer=3)
    last = json.loads(os.read(read_end, 4096))
    assert (last["peer"], last["lines_dropped"]) == (3, 2)
    os.close(read_end)
    log.write("left", peer=4)  # it is never read
    assert log.dropped == 1
    log.close()


def test_a_process_of_another_user_is_refused_and_logged(short_path: Path) -> None:
    path, log = short_path / "s", short_path / "log"
    other = os.getuid() + 1
    with serving(path, "--uid", str(other), "--log", str(log)), socket.socket(socket.AF_UNIX) as refused:
        refused.connect(os.fspath(path))
        refused.settimeout(PATIENCE_S)
        assert int.from_bytes(refused.recv(8), "little", signed=True) == -87
        assert refused.recv(8) == b""
    event = json.loads(log.read_text().splitlines()[1])
    log.unlink()
    assert (event["event"], event["reason"]) == ("refused", f"expected a process of user {other}")
    assert (event["pid"], event["uid"]) == (os.getpid(), os.getuid())


def test_the_log_tells_of_a_client_that_sent_data(short_path: Path) -> None:
    path, log = short_path / "s", short_path / "log"
    with serving(path, "--log", str(log)), contextlib.closing(GreetedClient(path, 1)) as visitor:
        visitor.channel.socket.send(b"hello")
        until(lambda: '"left"' in log.read_text())
    events = [json.loads(line) for line in log.read_text().splitlines()]
    log.unlink()
    assert [event["reason"] for event in events if event["event"] == "left"] == ["spoke"]
