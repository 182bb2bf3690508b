"""sim.kernel.qemu_program and --qemu-version: which QEMU is meant, and what of its words is quoted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from nodes.errors import QemuError, UsageError
from nodes.qemu_versions import NEWEST
from nodes.wire.capture import HEADER
from sim.commands.capture import explain_session
from sim.commands.migrate import migrate
from sim.kernel.qemu_program import QEMU_VARIABLE, assumed_version, find_qemu, qemu_version

NO_DESCRIPTOR = f"{HEADER}\n0.0 1 client connects\n0.1 1 server 0\n0.2 1 server 0\n0.3 1 server -1\n"
WORDS = {
    "7.2": "can't determine size of shared memory sent by server: Bad file descriptor",
    "10.0": "can't determine size of shared memory sent by server: Bad file descriptor",
    "11.1": "server didn't provide fd with shared memory message",
}


def program(path: Path, printed: str) -> str:
    """A program that prints this, whatever it is asked."""
    path.write_text(f"#!/bin/sh\necho '{printed}'\n")
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def session(tmp_path: Path) -> str:
    file = tmp_path / "session.txt"
    file.write_text(NO_DESCRIPTOR)
    return str(file)


def test_the_variable_names_the_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named = program(tmp_path / "q", "QEMU emulator version 10.0.13 (Debian)")
    monkeypatch.setenv(QEMU_VARIABLE, named)
    assert find_qemu() == named
    assert str(assumed_version()) == "10.0"
    monkeypatch.setenv(QEMU_VARIABLE, "no-such-qemu")
    with pytest.raises(UsageError, match=f"no-such-qemu is not on PATH.*{QEMU_VARIABLE}=PATH"):
        find_qemu()
    assert assumed_version() == NEWEST


def test_a_program_that_is_no_qemu_says_so(tmp_path: Path) -> None:
    with pytest.raises(QemuError, match="told no version of QEMU"):
        qemu_version(program(tmp_path / "q", "hello"))


@pytest.mark.parametrize("version", WORDS)
def test_explain_quotes_the_version_asked_for(session: str, version: str) -> None:
    told = CliRunner().invoke(explain_session, ["--qemu-version", version, session])
    assert told.exit_code == 1
    assert f"QEMU {version} exits with 1: {WORDS[version]}\n" in told.output
    data = json.loads(CliRunner().invoke(explain_session, ["--qemu-version", version, "--json", session]).output)
    assert data["qemu_version"] == version
    (problem,) = data["connections"][0]["entries"][-1]["problems"]
    assert problem["outcome"] == f"exits with 1: {WORDS[version]}"


def test_without_the_option_it_is_the_one_that_is_there(
    session: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(QEMU_VARIABLE, program(tmp_path / "q", "QEMU emulator version 7.2.22"))
    assert "QEMU 7.2 exits with 1" in CliRunner().invoke(explain_session, [session]).output
    wrong = CliRunner().invoke(explain_session, ["--qemu-version", "new", session])
    assert wrong.exit_code == 2
    assert "expected a version of QEMU such as 11.1, got 'new'" in wrong.output


def test_a_plan_quotes_what_the_destination_prints(tmp_path: Path) -> None:
    file = tmp_path / "t.toml"
    file.write_text(
        "[domains.here]\n[domains.there]\nsize = '8M'\n"
        "[machines.master]\nrole = 'master'\ndomains = ['here']\nprogram = 'idle'\n"
        "[[timeline]]\nat_s = 1\ndo = 'migrate'\nmachines = 'master'\nto_domain = 'there'\n"
    )
    reason = "Size mismatch: ivshmem.bar2: 0x400000 != 0x800000: Invalid argument"
    loading, invalid = "error while loading state for instance 0x0 of device 'ram'", "load of migration failed: "
    logs = {
        "10.0": [reason, loading, f"{invalid}Invalid argument"],
        "11.1": [reason, f"{invalid}Invalid argument: {loading}: Failed to load vmstate version_id: 4, ret: -22"],
    }
    for version, log in logs.items():
        told = CliRunner().invoke(migrate, ["--plan", "--qemu-version", version, str(file)]).output
        assert f"    QEMU {version} prints: {log[0]}\n    {log[1]}\n" in told
        data = json.loads(
            CliRunner().invoke(migrate, ["--plan", "--qemu-version", version, "--json", str(file)]).output
        )
        assert (data["qemu_version"], data["timeline"][0]["log"]) == (version, log)
