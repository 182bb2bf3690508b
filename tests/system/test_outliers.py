"""A run that ends at an outlier says what it was: eight kinds of stalls are injected, and the causes are counted.

A busy host delays doorbells too, before the stall that is injected or on top of it. Then the explanation has to name
the host, and does so with the processes that had the CPU.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import sim
from sim.results.summary import Outlier
from tests import stalls

LIMIT = "100ms"
TRIALS = int(os.environ.get("IVSIM_STALLS", "1"))
"""How many stalls of each kind are injected; with --full and IVSIM_STALLS=25, that is 225 in all."""
FOREVER_NS = 1 << 62
OF_THE_HOST = {"no_cpu", "stolen", "throttled", "disk"}
COMPUTES = {"garbage_collection", "page_faults", "no_cpu", "computed"}
"""Stalls that need a CPU: on a busy host they get little of it, and nearly all of the time is the host's."""
KINDS = {**{stall: stall for stall in stalls.STALLING}, "stopped_sender": "stopped", "timeline": "timeline"}
"""The kind of cause that each stall has to be told as."""

TOPOLOGY = """
title = "A stall"
[run]
duration_s = 60
warmup_s = 0.1
sample_every = 1
[memory]
size = "64K"
[machines.rx]
program = "stalls:receive"
parameters = {{ stall = "{stall}" }}
[machines.tx]
program = "stalls:send"
parameters = {{ to = "rx" }}
"""
STALLED_BY_THE_TIMELINE = """
[[timeline]]
at_s = 0.3
do = "stall"
machines = "rx"
[[timeline]]
at_s = 0.6
do = "resume"
machines = "rx"
"""


def run(stall: str, runs: Path, **options: object) -> sim.Run:
    """A run that a stall of this kind ends."""
    file = runs / f"{stall}.toml"
    file.write_text(TOPOLOGY.format(stall=stall) + (STALLED_BY_THE_TIMELINE if stall == "timeline" else ""))
    return sim.run(file, runs=runs, stop_above=LIMIT, programs=Path(stalls.__file__), **options)  # type: ignore[arg-type]


def is_right(stall: str, result: sim.Run) -> bool:
    """Whether the injected stall is named; or the outlier was another one, and the host is named for that."""
    its = result.figures.outlier
    assert its is not None
    first = its.causes[0].kind if its.causes else ""
    named = KINDS[stall] in {cause.kind for cause in its.causes}
    noted = result.figures.statistics.get("rx", {})
    begin_ns, end_ns = noted.get("begin_ns", FOREVER_NS), noted.get("end_ns", FOREVER_NS)
    if stall == "timeline":
        begin_ns = min((each["time_ns"] for each in result.actions()), default=FOREVER_NS)
    if stall in ("masked", "stopped_sender"):  # the receiver goes on at once
        end_ns = FOREVER_NS
    its_begin_ns = its.intended_ns or its.rung_ns
    overlap_ns = min(end_ns, its_begin_ns + its.took_ns) - max(begin_ns, its_begin_ns)
    if overlap_ns < its.took_ns / 10:  # it was another one
        return its.is_explained and first in OF_THE_HOST
    starved = stall in COMPUTES and first in OF_THE_HOST and its.causes[0].share >= 0.9
    return its.is_explained and (starved or named) and first in OF_THE_HOST | {KINDS[stall]}


@pytest.mark.sample(3)
@pytest.mark.parametrize("stall", KINDS)
def test_a_stall_is_told_as_what_it_is(stall: str, tmp_path: Path) -> None:
    """95 of 100 are right. One of twenty may be wrong, so a single one that is gets a second trial."""
    right: list[bool] = []
    told: list[Outlier | None] = []
    trials = TRIALS
    while len(right) < trials:
        where = tmp_path / str(len(right))
        where.mkdir()
        result = run(stall, where)
        assert result.status == "failed", result.reason
        right.append(is_right(stall, result))
        told.append(result.figures.outlier)
        if not right[-1]:
            print(stall, told[-1])
        if right == [False]:
            trials += 1
    print(f"{stall}: {sum(right)} of {len(right)} are right")
    wrong = [outlier for fine, outlier in zip(right, told, strict=True) if not fine]
    assert len(wrong) <= max(1, trials // 20), wrong
