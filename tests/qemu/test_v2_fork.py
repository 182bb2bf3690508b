"""ivshmem v2 against a running fork of QEMU: its device and our server, its server and our peers, its device and ours.

The fork is packaged nowhere. IVSHMEM_QEMU_V2 names its qemu-system-x86_64 (with the device ``ivshmem`` of version 2),
IVSHMEM2_SERVER its ivshmem2-server; without them these tests are skipped.
"""

from __future__ import annotations

import contextlib
import os
import random
import socket
import subprocess
import threading

import pytest

import sim
from nodes.device.devices import make_device
from nodes.device.pci import assign_resources
from nodes.device.profiles import profile
from nodes.errors import GuestError, QemuError
from nodes.wire.protocol import RawMessage
from nodes.wire.rules import RULES_V2
from nodes.wire.v2.protocol import V2, DomainNumbers, Frame
from sim.engines.qemu.peer import BARS, SLOT, QemuPeer
from sim.engines.qemu.qtest import Qemu
from sim.wire.qemu_options import qemu_options
from tests.nodes.wire.test_v2 import ODD

FORK, SERVER = os.environ.get("IVSHMEM_QEMU_V2", ""), os.environ.get("IVSHMEM2_SERVER", "")
needs_fork = pytest.mark.skipif(not FORK, reason="IVSHMEM_QEMU_V2 names no QEMU fork with ivshmem v2")
needs_server = pytest.mark.skipif(not SERVER, reason="IVSHMEM2_SERVER names no ivshmem2-server")

PATIENCE_S = 60.0
SIZE_BYTES, PAGE = 1 << 16, 4096
NUMBERS = DomainNumbers(max_peers=3, vectors=2, protocol=0x4001, output_bytes=PAGE)
ID, MAXIMUM_PEERS, CONTROL, DOORBELL, STATE = 0x00, 0x04, 0x08, 0x0C, 0x10
ONE_SHOT = 0x4C + 3


class ForkPeer(QemuPeer):
    """The fork with its device, probed; interrupts are on."""

    def __init__(self, path, *, vectors=2, properties=""):
        self.vectors = vectors
        self.qemu = Qemu(FORK, ["-machine", "pc", *device_options(path, properties)])
        try:
            self._probe()
            self.write(0, CONTROL, 1)
            self.id = self.read(0, ID)
        except BaseException:
            self.close()
            raise

    def interrupted(self):
        """The vectors whose messages have come."""
        self.qemu.settle(3)
        came = []
        for vector in range(self.vectors):
            with contextlib.suppress(TimeoutError):
                came.append(self.wait(vector, timeout=0).vector)
        return came


def device_options(path, properties=""):
    options = qemu_options(path, NUMBERS.vectors, V2).split(" ")
    options[-1] += f",addr={SLOT:02x}.0{properties}"
    return options


@pytest.fixture
def server():
    arguments = {"max_peers": NUMBERS.max_peers, "output_size": NUMBERS.output_bytes, "protocol": NUMBERS.protocol}
    with sim.serve(None, SIZE_BYTES, NUMBERS.vectors, "v2", timeout=PATIENCE_S, **arguments) as made:
        yield made


def our_device():
    """Our device with the same numbers and ID 0, and its memory."""
    made = make_device(profile("qemu-v2"), vectors=NUMBERS.vectors, ring=lambda peer, vector: None)
    made.initialize(NUMBERS)
    made.set_peer(0)
    memory = memoryview(bytearray(SIZE_BYTES))
    made.set_memory(memory)
    return made, memory


def bars_of(made):
    """Our device placed and enabled as the fork's is by `QemuPeer._probe`."""
    assign_resources(made.config.bars.values(), made.config_write)
    for bar, address in BARS.items():
        made.config_write(0x10 + 4 * bar, 4, address & 0xFFFF_FFFF)
    made.config_write(0x1C, 4, BARS[2] >> 32)
    made.config_write(4, 2, 6)


@needs_fork
def test_configuration_space_is_that_of_the_fork(server):
    made, _ = our_device()
    with Qemu(FORK, ["-machine", "pc", *device_options(server.path)]) as qemu:
        for value in (None, 0xFFFF_FFFF, 0):
            words = {}
            for offset in range(0, 0x100, 4):
                if value is not None:
                    qemu.config_write(SLOT, offset, 4, value)
                    made.config_write(offset, 4, value)
                words[offset] = qemu.config_read(SLOT, offset, 4), made.config_read(offset, 4)
            assert {hex(at): tuple(map(hex, pair)) for at, pair in words.items() if pair[0] != pair[1]} == {}, value


