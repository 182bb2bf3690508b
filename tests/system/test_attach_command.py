"""`ivsim attach` as a process: one command, and a script."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys

import pytest

import sim
from tests.command import invoke

PATIENCE_S = 60.0
VECTORS = 2
SIZE_BYTES = 65536


@contextlib.contextmanager
def served(path):
    """A server in this process; `serving` starts one of its own."""
    with sim.serve(path, vectors=VECTORS, size=SIZE_BYTES):
        yield


@contextlib.contextmanager
def serving(path, *arguments):
    """`ivsim serve`, until the end of the block."""
    command = [sys.executable, "-m", "sim", "serve", "-F", "-S", str(path), "-n", str(VECTORS), "-l", str(SIZE_BYTES)]
    with subprocess.Popen(
        [*command, "-M", f"ivt-{path.parent.name}", *arguments], stderr=subprocess.PIPE, text=True
    ) as server:
        try:
            assert "serving" in server.stderr.readline()
            yield server
        finally:
            server.send_signal(signal.SIGTERM)
            assert server.wait(PATIENCE_S) == 0


@pytest.fixture
def path(short_path):
    path = short_path / "s"
    with served(path):
        yield path


def command_line(path, *arguments):
    return [sys.executable, "-m", "sim", "attach", "-S", str(path), *map(str, arguments)]


def attach(path, *arguments, stdin=""):
    return subprocess.run(
        command_line(path, *arguments), input=stdin, capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )


@contextlib.contextmanager
def attached(path, *arguments, **options):
    """A peer that goes on; it is ended with the block."""
    with subprocess.Popen(
        command_line(path, *arguments),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        bufsize=1,
        **options,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def read_until(stream, pattern):
    """The lines up to the one in which ``pattern`` is found."""
    lines = []
    while not lines or not re.search(pattern, lines[-1]):
        line = stream.readline()
        assert line, f"the end instead of {pattern!r}, after {lines}"
        lines.append(line)
    return lines


def introduction(path, peer):
    return f"peer {peer} of {path}: 2 vectors, 65536 bytes of memory, 0 others, dialect v0"


def await_other(path):
    """The ID of the peer that has been started, once it has joined."""
    while not (others := json.loads(attach(path, "peers", "--json").stdout)["peers"]):
        pass
    return others[0]["peer"]


def test_the_peers_that_are_connected(path):
    told = attach(path, "peers")
    assert (told.returncode, told.stderr) == (0, "")
    assert told.stdout == "peer 0: 2 vectors (this one); 65536 bytes of memory, dialect v0\n"
    with attached(path) as other:
        read_until(other.stdout, r"^peer 1 of .*: 2 vectors, 65536 bytes of memory, 0 others, dialect v0;")
        data = json.loads(attach(path, "peers", "--json").stdout)
        others = [{"peer": 1, "vectors": VECTORS}]
        assert data == {
            "peer": 2,
            "vectors": VECTORS,
            "memory_bytes": SIZE_BYTES,
            "dialect": "v0",
            "server": True,
            "peers": others,
        }
        assert attach(path, "-n", "1", "who").stdout.splitlines()[1] == "peer 1: 1 vector"
    alone = attach(path, "ring", "all")
    assert (alone.returncode, alone.stderr) == (1, "ivsim: no other peer is there to be rung\n")


def test_ring_and_wait(path):
    with attached(path, "wait", "--vector", "0x1", "--timeout", "30s") as waiting:
        # It can be rung as soon as it is there: what comes before it waits counts.
        rung = attach(path, "ring", await_other(path), "1")
        assert (rung.returncode, rung.stderr) == (0, "rang 1 doorbell\n")
        assert read_until(waiting.stdout, "interrupt")[-1] == "interrupt vector 1\n"
        assert waiting.wait(PATIENCE_S) == 0


def test_a_wait_that_ends_without_an_interrupt(path):
    told = attach(path, "wait", "--vector", "1", "--timeout", "20ms")
    assert (told.returncode, told.stdout) == (1, "")
    assert told.stderr == f"{introduction(path, 0)}\nno interrupt came in time\n"


def test_a_watch_that_ends_before_all_interrupts_have_come(path):
    told = attach(path, "watch", "--count", "3", "--timeout", "20ms")
    assert (told.returncode, told.stderr.splitlines()[-1]) == (1, "0 of 3 interrupts came in time")
    assert attach(path, "watch", "--timeout", "20ms").returncode == 0  # none were asked for


@pytest.mark.parametrize("command", [["wait"], ["watch"], ["watch", "--json", "--count", "1"]])
def test_the_time_to_wait_includes_that_for_a_server(command, short_path):
    told = attach(short_path / "s", "--reconnect", *command, "--timeout", "20ms")
    assert told.returncode == 1
    assert told.stderr.splitlines()[-1].startswith(f"ivsim: not connected in time: no server at {short_path}/s")


def test_memory_that_was_made_smaller_is_told_instead_of_touched(short_path):
    """Touching it would end the process with SIGBUS. The server lets no further client have it, and says so once."""
    path = short_path / "s"
    with serving(path) as server:
        with attached(path) as peer:
            read_until(peer.stdout, "^peer 0 of")
            os.truncate(f"/dev/shm/ivt-{short_path.name}", 4096)
            for command in ("poke 0 1", "peek 0x8000 16", "fill 0 1 1", "save 0 16 -"):
                peer.stdin.write(f"{command}\n")
                (line,) = read_until(peer.stdout, "")
                assert f"{command.split()[0]}: the shared memory was made smaller, from 65536 to 4096 bytes" in line
            peer.stdin.write("quit\n")
            assert peer.wait(PATIENCE_S) == 1
        for _ in range(2):
            told = attach(path, "peers")
            assert (told.returncode, "does not let this client in" in told.stderr) == (1, True), told
        assert server.stderr.readline().startswith("for QEMU: ")
        smaller = "ivsim: the shared memory was made smaller, from 65536 to 4096 bytes"
        assert server.stderr.readline().startswith(smaller)
        server.send_signal(signal.SIGTERM)
        assert server.stderr.read() == ""


def test_a_script_that_watches_prints_its_id(path):
    for command in (["wait", "--timeout", "30s"], ["watch", "--count", "1"]):
        with attached(path, *command) as watching:
            (line,) = read_until(watching.stdout, "")
            told = re.fullmatch(r"peer (\d+) of .*: 2 vectors, 65536 bytes of memory, 0 others, dialect v0\n", line)
            assert attach(path, "ring", told[1], "1").returncode == 0
            assert "interrupt vector 1" in read_until(watching.stdout, "interrupt")[-1]
            assert watching.wait(PATIENCE_S) == 0


def test_a_script_that_watches_learns_its_new_id(short_path):
    path = short_path / "s"
    with attached(path, "--reconnect", "watch", "--json", "--count", "1") as watching:
        for first in ("0", "5"):
            with serving(path, "--ids", first):
                assert read_until(watching.stdout, r"^\{")[-1] == f'{{"peer": {first}}}\n'
        with serving(path, "--ids", "9"):
            read_until(watching.stdout, '"peer": 9')
            attach(path, "ring", "9")
            assert '"vector": 0' in read_until(watching.stdout, r"^\{")[-1]
            assert watching.wait(PATIENCE_S) == 0


def test_watching(path):
    with attached(path, "watch", "--count", "3", "--json") as watching:
        peer, lines = await_other(path), []
        # What is seen of the first two before the next ones are rung: two of one vector could be one interrupt.
        for doorbell, rows in (([peer, "all"], 3), (["all"], 4)):
            assert attach(path, "ring", *doorbell).stderr == "rang 2 doorbells\n"
            while sum(line.startswith("{") for line in lines) < rows:
                lines += read_until(watching.stdout, "")
        assert watching.wait(PATIENCE_S) == 0
    first, *rows = [json.loads(line) for line in lines if line.startswith("{")]
    assert first == {"peer": peer}
    assert {row["vector"] for row in rows} == {0, 1}
    assert all(row["doorbells"] == 1 for row in rows)
    stamps = [row["time_ns"] for row in rows]
    assert stamps == sorted(stamps)


def test_the_memory_is_read_and_written(path, tmp_path):
    for arguments in (
        ["poke", "0x10", "0x12345678"],
        ["poke", "0x14", "258", "2"],
        ["poke", "0x18", "0xfedcba9876543210", "8"],
        ["fill", "4096", "0x20", "0x41"],
    ):
        told = attach(path, *arguments)
        assert (told.returncode, told.stdout, told.stderr) == (0, "", ""), arguments
    shown = attach(path, "peek", "0", "0x21").stdout.splitlines()
    assert shown == [
        "00000000  " + "  ".join(["00 00 00 00 00 00 00 00"] * 2) + "  |................|",
        "00000010  78 56 34 12 02 01 00 00  10 32 54 76 98 ba dc fe  |xV4......2Tv....|",
        "00000020  00                                                |.|",
    ]
    assert attach(path, "peek", "4080", "64").stdout.splitlines()[1:] == [
        "00001000  " + "  ".join(["41 41 41 41 41 41 41 41"] * 2) + "  |AAAAAAAAAAAAAAAA|",
        "*",
        "00001020  " + "  ".join(["00 00 00 00 00 00 00 00"] * 2) + "  |................|",
    ]
    content = bytes(range(256)) * 8
    (tmp_path / "in").write_bytes(content)
    assert "loaded 2048 bytes" in attach(path, "load", SIZE_BYTES - len(content), tmp_path / "in").stderr
    assert "saved 2049 bytes" in attach(path, "save", SIZE_BYTES - 2049, "2049", tmp_path / "out").stderr
    assert (tmp_path / "out").read_bytes() == b"\0" + content
    assert attach(path, "save", "4096", "3", "-").stdout == "AAA"


def test_a_file_that_is_too_long_is_told_its_size(path, tmp_path):
    (tmp_path / "big").write_bytes(bytes(70000))
    told = attach(path, "load", "0", tmp_path / "big")
    assert (told.returncode, "65536 bytes, as many as the memory has, got 70000\n" in told.stderr) == (2, True)


@pytest.mark.parametrize("lines", ["commands", "help"])
def test_no_summary_of_a_command_is_cut(path, lines):
    told = attach(path, "--help") if lines == "commands" else attach(path, stdin="help\n")
    summaries = told.stdout.partition("Commands:" if lines == "commands" else "\n")[2]
    assert "peek" in summaries
    assert "..." not in summaries


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["ring", "9"], 1, "peer 9 is not there: expected one of 0"),
        (["ring", "0", "2"], 1, "peer 0 has no vector 2: expected 0..1"),
        (["ring", "x"], 2, "expected a peer's ID, or all, got 'x'"),
        (["ring", "-1"], 2, "expected a peer's ID, or all, got '-1'"),
        (
            ["frobnicate"],
            2,
            "attach: expected one of peers, ring, wait, watch, state, peek, poke, fill, load, save",
        ),
        (["peek", "-1"], 2, "expected a number, decimal or 0x..., got '-1'"),
        (["ring", "0", "1.5"], 2, "expected a vector, or all, got '1.5'"),
        (["wait", "--vector", "2"], 2, "expected one of the 2 vectors of this peer, got 2"),
        (["wait", "--timeout", "soon"], 2, "expected a duration such as 5s, 250ms or 2m, got 'soon'"),
        (["peek", "65536"], 2, "expected 1 byte or more within the memory's 65536 (0x10000), got 1 at offset 0x10000"),
        (["peek", "0xfffffffffffffffff"], 2, "expected a number, decimal or 0x..."),
        (["peek", "0", "0"], 2, "got 0 at offset 0x0"),
        (["fill", "0", "0xffffffffffffffff", "0"], 2, "got 18446744073709551615 at offset 0x0"),
        (["fill", "0", "1", "256"], 2, "expected a byte, 0..255, got 256"),
        (["poke", "0", "0x100", "1"], 2, "expected a value that fits into 1 bytes, got 0x100"),
        (["poke", "0", "1", "3"], 2, "expected one of 1, 2, 4, 8, got '3'"),
        (["poke", "65533", "1"], 2, "got 4 at offset 0xfffd"),
        (["load", "0", "/nonexistent"], 2, "cannot read /nonexistent: No such file"),
        (["load", "0", "/dev/zero"], 2, "expected a file of up to 65536 bytes, as many as the memory has, got more"),
        (["save", "0", "1", "/nonexistent/file"], 2, "/nonexistent/file cannot be written: No such file"),
        (["save", "0", "1", "/dev/full"], 3, "/dev/full cannot be written: No space left on device"),
        (["-n", "0", "peers"], 2, "0 is not in the range 1<=x<=2048"),
    ],
)
def test_wrong_commands_are_reported(path, arguments, code, message):
    told = invoke("attach", "-S", str(path), *arguments)
    assert (told.returncode, told.stdout) == (code, "")
    assert message in told.stderr


def test_no_server(short_path):
    told = attach(short_path / "s", "peers")
    assert told.returncode == 2
    assert f"no server listens on {short_path / 's'}: No such file or directory" in told.stderr


SCRIPT = """
# what follows is carried out line by line
peers
int 0 1
wait --vector 1 --timeout 30s

