"""The progress of a start: what the coordinator's patience is measured by."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from sim.engines.base import Arrival
from sim.engines.process.engine import ProcessEngine
from topologies import loads

GREETING = 3 + 2  # version, ID, memory, and its vectors


def test_messages_of_a_server_are_progress(short_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of thousands of machines none is Ready until nearly all that all are told has been sent."""
    topology = loads('title = "t"\n[machines.a]\nvectors = 2\nprogram = "idle"\n')
    arrivals: list[Arrival] = []
    with ProcessEngine(topology, short_path, short_path / "s") as engine:
        monkeypatch.setattr(engine._fork_server, "work", lambda: 0)
        server = engine.make_server(topology.domains[0], 0, on_arrival=arrivals.append, on_leave=lambda *_: None)
        server.listen(vectors=2, first_peer=0)
        before = engine.start_progress()
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(os.fspath(server.path))
            while not arrivals:
                engine.loop.step()
            server.admit([(arrivals[0], 2)])
            assert engine.start_progress() == before + GREETING
        server.stop()
        assert engine.start_progress() == before
