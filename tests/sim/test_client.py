"""sim.connect, sim.connect_async and sim.serve: peers and a server in this process, on real sockets."""

from __future__ import annotations

import asyncio
import os
import socket
import threading

import pytest

import sim
from nodes.errors import GuestError, RemoteProtocolError, UsageError
from nodes.guest import FOREVER, NOW
from nodes.wire.protocol import DIALECTS
from sim import async_client
from sim.kernel.eventfd import COUNTER_MAX
from sim.wire import attachment

PATIENCE_S = 60.0


@pytest.fixture
def server():
    with sim.serve(timeout=PATIENCE_S) as server:
        yield server


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("record", [False, True])
def test_two_peers_share_memory_and_ring_each_other(dialect, record):
    with sim.serve(size="64K", vectors=3, dialect=dialect, record=record, timeout=PATIENCE_S) as server:
        with server.connect() as first, server.connect() as second:
            assert (first.id, second.id, first.vectors, second.dialect) == (0, 1, 3, dialect)
            assert second.peers == {0: 3}
            assert first.wait_for_peers(1) == {1: 3}
            assert len(first.memory) == server.size_bytes == 65536
            first.memory[8:13] = b"hello"
            assert bytes(second.memory[8:13]) == b"hello"
            assert second.ring(first.id, 2)
            assert first.wait() == (2, 1, 0)
        assert not os.path.exists(server.path) or server.path.is_socket()
    assert not server.path.exists()


def test_doorbells_of_one_vector_coalesce_and_each_vector_waits_for_itself(server):
    with server.connect() as first, server.connect() as second:
        for vector in (1, 0, 1):
            second.ring(first.id, vector)
        assert first.wait(0).doorbells == 1
        assert first.wait(1).doorbells == 2
        first.ring(first.id, 1)  # itself
        assert first.wait().vector == 1


def test_a_wait_that_is_over_says_what_else_has_come(server):
    with server.connect() as first, server.connect() as second:
        second.ring(first.id, 1)
        with pytest.raises(TimeoutError, match=r"interrupt of vector 0 within 0 s, got none \(other .* wait: 1\)"):
            first.wait(0, timeout=0)
        with pytest.raises(ValueError, match=r"expected a vector of this peer, 0\.\.1, got 2"):
            first.wait(2)
        with pytest.raises(TimeoutError, match=r"expected 5 other peers within 0 s, got \{1: 2\}"):
            first.wait_for_peers(5, timeout=0)


def test_peers_that_join_and_leave_are_events(server):
    with server.connect() as first:
        assert first.events() == []
        with server.connect() as second:
            first.wait_for_peers(1)
            assert [tuple(change) for change in first.events()] == [("joined", second.id)]
        first._until(lambda: not first._attachment.vectors_of(1), None)
        assert [str(change) for change in first.events()] == ["peer 1 has left"]
        assert first.peers == {}
        with pytest.raises(GuestError, match="peer 1 is not there: expected one of 0"):
            first.ring(1)


def test_a_full_counter_refuses(server):
    with server.connect() as first, server.connect() as second:
        descriptor = second._attachment._vm.device.peers.line(first.id, 0)
        os.eventfd_write(descriptor, COUNTER_MAX)
        assert not second.ring(first.id, 0)
        assert first.wait(0).doorbells == COUNTER_MAX


def test_doorbells_go_on_without_the_server():
    with sim.serve(timeout=PATIENCE_S) as server:
        first, second = server.connect(), server.connect()
    with first, second:
        first._until(lambda: not first._attachment.served, None)
        assert not first.connected
        assert [change.kind for change in first.events()] == ["joined", "server_closed"]
        second.ring(first.id, 1)
        assert first.wait().vector == 1


def test_a_closed_peer_says_so_and_its_memory_is_released(server):
    peer = server.connect()
    memory, part = peer.memory, peer.memory[:4]
    peer.close()
    peer.close()
    with pytest.raises(ValueError, match="released"):
        memory[0]
    assert bytes(part) == bytes(4)  # what is still used stays mapped
    part.release()
    for use in (lambda: peer.id, lambda: peer.peers, peer.wait, peer.events):
        with pytest.raises(UsageError, match="this peer is closed"):
            use()


def test_where_no_server_listens_there_is_no_peer(short_path):
    with pytest.raises(UsageError, match="no server listens on"):
        sim.connect(short_path / "none")


def test_a_silent_server_is_given_up(short_path, monkeypatch):
    monkeypatch.setattr(attachment, "GREETING_NS", 1)
    monkeypatch.setattr(async_client, "GREETING_NS", 1)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(short_path / "s"))
        listener.listen()
        with pytest.raises(RemoteProtocolError, match="is silent: expected"):
            sim.connect(short_path / "s")

        async def connect():
            await sim.connect_async(short_path / "s")

        with pytest.raises(RemoteProtocolError, match="is silent: expected"):
            asyncio.run(connect())


# asyncio