poke 0 0x41424344
peek 0 4
frobnicate
ring 77
peek 0 99999999
"unclosed
dump --json
?
quit
peers
"""


@pytest.mark.parametrize("how", ["pipe", "file"])
def test_a_script(path, how, tmp_path):
    if how == "pipe":
        told = attach(path, stdin=SCRIPT)
    else:
        (tmp_path / "script").write_text(SCRIPT)
        with (tmp_path / "script").open() as opened:
            told = subprocess.run(
                command_line(path), stdin=opened, capture_output=True, text=True, timeout=PATIENCE_S, check=False
            )
    assert told.returncode == 1  # three lines could not be carried out
    lines = told.stdout.splitlines()
    assert lines[0].startswith("peer 0 of ")
    assert lines[1] == "peer 0: 2 vectors (this one); 65536 bytes of memory, dialect v0"
    assert "interrupt vector 1" in lines
    assert "00000000  44 43 42 41                                       |DCBA|" in lines
    assert sum(line.startswith("{") for line in lines) == 1
    assert lines[-1].startswith("Also: int is ring")  # nothing after quit
    errors = told.stderr.splitlines()
    assert [line for line in errors if not line.startswith("rang")] == [
        "ivsim: frobnicate: expected one of peers, ring, wait, watch, state, peek, poke, fill, load, save, help, quit",
        "ivsim: ring: peer 77 is not there: expected one of 0",
        "ivsim: peek: expected 1 byte or more within the memory's 65536 (0x10000), got 99999999 at offset 0x0",
        "ivsim: expected closed quotes, got '\"unclosed' (No closing quotation)",
    ]


def test_input_that_has_nothing_or_is_none(path):
    told = subprocess.run(
        command_line(path), stdin=subprocess.DEVNULL, capture_output=True, timeout=PATIENCE_S, check=False
    )
    assert (told.returncode, told.stderr) == (0, b"")
    shell = subprocess.run(
        ["sh", "-c", 'exec "$@" <&-', "sh", *command_line(path)],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert (shell.returncode, "standard input is closed" in shell.stderr) == (2, True)


def test_a_script_that_works_ends_with_0(path):
    told = attach(path, stdin="peers\nring 0\nwait --timeout 30s\n")
    assert (told.returncode, told.stderr) == (0, "rang 1 doorbell\n")
    assert "interrupt vector 0" in told.stdout


def test_events_between_the_lines_are_shown(path):
    with attached(path) as peer:
        read_until(peer.stdout, "^peer 0 of")
        with attached(path) as other:
            read_until(peer.stdout, "^peer 1 has joined")
            other.stdin.write("ring 0 1\n")
            line = read_until(peer.stdout, "interrupt")[-1]
            assert re.fullmatch(r"[0-9]+\.[0-9]{6} interrupt vector 1\n", line)
        read_until(peer.stdout, "^peer 1 has left")
        peer.stdin.close()
        assert peer.wait(PATIENCE_S) == 0


def test_it_connects_again(short_path):
    path = short_path / "s"
    with attached(path, "--reconnect") as peer:
        read_until(peer.stdout, f"no server listens on {path}.*; trying again every second")
        with serving(path):
            read_until(peer.stdout, "^peer 0 of")
        read_until(peer.stdout, "the server has closed the connection; trying again every second")
        with serving(path), attached(path) as other:
            read_until(peer.stdout, r"^peer [01] of .*, dialect v0$")
            peer.stdin.write("wait --timeout 30s\n")
            while not other.poll():  # either of the two may be first
                other.stdin.write("ring all\n")
                if "rang 2 doorbells\n" in read_until(other.stdout, "rang|nobody"):
                    break
            read_until(peer.stdout, "interrupt vector")


def test_without_reconnect_the_end_of_the_server_is_told(short_path):
    path = short_path / "s"
    with contextlib.ExitStack() as stack:
        with serving(path):
            peer = stack.enter_context(attached(path))
            read_until(peer.stdout, "^peer 0 of")
        read_until(peer.stdout, "doorbells and interrupts go on without it")
        peer.stdin.write("ring 0 0\npeers --json\n")
        assert '"server": false' in read_until(peer.stdout, "server")[-1]
        peer.stdin.write("quit\n")
        assert peer.wait(PATIENCE_S) == 0
