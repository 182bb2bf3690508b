"""What a run that goes on shows of its latency."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from sim.coordination import live_latency
from sim.coordination.live_latency import DRAINS_PER_BIN, SAMPLES_MIN, WINDOW_NS, recent_delivery_ns
from sim.engines.shared.recorder import Recorder
from sim.recording import Recording, RecordingLayout
from sim.recording.reader import latest_drains

NOW_NS = 50_000_000_000


def look(
    tmp_path: Path, doorbells: int, *, after_ns: int, age_ns: int = 0, vector: int = 1, sample_every: int = 1
) -> dict[str, int]:
    """Machine 0 rings machine 1, whose ID is 7, every so often; each doorbell is taken ``after_ns`` later."""
    with ExitStack() as stack:
        layout = RecordingLayout(2, 4, 1024, 1024)
        recordings = {
            row: stack.enter_context(Recording.create(tmp_path / f"{row}.rec", layout, machine=row, sample_every=1))
            for row in (0, 1)
        }
        ringer, drains = Recorder(recordings[0]), Recorder(recordings[1]).make_drains()
        edge = ringer.open_edge(7, 1)
        for number in range(doorbells):
            rung_ns = NOW_NS - age_ns - 1_000_000 * (doorbells - number)
            if number % sample_every == 0:
                ringer.sample(edge, number + 1, 0, rung_ns, rung_ns)
            drains.drained(vector, 1, rung_ns + after_ns)
            drains.handled(rung_ns + 2 * after_ns)
        return recent_delivery_ns(recordings, {(0, 3): 0, (0, 7): 1}, NOW_NS)


def test_it_is_from_the_ring_to_the_first_drain_of_that_vector(tmp_path: Path) -> None:
    assert look(tmp_path, 50, after_ns=1500) == {"p50": 1500, "p99": 1500}


def test_too_few_samples_give_no_percentiles(tmp_path: Path) -> None:
    assert look(tmp_path, SAMPLES_MIN - 1, after_ns=1500) == {}


def test_doorbells_before_the_window_do_not_count(tmp_path: Path) -> None:
    assert look(tmp_path, 50, after_ns=1500, age_ns=2 * WINDOW_NS) == {}


def test_another_vectors_drain_is_not_its_own(tmp_path: Path) -> None:
    assert look(tmp_path, 50, after_ns=1500, vector=0) == {}


@pytest.fixture
def many(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a run of many machines: of each recording no more is looked at than has to be."""
    monkeypatch.setattr(live_latency, "DRAINS_TOGETHER", 0)


@pytest.mark.usefixtures("many")
def test_doorbells_before_the_read_drains_do_not_count(tmp_path: Path) -> None:
    assert look(tmp_path, 900, after_ns=1500, sample_every=10) == {"p50": 1500, "p99": 1500}


@pytest.mark.usefixtures("many")
def test_too_few_doorbells_within_the_read_drains_give_no_percentiles(tmp_path: Path) -> None:
    assert DRAINS_PER_BIN // 15 < SAMPLES_MIN
    assert look(tmp_path, 900, after_ns=1500, sample_every=15) == {}


def test_more_drains_are_read_of_few_recordings(tmp_path: Path) -> None:
    assert look(tmp_path, 900, after_ns=1500, sample_every=15) == {"p50": 1500, "p99": 1500}


def test_a_drain_that_comes_while_it_reads_is_none_of_those_it_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker stores its first drain between two looks at its recording."""
    layout = RecordingLayout(2, 4, 1024, 1024)
    with Recording.create(tmp_path / "0.rec", layout, machine=0, sample_every=1) as recording:
        drains = Recorder(recording).make_drains()

        def read_then_store(*arguments: Any) -> Any:
            found = latest_drains(*arguments)
            drains.drained(0, 1, NOW_NS)
            drains.handled(NOW_NS)
            return found

        monkeypatch.setattr(live_latency, "latest_drains", read_then_store)
        assert recent_delivery_ns({0: recording}, {(0, 7): 0}, NOW_NS) == {}
