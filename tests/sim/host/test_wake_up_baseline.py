"""The wake-up baseline: two bare processes, and neither is left. Its figures are the host's, so none is asserted."""

from __future__ import annotations

import os
import sys

import pytest

from nodes.errors import HostError
from sim.host import wake_up_baseline
from sim.host.wake_up_baseline import baseline_if_any, clock_cost_ns, measure_baseline


def test_the_baseline_is_measured_and_the_partner_gone():
    (its,) = baseline_if_any()
    assert 0 < its.p50_ns <= its.p99_ns
    assert 0 < its.count <= 2 * (wake_up_baseline.ROUNDS_MAX - wake_up_baseline.WARM_UP)
    assert its.clock_ns > 0
    assert f"{len(os.sched_getaffinity(0))} CPUs" in its.placement


def test_a_partner_that_cannot_start_or_dies_is_said(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    with pytest.raises(HostError, match="no partner"):
        measure_baseline()
    assert baseline_if_any() == []
    monkeypatch.setattr(sys, "executable", "/bin/true")
    with pytest.raises(HostError, match=r"the partner ended \(0\)"):
        measure_baseline()


def test_too_short_a_measurement_is_refused(monkeypatch):
    monkeypatch.setattr(wake_up_baseline, "ENOUGH_NS", 0)
    with pytest.raises(HostError, match="0 rounds"):
        measure_baseline()


def test_a_look_at_the_clock_costs_something():
    assert clock_cost_ns() > 0
