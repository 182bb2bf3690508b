"""Runs whose coordinator died, failed or met a full disk: opened all the same, and marked."""

from __future__ import annotations

import gc
import os
import subprocess
import sys

import msgspec
import pytest

import sim.results
from nodes.errors import HostError, UsageError
from sim.recording import State, header
from sim.results import Ending, RunDirectory, finalize
from sim.results.analysis.time_series import time_series
from sim.results.store.manifest import Owner
from tests.synthetic import (
    PENDING,
    account,
    finish,
    orphan,
    pair,
    record,
    topology,
    usage,
)


def test_a_run_that_goes_on_is_not_opened(tmp_path):
    with (
        pair(tmp_path) as directory,
        pytest.raises(UsageError, match=f"still running, in process {os.getpid()}"),
    ):
        sim.results.open(directory.path)


def test_an_owner_is_told_from_a_later_process_with_its_number():
    me = Owner.this()
    assert me.is_running()
    assert not msgspec.structs.replace(me, start_ticks=me.start_ticks + 1).is_running()
    assert not msgspec.structs.replace(me, boot="another").is_running()
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        # A zombie: it has ended and was not waited for.
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert not Owner(child.pid, 0, me.boot).is_running()
    assert not Owner(child.pid, 0, me.boot).is_running()


def test_a_run_whose_coordinator_died_is_recovered(tmp_path):
    directory = pair(tmp_path)
    for second in (0, 1, 2):
        directory.resources([usage(0, "ping-0", second)])
    directory.event("started")
    run = sim.results.open(orphan(directory))
    assert run.status == "died"
    assert run.reason == f"the coordinator (process {os.getpid()}) died"
    assert account(run.summary) == (3, 2, 1, 0, 0)
    assert run.summary["pending_derived"]
    assert run.summary["latency_ns"]["total"]["p50"] == 9000
    assert (run.resources().num_rows, len(run.events()), run.summary["elapsed_s"]) == (3, 1, 3.0)
    assert not (run.path / "raw").exists()
    # Once recovered it stays as it is.
    assert sim.results.open(run.path).summary == run.summary


