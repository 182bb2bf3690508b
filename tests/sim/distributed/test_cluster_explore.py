"""Seeds on a cluster that is not there: batches, their sums, and the first failure."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from nodes.errors import HostError, RunError, UsageError
from sim.distributed.job import Job, JobResult
from topologies import Topology, load

pytest.importorskip("distributed")

from sim.distributed.dask.client import Done
from sim.distributed.explore import explore_on

EXAMPLES = Path(__file__).parents[3] / "examples"
PROGRAMS = [EXAMPLES / "ring_buffer.py", EXAMPLES / "lost_wake_up.py"]
BROKEN = 8
"""A seed with which the consumer of lost_wake_up.py misses a message."""


@pytest.fixture(scope="module")
def topology() -> Topology:
    return load(EXAMPLES / "explore.toml", {"machines.consumer.program": "lossy_consumer"}, PROGRAMS)


class FakeCluster:
    """Answers each batch at once; ``answer`` gets the command line, the first seed and the last one."""

    title = "tcp://127.0.0.1:1"

    def __init__(self, broken: tuple[int, ...] = ()) -> None:
        self.jobs: list[Job] = []
        self.broken = broken
        self.cancelled = False
        self.answer: Callable[[int, int], tuple[int, bytes, str]] = self._figures
        self._waiting: list[Done] = []

    def hosts(self) -> dict[str, int]:
        return {"alpha": 1, "beta": 1}

    def submit(self, name: str, job: Job, host: str | None = None) -> None:
        self.jobs.append(job)
        first, last = map(int, job.arguments[job.arguments.index("--seeds") + 1].split(".."))
        code, stdout, stderr = self.answer(first, last)
        self._waiting.append(Done(name, JobResult("alpha", code, stdout, stderr, b"", ""), None))

    def wait(self, timeout_s: float) -> Done | None:
        return self._waiting.pop(0) if self._waiting else None

    def cancel(self) -> list[str]:
        self.cancelled = True
        return []

    def _figures(self, first: int, last: int) -> tuple[int, bytes, str]:
        broken = [{"seed": seed, "invariant": "its"} for seed in self.broken if first <= seed <= last]
        count = last - first + 1
        figures = {"seeds": count, "events": 2 * count, "doorbells": count, "decisions": 0, "broken": broken}
        return 99 if broken else 0, json.dumps(figures).encode(), ""


def test_all_seeds_are_run_once_in_batches(topology: Topology) -> None:
    cluster = FakeCluster()
    found, stopped = explore_on(cluster, topology, PROGRAMS, range(5, 2005), jobs=3)  # type: ignore[arg-type]
    assert (found.seeds, found.events, found.broken, stopped) == (2000, 4000, [], "")
    seeds: list[int] = []
    for job in cluster.jobs:
        words = job.arguments
        first, last = map(int, words[words.index("--seeds") + 1].split(".."))
        seeds += range(first, last + 1)
        assert words[:2] == ["explore", "topology/explore.toml"]
        assert words[words.index("--jobs") + 1] == "3"
        assert {"--json", "--no-shrink"} <= set(words)
        assert set(job.files) == {"topology/explore.toml", "programs/ring_buffer.py", "programs/lost_wake_up.py"}
    assert seeds == list(range(5, 2005))
    assert len(cluster.jobs) == 16
    assert cluster.cancelled


def test_the_first_failure_ends_the_rest_and_has_its_schedule(topology: Topology) -> None:
    cluster = FakeCluster((BROKEN,))
    found, _ = explore_on(cluster, topology, PROGRAMS, range(100_000))  # type: ignore[arg-type]
    (outcome,) = found.broken
    assert (outcome.seed, outcome.broken is not None) == (BROKEN, True)
    assert outcome.decisions
    assert len(cluster.jobs) <= 5
    assert cluster.cancelled


def test_a_host_with_another_outcome_is_named(topology: Topology) -> None:
    right = load(EXAMPLES / "explore.toml", {}, PROGRAMS)
    with pytest.raises(RunError, match="seed 8 breaks an invariant on alpha, and none here"):
        explore_on(FakeCluster((BROKEN,)), right, PROGRAMS, range(64))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("answer", "error", "said"),
    [
        ((2, b"", "ivsim: no such key"), UsageError, r"seeds 0\.\.63 on alpha: no such key"),
        ((3, b"", "ivsim: no room"), HostError, r"seeds 0\.\.63 on alpha: no room"),
        ((-9, b"", ""), HostError, r"seeds 0\.\.63 on alpha: exit code -9"),
        ((0, b"{", ""), RunError, "no figures"),
    ],
)
def test_a_host_that_cannot_is_named(
    topology: Topology, answer: tuple[int, bytes, str], error: type[Exception], said: str
) -> None:
    cluster = FakeCluster()
    cluster.answer = lambda first, last: answer
    with pytest.raises(error, match=said):
        explore_on(cluster, topology, PROGRAMS, range(64))  # type: ignore[arg-type]
    assert cluster.cancelled
