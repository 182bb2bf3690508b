"""`ivsim attach ring`: how often, how fast, and doorbell values as a driver writes them."""

from __future__ import annotations

from collections.abc import Iterator

import click
import pytest

import sim
from nodes.errors import GuestError, UsageError
from sim import cli

PATIENCE_S = 60.0


@pytest.fixture
def server() -> Iterator[sim.Server]:
    with sim.serve(vectors=3, timeout=PATIENCE_S) as server:
        yield server


def ring(server: sim.Server, *arguments: object) -> int:
    """The exit code."""
    words = ["attach", "-S", str(server.path), "-n", "3", "ring", *map(str, arguments)]
    try:
        return cli.ivsim.main(words, prog_name="ivsim", standalone_mode=False) or 0
    except click.exceptions.Exit as request:
        return request.exit_code


def test_a_count_at_a_period(server: sim.Server, capsys: pytest.CaptureFixture[str]) -> None:
    with server.connect() as peer:
        assert ring(server, peer.id, 2, "--count", 5) == 0
        assert peer.wait(2).doorbells == 5
        assert ring(server, peer.id, "all", "--count", 2, "--every", "1ms") == 0
        taken = [0, 0, 0]
        while sum(taken) < 6:
            interrupt = peer.wait()
            taken[interrupt.vector] += interrupt.doorbells
        assert taken == [2, 2, 2]
    assert capsys.readouterr().err == "rang 5 doorbells\nrang 6 doorbells\n"


def test_a_doorbell_value_as_a_driver_writes_it(server: sim.Server) -> None:
    with server.connect() as first, server.connect() as second:
        assert ring(server, "--raw", hex(second.id << 16 | 1)) == 0
        assert second.wait(1).doorbells == 1
        assert ring(server, "--raw", first.id << 16 | 2, "--count", 3) == 0
        assert first.wait(2).doorbells == 3
        with pytest.raises(GuestError, match="peer 7"):
            ring(server, "--raw", 7 << 16)
        with pytest.raises(UsageError, match="of 32 bits"):
            ring(server, "--raw", 1 << 32)
        with pytest.raises(UsageError, match="takes one value"):
            ring(server, "--raw", "0", "1")
    with pytest.raises(GuestError, match="no other peer"):
        ring(server, "all")


def test_a_count_and_a_period_are_checked(server: sim.Server) -> None:
    for wrong in (["--count", "0"], ["--every", "often"]):
        with pytest.raises(click.UsageError):
            ring(server, "0", *wrong)