@needs_fork
@pytest.mark.parametrize("seed", range(3))
def test_registers_and_memory_answer_as_those_of_the_fork(server, seed):
    rng = random.Random(seed)
    made, memory = our_device()
    bars_of(made)
    with ForkPeer(server.path) as fork, server.connect() as peer:
        made.bar_write(0, CONTROL, 4, 1)
        layout = made.sections.layout
        places = [0, 4, layout.shared.start, layout.output(0).start, layout.output(1).start, SIZE_BYTES - 8]
        for step in range(300):
            bar = rng.choice((0, 0, 0, 2))
            size = rng.choice((4, 4, 4, 1, 2, 8))
            offset = rng.choice((*range(0, 0x20, 4), 0x100, 0x108, 0x110, 5, 0xFFC)) if bar == 0 else rng.choice(places)
            offset -= offset % size if bar == 2 else 0
            if bar == 0 and (offset <= DOORBELL < offset + size or offset + size > PAGE):
                continue
            value = rng.choice((0, 1, 2, 0x1234_5678, 0xFFFF_FFFF)) & ((1 << 8 * size) - 1)
            where = (seed, step, bar, hex(offset), size)
            if rng.random() < 0.6:
                fork.write(bar, offset, value, size)
                with contextlib.suppress(GuestError):
                    made.bar_write(bar, offset, size, value)
            else:
                assert fork.read(bar, offset, size) == made.bar_read(bar, offset, size), where
        assert bytes(peer.memory) == bytes(memory)
        assert fork.read(0, STATE) == made.bar_read(0, STATE, 4) == peer.states[0]


@needs_fork
def test_a_reset_leaves_what_it_leaves_in_the_fork(server):
    made, memory = our_device()
    bars_of(made)
    with ForkPeer(server.path) as fork, server.connect() as peer:
        peer.wait_for_peers(1)
        for write in (made.bar_write, lambda bar, offset, size, value: fork.write(bar, offset, value, size)):
            write(0, CONTROL, 4, 1)
            write(0, STATE, 4, 5)
            write(2, made.sections.layout.shared.start, 4, 6)
        peer.wait(0)
        for write in (made.config_write, lambda offset, size, value: fork.qemu.config_write(SLOT, offset, size, value)):
            write(ONE_SHOT, 1, 1)
        fork.qemu.reset()
        made.reset()
        assert peer.wait(0).doorbells == 1
        words = {at: (fork.qemu.config_read(SLOT, at, 4), made.config_read(at, 4)) for at in range(0, 0x100, 4)}
        assert {hex(at): tuple(map(hex, pair)) for at, pair in words.items() if pair[0] != pair[1]} == {}
        bars_of(made)
        fork._probe()
        assert [fork.read(0, at) for at in range(0, 0x20, 4)] == [made.bar_read(0, at, 4) for at in range(0, 0x20, 4)]
        assert bytes(peer.memory) == bytes(memory)


@needs_fork
def test_states_interrupt_both_ways_and_a_leave_clears_them(server):
    with ForkPeer(server.path) as fork:
        with server.connect() as peer:
            peer.wait_for_peers(1)
            fork.qemu.settle(3)
            assert (fork.id, peer.id, fork.read(0, MAXIMUM_PEERS)) == (0, 1, 3)
            fork.write(0, STATE, 7)
            assert peer.wait(0).doorbells == 1
            assert peer.states == [7, 0, 0]
            fork.write(0, STATE, 7)
            peer.state = 9
            assert fork.wait(0, timeout=PATIENCE_S)
            assert fork.read(2, 4) == 9
            with pytest.raises(TimeoutError):
                peer.wait(0, timeout=0)
            fork.ring(peer.id, 1)
            assert peer.wait(1).doorbells == 1
            peer.ring(fork.id, 1)
            assert fork.wait(1, timeout=PATIENCE_S)
        assert fork.wait(0, timeout=PATIENCE_S)  # it has left
        assert fork.read(2, 4) == 0
        with server.connect() as again:
            again.wait_for_peers(1)
            assert again.id == 1
            assert (again.states[0], fork.qemu.qmp("query-status")["status"]) == (7, "prelaunch")
            again.events()
            fork.qemu.close()  # killed
            while not (heard := again.events()):
                again.wait(0)
            assert [tuple(each) for each in heard] == [("left", 0), ("state", 0, 0)]


