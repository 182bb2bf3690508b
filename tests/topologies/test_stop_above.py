"""[run] stop_above: which limits there are, and how a wrong one is told."""

from __future__ import annotations

import pytest

from nodes.errors import UsageError
from topologies import TopologyError, loads
from topologies.stop_above import StopAbove, parse_stop_above

MINIMAL = '[machines.a]\nprogram = "idle"\n'


@pytest.mark.parametrize(
    ("text", "latency", "point", "limit_ns"),
    [
        ("5ms", "total", "max", 5_000_000),
        ("p99_9=500us", "total", "p99_9", 500_000),
        ("p99.9=0.5ms", "total", "p99_9", 500_000),
        ("delivery.max=2s", "delivery", "max", 2_000_000_000),
        ("lag.p50=100ns", "lag", "p50", 100),
    ],
)
def test_a_limit_has_a_latency_a_percentile_and_a_time(text: str, latency: str, point: str, limit_ns: int) -> None:
    assert parse_stop_above(text) == StopAbove(latency, point, limit_ns)
    assert loads(f'{MINIMAL}[run]\nstop_above = "{text}"\n').run.stop_above == text


def test_without_a_limit_a_run_does_not_stop() -> None:
    assert parse_stop_above(loads(MINIMAL).run.stop_above) is None


@pytest.mark.parametrize(
    "text", ["5", "5 ms", "p98=5ms", "delivery=5ms", "latency.p99=5ms", "p99_9<5ms", "-5ms", "5ms\n"]
)
def test_what_is_no_limit_is_told_with_its_line(text: str) -> None:
    with pytest.raises(UsageError):
        parse_stop_above(text)
    quoted = text.replace("\n", "\\n")
    with pytest.raises(TopologyError) as caught:
        loads(f'{MINIMAL}[run]\nstop_above = "{quoted}"\n')
    (problem,) = caught.value.problems
    assert (problem.line, problem.key) == (4, "run.stop_above")
    assert problem.expected.startswith('a limit such as "5ms"')


def test_a_run_without_samples_has_none_to_hold_against_a_limit() -> None:
    with pytest.raises(TopologyError) as caught:
        loads(f'{MINIMAL}[run]\nsample_every = 0\nstop_above = "5ms"\n')
    (problem,) = caught.value.problems
    assert (problem.line, problem.key) == (5, "run.stop_above")
    assert problem.expected.startswith("no stop_above with sample_every = 0")
