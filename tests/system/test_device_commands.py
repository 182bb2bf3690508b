"""``ivsim device`` and ``ivsim conformance``: what they print, and their exit codes."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

import sim.oracle.conformance
from nodes.device.profile import Profile
from nodes.device.profiles import PROFILES, profile
from nodes.errors import UsageError
from nodes.qemu_versions import NEWEST
from sim.commands.device import conformance, device
from sim.oracle.conformance import Divergence, Report
from sim.oracle.operations import ConfigRead, Scene
from sim.views.datasheet import datasheet, summary
from tests.real_qemu import real_qemu


@pytest.mark.parametrize("made", PROFILES.values(), ids=lambda made: made.name)
def test_datasheet_holds_every_fact(made: Profile) -> None:
    text = datasheet(made)
    for register in made.registers.registers:
        assert register.name in text
        assert register.text in text
    for cell in Profile.cells():
        if cell not in ("registers", "registers_rules", "msix_rules", "stream", "quirks"):
            assert f"  {cell} " in text
            assert made.sources[cell] in text
    assert all(f"row {quirk.value:>3}" in text for quirk in made.quirks)
    assert (f"MSI-X, BAR{made.msix_bar}" in text) is made.msix
    identity = made.vendor.to_bytes(2, "little") + made.device.to_bytes(2, "little")
    assert f"00: {identity.hex(' ')}" in text
    assert all(ord(character) < 128 for character in text)


def test_datasheet_of_another_size() -> None:
    text = datasheet(profile("qemu-doorbell"), vectors=2048, memory_bytes=1 << 20)
    assert "0x0000000c  0xfff00000  BAR2" in text
    assert "BAR1: memory, 32-bit, non-prefetchable, 65536 bytes" in text
    assert "BAR2: memory, 64-bit, prefetchable, 1048576 bytes" in text
    assert "0x8000..0x80ff  pending bits" in text


def test_show() -> None:
    result = CliRunner().invoke(device, ["show", "qemu-1.1", "--vectors", "3"])
    assert result.exit_code == 0
    assert result.output == datasheet(profile("qemu-1.1"), vectors=3)


def test_list() -> None:
    result = CliRunner().invoke(device, ["list"])
    assert result.output == summary(PROFILES.values()) + "\n"
    assert [line.split()[0] for line in result.output.splitlines()] == list(PROFILES)


def test_an_unknown_profile_is_refused() -> None:
    result = CliRunner().invoke(device, ["show", "qemu"])
    assert result.exit_code == 2
    assert "qemu-doorbell" in result.output


def test_conformance_without_a_qemu() -> None:
    result = CliRunner().invoke(conformance, ["--qemu", "no-such-qemu"])
    assert isinstance(result.exception, UsageError)


def test_a_divergence_is_printed_and_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def diverging(qemu: str, name: str, seed: int, operations: int, access: str) -> Report:
        scene = Scene(name, 1, 1, 0, 4096)
        divergence = Divergence(scene, (ConfigRead(0, 4),), "value 0x1", "value 0x2")
        found = divergence if seed == 4 else None
        return Report(name, NEWEST, access, seed, 1, operations, (("ConfigRead", 1),), found)

    monkeypatch.setattr(sim.oracle.conformance, "conform", diverging)
    result = CliRunner().invoke(conformance, ["--profile", "qemu-plain", "--seed", "3", "--seeds", "2"])
    assert result.exit_code == 1
    assert "and QEMU 11.1 by tcg, seed 3: 1000 operations on 1 device, no divergence" in result.output
    assert "1. config_read(0x00, 4)" in result.output
    assert "simulated: value 0x2" in result.output
    result = CliRunner().invoke(conformance, ["--profile", "qemu-plain", "--seed", "4", "--json"])
    assert result.exit_code == 1
    assert "value 0x1" in json.loads(result.output)["divergence"]


@pytest.mark.qemu
@pytest.mark.parametrize("access", ["tcg", "qtest"])
def test_conformance_command(access: str) -> None:
    real_qemu()
    result = CliRunner().invoke(conformance, ["--operations", "200", "--json", "--access", access])
    assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in result.output.splitlines()]
    assert [(row["profile"], row["access"], row["operations"], row["divergence"]) for row in rows] == [
        ("qemu-doorbell", access, 200, None),
        ("qemu-plain", access, 200, None),
    ]