def test_a_coordinator_that_failed_leaves_a_run_to_open(tmp_path):
    with pytest.raises(ZeroDivisionError), pair(tmp_path) as directory:
        _ = 1 / 0
    run = sim.results.open(directory.path)
    assert (run.status, run.reason) == ("failed", "ZeroDivisionError: division by zero")
    assert account(run.summary) == (3, 2, 1, 0, 0)
    assert run.summary["pending_derived"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_given_up_results_can_be_made_later(tmp_path, monkeypatch, error):
    """This process continues: the directory must not say that the run continues."""
    directory = pair(tmp_path)

    def give_up(*_: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(finalize, "account", give_up)
        with pytest.raises(error), directory:
            finish(directory, PENDING)
    said = {KeyboardInterrupt: "interrupted\ngiven up before", ZeroDivisionError: "failed\nZeroDivisionError"}[error]
    assert (directory.path / "status").read_text().startswith(said)
    run = sim.results.open(directory.path)
    assert (run.status, account(run.summary)) == ("finished", (3, 2, 1, 0, 0))


def test_an_interrupted_command_says_so(tmp_path):
    with pytest.raises(KeyboardInterrupt), pair(tmp_path) as directory:
        raise KeyboardInterrupt
    run = sim.results.open(directory.path)
    assert (run.status, run.reason) == ("interrupted", "given up before its results were written")
    assert account(run.summary) == (3, 2, 1, 0, 0)


def test_recovery_takes_deaths_from_the_recordings(tmp_path):
    directory = RunDirectory.create(tmp_path, topology({"from": (1, 1), "to": (1, 1)}), {})
    record(directory, 0, vectors=[(0, 0)], edges={(1, 0): (4, 0)}, state=State.RUNNING)
    record(directory, 1, vectors=[(10, 10)])
    run = sim.results.open(orphan(directory))
    assert account(run.summary) == (10, 10, 0, 0, 6)
    assert run.summary["deaths"] == {"from-0": "last seen running"}


def test_recovery_without_recordings(tmp_path):
    directory = RunDirectory.create(tmp_path, topology({"alone": (2, 2)}), {})
    run = sim.results.open(orphan(directory))
    assert (run.status, account(run.summary)) == ("died", (0, 0, 0, 0, 0))
    assert "recording of machine 0 is missing" in run.problems


def test_a_directory_that_cannot_be_written_is_read_all_the_same(tmp_path, monkeypatch):
    path = orphan(pair(tmp_path))
    before = {file: file.stat().st_mtime_ns for file in path.rglob("*")}
    conclude = finalize.conclude

    def refuse(where, manifest, ending, into=None):
        if into is None:
            raise OSError(30, "Read-only file system")
        conclude(where, manifest, ending, into=into)

    monkeypatch.setattr(finalize, "conclude", refuse)
    run = sim.results.open(path)
    assert (run.path, run.status, account(run.summary)) == (path, "died", (3, 2, 1, 0, 0))
    assert run.problems[0] == (
        "never finished, and nothing is kept: the directory cannot be written (Read-only file system)"
    )
    assert (run.samples().num_rows, run.latency().num_rows, run.frame().shape[0]) == (3, 5, 3)
    assert time_series(run).missing == []
    assert {file: file.stat().st_mtime_ns for file in path.rglob("*")} == before
    place = run.place
    assert place.is_dir()
    del run
    gc.collect()
    assert not place.exists(), "the results last as long as the run"


def test_with_no_place_for_results_both_reasons_are_told(tmp_path, monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(finalize, "conclude", refuse)
    with pytest.raises(UsageError, match=r"Read-only file system\) nor in .*Read-only file system"):
        sim.results.open(orphan(pair(tmp_path)))


@pytest.mark.parametrize("failing", ["write_table", "write_json", "write_status"])
def test_a_full_disk_keeps_the_recordings_and_a_later_open_finishes(tmp_path, monkeypatch, failing):
    directory = pair(tmp_path)

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(finalize.schemas if failing == "write_table" else finalize.files, failing, refuse)
        with pytest.raises(HostError, match="no space left on the disk"), directory:
            finish(directory, PENDING, status="degraded")
    assert len(list((directory.path / "raw").iterdir())) == 2
    if failing == "write_status":
        # It still says running: recovery has to wait until the owner has ended.
        orphan(directory)
    run = sim.results.open(directory.path)
    assert account(run.summary) == (3, 2, 1, 0, 0)
    # The coordinator's last words are used where they could be written.
    assert (run.status, run.summary["pending_derived"]) == {
        "write_table": ("degraded", False),
        "write_json": ("failed", True),
        "write_status": ("degraded", False),
    }[failing]


def test_a_run_that_never_started_has_figures_all_the_same(tmp_path):
    directory = RunDirectory.create(tmp_path, topology({"alone": (1, 1)}), {})
    record(directory, 0, vectors=[(0, 0)], state=State.CONNECTED, further={header.READY_NS: 0})
    run = directory.finish(Ending("failed", "not all were ready", {0: "exit 1"}, [], [], 0, 0, 0))
    figures = run.summary
    assert (run.status, run.reason) == ("failed", "not all were ready")
    assert (figures["elapsed_s"], figures["doorbells_per_s"], figures["ready_s"]) == (0.0, None, None)


KILLED_AT_EACH_STEP = """
import os, pathlib, signal, sys
from sim.results import RunDirectory
from tests.synthetic import topology

made, where, steps, last = topology({"alone": (1, 1)}), pathlib.Path(sys.argv[1]), 0, 0

def step(event, _arguments):
    global steps
    if last and event in ("open", "os.mkdir", "os.rename"):
        steps += 1
        if steps == last:
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(step)
RunDirectory.create(where / "0", made, {})  # all that it imports is loaded now
for count in range(1, 100):
    if not (pid := os.fork()):
        last = count
        RunDirectory.create(where / str(count), made, {})
        os._exit(0)
    if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0:
        break
print(count)
"""


def test_a_coordinator_killed_at_any_step_of_making_the_directory_leaves_a_run_that_died_or_none(tmp_path):
    """A manifest without a status, or without events, is a run whose coordinator died."""
    done = subprocess.run(
        [sys.executable, "-c", KILLED_AT_EACH_STEP, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = []
    for count in range(1, int(done.stdout) + 1):
        for path in (tmp_path / str(count)).glob("*"):
            try:
                found.append(sim.results.open(path).status)
            except UsageError as error:
                found.append(str(error).removeprefix(f"{path}: ").partition(":")[0])
    assert found == sorted(found, reverse=True), "not a run directory, and from the manifest on one that died"
    assert set(found) == {"not a run directory", "died"}


def test_only_a_coordinators_words_end_a_run():
    for word in ("running", "fine"):
        with pytest.raises(ValueError, match=word):
            Ending(word, "", {}, [], [], 0, 0, 0)


def test_an_event_that_the_disk_takes_in_part_spoils_no_other(tmp_path, monkeypatch):
    directory = pair(tmp_path)
    write = os.write
    with directory:
        directory.event("first")
        monkeypatch.setattr("os.write", lambda descriptor, data: write(descriptor, data[: len(data) // 2]))
        directory.event("half")
        monkeypatch.undo()
        directory.event("last")
        run = finish(directory, PENDING)
    assert [event["kind"] for event in run.events()] == ["first", "last"]
    assert "1 events could not be written" in run.problems
