"""A process that goes on in its successor: the program where it stood, and one of the two at any time.

Each case is a process of its own, which adopts what its worker leaves behind.
"""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
import textwrap

import pytest

from nodes.errors import HostError
from sim.kernel.fork_handover import remap
from sim.kernel.memory import Region

PREAMBLE = """
import ctypes, mmap, os, select, signal, socket, struct, sys
from sim.kernel.memory import Region, map_region
from sim.kernel.fork_handover import Source, Successor, fork_successor, remap
from sim.kernel.processes import adopting_orphans

def program(memory):
    count = 0
    while True:
        count += yield
        struct.pack_into("<QQ", memory, 0, count, os.getpid())

def counted(region):
    with mmap.mmap(region.descriptor, 16) as view:
        return struct.unpack("<QQ", view[:16])

def start_process():
    '''In a worker: its program, which has counted to 5, and the mapping under it.'''
    mapping = map_region(old.descriptor)
    running = program(memoryview(mapping))
    next(running)
    running.send(5)
    return mapping, running

def ended(pid):
    descriptor = os.pidfd_open(pid)
    assert select.select([descriptor], [], [], 20)[0], "it still runs"
    status = os.waitid(os.P_PIDFD, descriptor, os.WEXITED)
    os.close(descriptor)
    return status.si_status

old, new = Region.create(4096, kind="memfd"), Region.create(4096, kind="memfd")
told, tell = socket.socketpair()
told.settimeout(20)
me = os.getpid()
"""


def play(script: str) -> str:
    """What the script prints, when it ends well and without a word on stderr."""
    text = PREAMBLE + textwrap.dedent(script)
    command = [sys.executable, "-W", "error", "-W", "ignore::ResourceWarning", "-c", text]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_program_goes_on_where_it_stood() -> None:
    """Its count and what it has cached are the source's; its memory is the new one, its parent the coordinator."""
    printed = play("""
        with adopting_orphans():
            worker = os.fork()
            if worker == 0:
                mapping, running = start_process()
                side = fork_successor()
                if isinstance(side, Source):
                    assert side.await_ready(20)
                    assert side.commit()
                    os._exit(0)
                contents = bytes(mapping)
                remap(memoryview(mapping), new.descriptor)
                mapping[:] = contents
                assert side.stand_ready()
                assert side.tie_to(me)
                running.send(2)
                tell.send(struct.pack("<QQ", os.getpid(), os.getppid()))
                os._exit(7)
            successor, parent = struct.unpack("<QQ", told.recv(16))
            assert ended(worker) == 0
            assert parent == me
            assert ended(successor) == 7
            assert counted(old) == (5, worker)
            assert counted(new) == (7, successor)
            print("moved")
        """)
    assert printed == "moved\n"


@pytest.mark.parametrize("death", ["os._exit(1)", "os.kill(os.getpid(), 9)", "signal.pause()"])
def test_successor_that_does_not_stand_ready_changes_nothing(death: str) -> None:
    printed = play(f"""
        worker = os.fork()
        if worker == 0:
            mapping, running = start_process()
            side = fork_successor()
            if isinstance(side, Successor):
                remap(memoryview(mapping), new.descriptor)
                {death}
            assert not side.await_ready({0.05 if "pause" in death else 20})
            side.cancel()
            running.send(2)
            try:
                os.waitpid(-1, 0)
            except ChildProcessError:
                os._exit(0)
            os._exit(1)
        assert ended(worker) == 0
        assert counted(old) == (7, worker)
        print(counted(new))
        """)
    assert printed == "(0, 0)\n"


def test_source_that_dies_before_the_commit_takes_the_machine_with_it() -> None:
    printed = play("""
        with adopting_orphans():
            worker = os.fork()
            if worker == 0:
                side = fork_successor()
                if isinstance(side, Source):
                    assert side.await_ready(20)
                    tell.send(struct.pack("<Q", side.pid))
                    os.kill(os.getpid(), signal.SIGKILL)
                os._exit(3 if not side.stand_ready() else 0)
            successor, = struct.unpack("<Q", told.recv(8))
            assert ended(worker) == signal.SIGKILL
            print(ended(successor))
        """)
    assert printed == "3\n"


def test_commit_to_a_dead_successor_is_seen() -> None:
    printed = play("""
        worker = os.fork()
        if worker == 0:
            side = fork_successor()
            if isinstance(side, Successor):
                side._gate.send(b"r")
                os._exit(0)
            assert side.await_ready(20)
            os.waitid(os.P_PID, side.pid, os.WEXITED | os.WNOWAIT)
            committed = side.commit()
            side.cancel()
            os._exit(int(committed))
        print(ended(worker))
        """)
    assert printed == "0\n"


def test_a_successor_ends_with_the_process_that_adopted_it() -> None:
    """The coordinator is killed; its machine, moved and busy, ends at once. This process sees it end."""
    printed = play("""
        with adopting_orphans():
            coordinator = os.fork()
            if coordinator == 0:
                coordinator = os.getpid()
                with adopting_orphans():
                    worker = os.fork()
                    if worker == 0:
                        side = fork_successor()
                        if isinstance(side, Source):
                            assert side.await_ready(20) and side.commit()
                            os._exit(0)
                        assert side.stand_ready() and side.tie_to(coordinator)
                        tell.send(struct.pack("<Q", os.getpid()))
                        while True:
                            pass
                    signal.pause()
            successor, = struct.unpack("<Q", told.recv(8))
            os.kill(coordinator, signal.SIGKILL)
            assert ended(coordinator) == signal.SIGKILL
            print(ended(successor))
        """)
    assert printed == "9\n"


def test_adopting_ends_with_its_block() -> None:
    printed = play("""
        now = ctypes.c_int()
        with adopting_orphans():
            ctypes.CDLL(None).prctl(37, ctypes.byref(now), 0, 0, 0)
            print(now.value)
            with adopting_orphans():
                pass
            ctypes.CDLL(None).prctl(37, ctypes.byref(now), 0, 0, 0)
            print(now.value)
        ctypes.CDLL(None).prctl(37, ctypes.byref(now), 0, 0, 0)
        print(now.value)
        """)
    assert printed.split() == ["1", "1", "0"]


def test_every_view_shows_the_new_memory() -> None:
    old, new = Region.create(8192, kind="memfd"), Region.create(8192, kind="memfd")
    small = Region.create(4096, kind="memfd")
    try:
        with (
            mmap.mmap(old.descriptor, 8192) as mapping,
            mmap.mmap(new.descriptor, 8192) as other,
            memoryview(mapping) as view,
            view[4096:] as part,
        ):
            part[0], other[4096] = 1, 2
            with pytest.raises(HostError, match="4096 bytes cannot take the place of 8192"):
                remap(memoryview(mapping), small.descriptor)
            assert part[0] == 1
            remap(memoryview(mapping), new.descriptor)
            assert part[0] == view[4096] == mapping[4096] == 2
            view[1] = 3
            assert other[1] == 3
        assert os.pread(old.descriptor, 1, 4096) == b"\1"
    finally:
        for region in (old, new, small):
            region.close()