@needs_fork
def test_disabled_one_shot_and_masked_as_in_our_device(server):
    with ForkPeer(server.path) as fork, server.connect() as peer:
        peer.wait_for_peers(1)
        fork.write(0, CONTROL, 0)
        peer.ring(0, 1)
        assert fork.interrupted() == []
        fork.write(0, CONTROL, 1)
        assert fork.interrupted() == []  # lost
        fork.qemu.config_write(SLOT, ONE_SHOT, 1, 1)
        for vector in (1, 0):
            peer.ring(0, vector)
            assert fork.interrupted() == ([1] if vector else [])
        assert fork.read(0, CONTROL) == 0
        fork.qemu.config_write(SLOT, ONE_SHOT, 1, 0)
        fork.write(0, CONTROL, 1)
        fork.write(1, 16 + 12, 1)  # the mask of vector 1
        peer.ring(0, 1)
        assert fork.interrupted() == []
        assert fork.read(1, 0x800) == 2  # pending
        fork.write(1, 16 + 12, 0)
        assert fork.interrupted() == [1]


@needs_fork
def test_a_migration_is_refused_in_its_words(server):
    with ForkPeer(server.path) as fork:
        words = "Migration is disabled when using feature 'peer mode' in device 'ivshmem'"
        with pytest.raises(QemuError, match=words):
            fork.qemu.qmp("migrate", uri="exec:cat > /dev/null")
    with server.connect(), pytest.raises(QemuError, match="Master must connect to the server before any peers"):
        ForkPeer(server.path, properties=",master=on")


class Malformed:
    """A server that says what it is told, to one QEMU, in a thread."""

    def __init__(self, path, frames):
        self.frames, self.connected = frames, threading.Event()
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(os.fspath(path))
        self.listener.listen()
        self.held = []
        self.thread = threading.Thread(target=self.greet, daemon=True)
        self.thread.start()

    def greet(self):
        self.sock, _ = self.listener.accept()
        for frame in self.frames:
            self.say(frame)
        self.connected.set()

    def say(self, frame):
        descriptors = [self.make(kind) for kind in frame.descriptors]
        socket.send_fds(self.sock, [frame.encode()], descriptors)

    def make(self, kind):
        if kind == "memory":
            self.held.append(os.memfd_create("memory"))
            os.ftruncate(self.held[-1], SIZE_BYTES)
        else:
            self.held.append(os.eventfd(0, os.EFD_CLOEXEC))
        return self.held[-1]

    def close(self):
        self.thread.join()
        self.sock.close()
        self.listener.close()
        for descriptor in self.held:
            os.close(descriptor)


GREETING = Frame.init(0, NUMBERS, "memory")
OWN = [GREETING, Frame.event_fd(0, 0, "own"), Frame.event_fd(0, 1, "own")]
OTHER = [*OWN, Frame.event_fd(1, 0, "x")]
STDERR = {
    "v2-vector-order": "Received vector 2 out of order",
    "v2-too-many-vectors": "Too many eventfd received, device has 2 vectors",
    "v2-own-leave": "invalid peer 0",
    "v2-type": "invalid message, type",
    "v2-size": "message size",
}
DIES = [
    ([*OWN, GREETING], "v2-long-message", "msg_buffered_bytes"),
    ([*OTHER, Frame.peer_gone(1), Frame(7, b""), Frame.peer_gone(1)], "v2-leave-twice", "double free"),
    ([GREETING, Frame.event_fd(1, 0, "x"), Frame.peer_gone(1)], "v2-leave-before-own", "SIGSEGV"),
    ([*OWN, RawMessage.of(bytes(40))], "v2-length", "msg_buffered_bytes"),
]


@contextlib.contextmanager
def told(tmp_path, greeting):
    malformed = Malformed(tmp_path / "s", greeting)
    try:
        with Qemu(FORK, ["-machine", "pc", *device_options(tmp_path / "s")]) as qemu:
            yield malformed, qemu
    finally:
        malformed.close()


@needs_fork
@pytest.mark.parametrize(("frame", "_words", "rule"), ODD)
def test_the_fork_goes_on_after_what_is_odd(tmp_path, frame, _words, rule):
    assert not RULES_V2[rule].ends
    with told(tmp_path, OTHER) as (malformed, qemu):
        qemu.settle(5)
        malformed.say(frame)
        qemu.settle(5)
        assert qemu.qmp("query-status")["status"] == "prelaunch"
        printed = qemu._read_printed()
        assert STDERR.get(rule, "") in printed
        assert bool(printed) == (rule in STDERR or (rule == "v2-leave-unknown" and frame.fields()[0] > 15)), printed


