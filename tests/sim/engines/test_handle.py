"""sim.engines.process.handle: one machine, the processes that it is in, and what is reported of them."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from sim.engines.messages import Ended, Failed, Migrate, Moved, Placed, Ready, Report, Stayed
from sim.engines.process.control import Control, Forked, Proceed
from sim.engines.process.handle import WorkerHandle
from sim.kernel.loop import Loop
from sim.recording import State

PATIENCE_NS = 20_000_000_000


class HandleSetup:
    """A handle whose workers are processes that sleep; this test speaks for them on the control socket."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self.stack = stack
        self.loop = stack.enter_context(contextlib.closing(Loop()))
        self.reports: list[Report] = []
        self.words = [0] * 64
        self.worker: Any = None
        fork_server: Any = SimpleNamespace(
            fork=self.fork, has_ended=True, state=lambda: "the fork server ended (exit 7): no license"
        )
        recordings: Any = [SimpleNamespace(words=self.words)]
        configuration: Any = None
        self.handle = WorkerHandle(
            configuration,
            recordings,
            self.loop,
            fork_server,
            server_path=lambda domain: f"/server.{domain}",
            on_process=lambda pid: None,
            memory_fault=lambda: "the shared memory was made smaller",
            report=self.reports.append,
        )
        stack.callback(self.handle.close)
        self.handle.start()

    def fork(self, _configuration: object, control: socket.socket) -> None:
        self.worker = Control(control)

    def spawn(self) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(["sleep", "60"])
        self.stack.callback(process.wait)
        self.stack.callback(process.kill)
        return process

    def say(self, *messages: Any) -> None:
        for message in messages:
            assert self.worker.send(message)
        self.loop.step(time.monotonic_ns())

    def until(self, kind: type) -> None:
        deadline_ns = time.monotonic_ns() + PATIENCE_NS
        while not any(isinstance(report, kind) for report in self.reports):
            assert time.monotonic_ns() < deadline_ns, self.reports
            self.loop.step(deadline_ns)


@pytest.fixture
def site() -> Iterator[HandleSetup]:
    with contextlib.ExitStack() as stack:
        yield HandleSetup(stack)


def test_a_worker_is_known_before_it_may_connect(site: HandleSetup) -> None:
    process = site.spawn()
    assert site.handle.pid is None
    site.say(Forked(process.pid))
    assert (site.handle.pid, site.reports) == (process.pid, [Placed()])
    assert site.worker.receive() == Proceed()


def test_a_worker_that_is_never_forked_is_told_with_the_reason(site: HandleSetup) -> None:
    site.worker.close()
    site.until(Ended)
    assert site.reports == [Ended("could not be started: the fork server ended (exit 7): no license", started=False)]
    assert not site.handle.is_running


def test_the_reason_of_a_fork_that_failed_is_the_kernels(site: HandleSetup) -> None:
    site.worker.send(Failed("host", "fork: Resource temporarily unavailable"))
    site.worker.close()
    site.until(Ended)
    assert site.reports[-1] == Ended("could not be started: fork: Resource temporarily unavailable", started=False)


def test_an_end_comes_after_all_that_was_said_before(site: HandleSetup) -> None:
    process = site.spawn()
    site.say(Forked(process.pid))
    site.worker.send(Ready())
    site.worker.send(Failed("program", "ValueError"))
    process.kill()
    site.until(Ended)
    assert site.reports == [Placed(), Ready(), Failed("program", "ValueError"), Ended("SIGKILL")]


def test_a_death_of_sigbus_is_explained_by_the_memory(site: HandleSetup) -> None:
    process = site.spawn()
    site.say(Forked(process.pid))
    process.send_signal(signal.SIGBUS)
    site.until(Ended)
    assert site.reports[-1] == Ended("SIGBUS: the shared memory was made smaller")


@pytest.mark.parametrize(("state", "how"), [(State.STOPPED, ""), (State.RUNNING, "exit 0")])
def test_an_exit_is_clean_only_with_final_counts(site: HandleSetup, state: int, how: str) -> None:
    process = subprocess.Popen(["true"])
    site.words[8] = state
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    site.say(Forked(process.pid))
    site.until(Ended)
    assert site.reports[-1] == Ended(how)
    process.wait()


def test_a_candidate_that_is_not_wanted_is_ended(site: HandleSetup) -> None:
    """Its source has been killed, and it waits for the coordinator itself."""
    source, candidate = site.spawn(), site.spawn()
    site.say(Forked(source.pid))
    site.say(Forked(candidate.pid))  # no migration was ordered
    assert site.handle.pid == source.pid
    assert candidate.wait(20) in (-signal.SIGKILL, 0)  # 0: the handle has collected its exit
    assert site.handle.is_running


def test_a_migration_that_failed_ends_its_candidate(site: HandleSetup) -> None:
    source, candidate = site.spawn(), site.spawn()
    site.say(Forked(source.pid))
    assert site.handle.tell(Migrate(0, hand_over=False))
    site.say(Forked(candidate.pid), Stayed("it was cancelled", 1))
    assert candidate.wait(20) in (-signal.SIGKILL, 0)
    assert site.reports == [Placed(), Stayed("it was cancelled", 1)]


def test_a_machine_is_in_its_new_process_once_the_old_one_has_ended(site: HandleSetup) -> None:
    source, successor = site.spawn(), site.spawn()
    site.say(Forked(source.pid))
    assert site.handle.tell(Migrate(0, hand_over=True))
    moved = Moved(3, 1, 2, 0, 0)
    site.say(Forked(successor.pid), moved)
    assert site.handle.pid == successor.pid
    source.kill()
    while site.reports.count(Placed()) < 2:
        site.loop.step()
    assert site.handle.is_running
    successor.kill()
    site.until(Ended)
    assert site.reports == [Placed(), moved, Placed(), Ended("SIGKILL")]