def test_asyncio_has_the_same_peer(server):
    async def talk():
        async with sim.connect_async(server.path, vectors=2, timeout=PATIENCE_S) as first:
            second = await sim.connect_async(server.path, vectors=2, timeout=PATIENCE_S)
            assert await first.wait_for_peers(1) == {second.id: 2}
            waits = [asyncio.create_task(first.wait(vector)) for vector in (0, 1)]
            await asyncio.sleep(0)
            second.ring(first.id, 1)
            assert first.peers  # takes in, and wakes the tasks that wait
            assert (await waits[1]).vector == 1
            second.ring(first.id, 0)
            assert (await waits[0]).vector == 0
            with pytest.raises(TimeoutError):
                await first.wait(timeout=0.001)
            second.close()
            changes = first.changes()
            assert [str(await anext(changes)) for _ in range(2)] == ["peer 1 has joined", "peer 1 has left"]
            await changes.aclose()

    asyncio.run(talk())


def test_a_task_that_waits_hears_that_its_peer_was_closed(server):
    async def talk():
        peer = await sim.connect_async(server.path, vectors=2)
        waiting = asyncio.create_task(peer.wait())
        watching = asyncio.create_task(anext(peer.changes(), None))
        await asyncio.sleep(0)
        peer.close()
        peer.close()
        assert await watching is None
        with pytest.raises(UsageError, match="this peer is closed"):
            await waiting

    asyncio.run(talk())


def test_the_end_of_the_server_ends_the_changes():
    async def talk():
        server = sim.serve()
        async with sim.connect_async(server.path, vectors=2) as peer:
            await asyncio.to_thread(server.close)
            assert [change.kind async for change in peer.changes()] == ["server_closed"]

    asyncio.run(talk())


# The server, and machines in its thread


def test_an_echo_answers_at_once_however_late_the_peer_joins(server):
    machine = server.machine("echo")
    for _ in range(3):
        with server.connect() as peer:
            assert peer.ring(machine.id, 1)
            assert peer.wait(1).doorbells == 1
    server.stop_machine(machine)
    assert server.peers == []
    assert machine.finished


def test_a_program_of_ones_own_waits_for_times_too(server):
    def program(guest, *, count, to="others"):
        for _ in range(count):
            yield guest.clock() + 1000
            for peer in to:
                guest.ring(peer, 1)
        yield NOW
        guest.statistics["rung"] = count
        yield FOREVER

    with server.connect() as peer:
        machine = server.machine(program, count=3)
        doorbells = 0
        while doorbells < 3:
            doorbells += peer.wait(1).doorbells
        server.settle()
        server.stop_machine(machine)
    assert (doorbells, machine.statistics, machine.failure) == (3, {"rung": 3}, None)


def test_a_program_that_fails_ends_neither_the_server_nor_other_machines(server):
    def fails(guest):
        yield FOREVER
        raise LookupError("no such register")

    broken, echo = server.machine(fails), server.machine("echo")
    with server.connect() as peer:
        peer.ring(broken.id)
        peer.ring(echo.id)
        peer.wait()
        server.settle()
    assert isinstance(broken.failure, LookupError)
    assert (echo.failure, broken.finished, echo.finished) == (None, True, False)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"size": "3M"}, "size: expected a power of two from 4K"),
        ({"size": "much"}, "size: expected a size such as"),
        ({"vectors": 0}, "expected 1 to 2048 vectors, got 0"),
        ({"dialect": "v3"}, "expected a dialect, one of .*v0.*, got 'v3'"),
    ],
)
def test_arguments_of_the_server_are_checked(arguments, error):
    with pytest.raises(UsageError, match=error):
        sim.serve(**arguments)


def test_programs_and_their_parameters_are_checked(server):
    with pytest.raises(UsageError, match="there is no program 'ech': expected one of echo, ethernet"):
        server.machine("ech")
    with pytest.raises(UsageError, match="echo has no parameter speed: expected one of"):
        server.machine("echo", speed=1)


def test_a_server_leaves_no_thread_and_refuses_calls_when_it_is_closed(short_path):
    before = threading.active_count()
    server = sim.serve(short_path / "s")
    with pytest.raises(UsageError, match="another server is listening there"):
        sim.serve(short_path / "s")
    assert threading.active_count() == before + 1
    server.close()
    server.close()
    assert threading.active_count() == before
    with pytest.raises(UsageError, match="the server is closed"):
        server.machine("echo")


def test_what_was_sent_is_explained():
    with sim.serve(record=True) as server, server.connect() as peer:
        transcript = server.transcript()
        assert "connection 1: ID 0, 4194304 bytes of memory, clean" in transcript
        assert "the client's own vector 1: to be waited for" in transcript
        assert server.session.startswith("ivshmem-session 1\n")
        assert peer.id == 0


def test_a_server_in_a_child_process():
    with sim.serve_process(size="64K", vectors=3, timeout=PATIENCE_S) as server:
        with server.connect() as first, server.connect() as second:
            assert (first.id, second.id, second.vectors, len(first.memory)) == (0, 1, 3, 65536)
            first.wait_for_peers(1)
            assert first.ring(second.id, 2)
            assert second.wait(2).doorbells == 1
            os.kill(server.pid, 0)
        path, pid = server.path, server.pid
    assert not path.exists()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    with pytest.raises(UsageError, match="expected a size from 4K to 1T, got '3'"):
        sim.serve_process(size=3)
    with pytest.raises(UsageError, match="cannot listen on"):
        sim.serve_process(f"/tmp/ivt-none-{os.getpid()}/s")