@needs_fork
@pytest.mark.parametrize(("frames", "rule", "words"), DIES)
def test_the_fork_dies_where_the_rule_says(tmp_path, frames, rule, words):
    assert RULES_V2[rule].ends
    with told(tmp_path, frames[:1]) as (malformed, qemu):
        malformed.connected.wait(PATIENCE_S)

        def say_all():
            for frame in frames[1:]:
                malformed.say(frame)
                qemu.settle(5)
            qemu.settle(5000)

        with pytest.raises(QemuError) as raised:
            say_all()
        assert words in str(raised.value)
        assert "SIG" in str(raised.value)


REFUSED = [
    (Frame.init(70000, NUMBERS, "memory"), "server sent invalid ID"),
    (Frame.event_fd(0, 0, "x"), "server sent invalid initial info"),
    (Frame(0, GREETING.body[:4] + b"\3\0\0\0" + GREETING.body[8:], ("memory",)), "compatible version 3, expecting 2"),
    (Frame.init(0, NUMBERS._replace(vectors=1025), "memory"), "invalid number of vectors message"),
    (Frame.init(0, NUMBERS._replace(output_bytes=SIZE_BYTES), "memory"), "shared memory too small"),
]


@needs_fork
@pytest.mark.parametrize(("frame", "words"), REFUSED)
def test_the_fork_refuses_a_greeting_in_the_words_of_our_client(tmp_path, frame, words):
    filler = Frame(0, bytes(32))  # the fork reads 40 bytes, whatever the length says
    malformed = Malformed(tmp_path / "s", [frame, filler])
    try:
        with pytest.raises(QemuError, match=words):
            Qemu(FORK, ["-machine", "pc", *device_options(tmp_path / "s")])
    finally:
        malformed.close()


@pytest.fixture
def forks_server(tmp_path):
    options = ["-S", str(tmp_path / "s"), "-l", "64K", "-n", "3", "-V", "2", "-o", "4K", "-P", "0x4001"]
    name = f"ivsim-test-{os.getpid()}"
    with subprocess.Popen([SERVER, "-F", "-M", name, *options], stdout=subprocess.DEVNULL) as process:
        try:
            while not (tmp_path / "s").exists():
                assert process.poll() is None
            yield tmp_path / "s", process
        finally:
            process.terminate()


@needs_server
def test_our_peers_at_the_server_of_the_fork(forks_server):
    path, process = forks_server
    with sim.connect(path, timeout=PATIENCE_S) as first:
        with sim.connect(path, timeout=PATIENCE_S) as second, sim.connect(path, timeout=PATIENCE_S) as third:
            first.wait_for_peers(2)
            assert [each.id for each in (first, second, third)] == [0, 1, 2]
            assert (first.vectors, len(first.memory), len(first.sections.own)) == (2, SIZE_BYTES, PAGE)
            second.wait_for_peers(2)
            second.state = 5
            assert first.wait(0).doorbells == third.wait(0).doorbells == 1
            assert third.ring(0, 1)
            assert first.wait(1).doorbells == 1
            first.sections.own[:2] = b"hi"
            assert bytes(second.sections.output(0)[:2]) == b"hi"
        heard = []
        while len(heard) < 5:
            heard += first.events()
        assert first.states == [0, 0, 0]
        with sim.connect(path, timeout=PATIENCE_S) as again:
            assert again.id == 1
    assert process.poll() is None


@needs_server
def test_its_bytes_are_those_of_ours(forks_server, server):
    path, _ = forks_server

    def session(where):
        """All bytes and counts of descriptors that three clients get as they join, and the first as two leave."""
        clients, said = [], []
        for number in range(3):
            sock = socket.socket(socket.AF_UNIX)
            sock.settimeout(PATIENCE_S)
            sock.connect(os.fspath(where))
            clients.append(sock)
            for at, each in enumerate(clients):
                size = 40 + 16 * 2 * (number + 1) if at == number else 16 * 2
                said.append(read(each, size))
        for sock in reversed(clients[1:]):
            sock.close()
            said.append(read(clients[0], 12))
        clients[0].close()
        return said

    def read(sock, size):
        data, count = b"", 0
        while len(data) < size:
            more, descriptors, _, _ = socket.recv_fds(sock, size - len(data), 8)
            assert more
            data += more
            count += len(descriptors)
            for descriptor in descriptors:
                os.close(descriptor)
        return data.hex(), count

    assert session(path) == session(server.path)


@needs_server
def test_one_client_too_many_ends_the_server_of_the_fork(forks_server):
    path, process = forks_server
    with contextlib.ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(sim.connect(path, timeout=PATIENCE_S))
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(os.fspath(path))
            process.wait(PATIENCE_S)
    assert not path.exists()
