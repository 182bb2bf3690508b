"""sim.exit_codes: by whose fault, by which signal, and how a run went."""

from __future__ import annotations

import pytest

from nodes.errors import GuestError, HostError, IvshmemError, RunError, UsageError
from sim.exit_codes import of_error, of_run, of_signal
from topologies import TopologyError


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UsageError("a"), 2),
        (TopologyError([]), 2),
        (HostError("a"), 3),
        (RunError("a"), 1),
        (GuestError("a"), 1),
        (IvshmemError("a"), 1),
    ],
)
def test_an_error_ends_by_whose_fault_it_is(error: IvshmemError, code: int) -> None:
    assert of_error(error) == code


@pytest.mark.parametrize(
    ("name", "code"), [("SIGHUP", 129), ("SIGINT", 130), ("SIGTERM", 143), ("", 130), ("given up", 130)]
)
def test_a_signal_ends_as_a_shell_has_it(name: str, code: int) -> None:
    assert of_signal(name) == code


def test_a_run_that_a_limit_ends_has_a_code_of_its_own() -> None:
    assert of_run("failed", "", balanced=True, aborted=False, missed=True, stopped_above=True) == 98
    assert of_run("failed", "", balanced=False, aborted=False, missed=False, stopped_above=True) == 1


@pytest.mark.parametrize(
    ("status", "aborted", "missed", "code"),
    [
        ("finished", False, False, 0),
        ("degraded", False, True, 99),
        ("failed", True, True, 99),
        ("failed", False, True, 1),
        ("died", False, False, 1),
        ("interrupted", False, True, 143),
    ],
)
def test_a_run_ends_as_it_went(status: str, aborted: bool, missed: bool, code: int) -> None:
    assert of_run(status, "SIGTERM", balanced=True, aborted=aborted, missed=missed) == code
    if status != "interrupted":
        assert of_run(status, "", balanced=False, aborted=aborted, missed=missed) == 1
