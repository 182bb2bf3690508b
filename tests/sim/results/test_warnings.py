"""What a reader of the figures has to know, said in words, and only when it is so."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from sim.host.wake_up_baseline import WakeUpBaseline
from sim.results.analysis.warnings import warnings
from sim.results.summary import BaselineFigures, Summary
from tests.synthetic import PENDING, finish, pair, usage

BUSY = {"cpu_user_s": 0.9, "cpu_system_s": 0.0, "switches_involuntary": 50}
BASELINE = BaselineFigures(p50_ns=4000, p99_ns=5000, count=9, placement="here", clock_ns=40.0)
HOST = {"steal_s": 0.0, "load_1": 0.5, "pressure_cpu_s": 0.0, "sampling_s": 0.0, "cpu_system_s": 0.0}


@pytest.fixture
def quiet(tmp_path) -> Summary:
    """Nothing to say about it but that one sample was never delivered."""
    directory = pair(tmp_path)
    for second in (0, 2):
        directory.resources([usage(0, "ping-0", second), usage(1, "echo-0", second), usage(-1, "coordinator", second)])
        directory.resources([usage(-2, "host", second, **HOST, cpu_user_s=1.5 * second)])
    run = finish(directory, PENDING, baselines=[])
    return msgspec.structs.replace(run.figures, unmatched=0, clock_source="tsc", cpus=4)


def changed(figures: Summary, **fields: Any) -> list[str]:
    """The warnings of a summary with other fields; ``host_...`` are those of its host."""
    host = {name.removeprefix("host_"): value for name, value in fields.items() if name.startswith("host_")}
    rest = {name: value for name, value in fields.items() if not name.startswith("host_")}
    return list(warnings(msgspec.structs.replace(figures, **rest, host=msgspec.structs.replace(figures.host, **host))))


def test_a_quiet_run_has_none(quiet):
    assert list(warnings(quiet)) == []


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"deaths": {"echo-0": "SIGKILL"}}, "echo-0 died: SIGKILL"),
        ({"settled": 3}, "3 doorbells are settled"),
        ({"pending_derived": True}, "pending is what was left over"),
        ({"samples_refused": 5}, "recordings were full: 5 samples"),
        ({"drains_refused": 6}, "and 6 drains have no stamps"),
        (
            {"unmatched": 1},
            "1 of 3 samples are without a known delivery: only lag, if any, is known of them",
        ),
        ({"overfull_drains": 2}, "2 of 2 drains got more samples than doorbells"),
        ({"pba_pending": 3}, "3 came while their vector was masked: however many, a vector keeps one bit of them"),
        ({"dropped": 2}, "the device lost 2"),
        (
            {"missed": 905, "missed_oldest_ns": 1_498_000_000},
            "905 doorbells were due and never rung, the oldest for 1.50 s",
        ),
        (
            {"wake_up_baseline": BASELINE, "short_deliveries": 1},
            "deliveries took less than a quarter of a bare wake-up's 4.00 us",
        ),
        ({"clock_source": "hpet"}, "the clock is hpet, a slow one"),
        ({"cpus": 1}, "oversubscribed: 2 machines kept 1.0 of 1 CPUs busy"),
        ({"host_steal_percent": 6.25}, "the hypervisor gave 6.2 % of a CPU to others"),
        ({"host_cpu_percent": 300.0}, "other processes used 150 % of a CPU"),
        ({"host_sampling_percent": 7.0}, "looking at the processes took 7.0 % of a CPU"),
    ],
)
def test_each_thing_is_said_once(quiet, fields, said):
    found = changed(quiet, **fields)
    assert [said in warning for warning in found] == [True]


def with_samples(figures: Summary, samples: int, lag_max_ns: int) -> Summary:
    its = figures.latency_ns
    lag = msgspec.structs.replace(its.lag, max=lag_max_ns, samples=samples)
    delivery = msgspec.structs.replace(its.delivery, samples=samples)
    return msgspec.structs.replace(figures, latency_ns=msgspec.structs.replace(its, lag=lag, delivery=delivery))


@pytest.mark.parametrize(
    ("missed", "oldest_ns", "lag_max_ns", "is_said"),
    [
        (1000, 999_999, 0, False),  # the end of a run leaves a few
        (1000, 1_000_000, 9_000_000, False),  # one in a thousand and one, and others were as late
        (1000, 9_000_001, 9_000_000, True),  # no sender was that late
        (1002, 1_000_000, 9_000_000, True),
        (0, 0, 0, False),
    ],
)
def test_doorbells_that_were_not_rung_are_said_when_the_figures_would_be_others(
    quiet, missed, oldest_ns, lag_max_ns, is_said
):
    figures = with_samples(quiet, 1000, lag_max_ns)
    found = changed(figures, rung=1_000_000, missed=missed, missed_oldest_ns=oldest_ns)
    assert ["never rung" in warning for warning in found] == [True] * is_said


@pytest.mark.parametrize(
    ("short", "baseline", "is_said"), [(10, BASELINE, False), (11, BASELINE, True), (11, None, False)]
)
def test_deliveries_without_a_wake_up_are_said_when_they_are_more_than_one_in_a_hundred(
    quiet, short, baseline, is_said
):
    found = changed(with_samples(quiet, 1000, 0), short_deliveries=short, wake_up_baseline=baseline)
    assert ["a quarter of a bare wake-up" in warning for warning in found] == [True] * is_said


@pytest.mark.parametrize(("baseline_ns", "short"), [(28_000, 0), (28_001, 1)])
def test_a_short_delivery_is_one_below_a_quarter_of_the_floor(tmp_path, baseline_ns, short):
    # One delivery is measured, of 7 us; the other one is of the warm-up.
    run = finish(pair(tmp_path), PENDING, baselines=[WakeUpBaseline(baseline_ns, 40_000, 1900, "here", 50.0)])
    assert run.figures.short_deliveries == short
    assert ["1 of 1 deliveries" in its for its in run.warnings if "bare wake-up" in its] == [True] * short


def test_preemptions_are_said_when_interrupts_do_not_explain_them(quiet):
    groups = {
        name: msgspec.structs.replace(
            group, resources=msgspec.structs.replace(group.resources, switches_involuntary_per_s=900.0)
        )
        for name, group in quiet.groups.items()
    }
    assert any("preempted 1,800 times a second" in its for its in changed(quiet, groups=groups, interrupts_per_s=100.0))
    assert changed(quiet, groups=groups, interrupts_per_s=5000.0) == []


def test_the_summary_holds_them_and_what_they_rest_on(tmp_path):
    directory = pair(tmp_path)
    for second in (0, 2):
        directory.resources([usage(0, "ping-0", second), usage(1, "echo-0", second)])
        host = {**HOST, "steal_s": 0.5 * second, "load_1": second, "pressure_cpu_s": 0.25 * second, "sampling_s": 0.0}
        directory.resources([usage(-2, "host", second, **host, cpu_user_s=1.5 * second)])
    baselines = [WakeUpBaseline(2000, 4000, 1900, "here", 50.0), WakeUpBaseline(1000, 5000, 1900, "here", 40.0)]
    run = finish(directory, PENDING, baselines=baselines)
    summary = run.summary
    assert run.warnings == summary["warnings"]
    assert any("steal time" in warning for warning in run.warnings)
    assert summary["host"] == {
        "cpu_percent": 150.0,
        "steal_percent": 50.0,
        "load_max": 2.0,
        "pressure_cpu_percent": 25.0,
        "pressure_memory_percent": None,
        "pressure_io_percent": None,
        "sampling_percent": 0.0,
        "cpus": [],
    }
    # The quieter look counts; delivery took 7 us.
    assert (summary["wake_up_baseline"]["p50_ns"], summary["wake_up_baseline"]["clock_ns"]) == (1000, 40.0)
    assert summary["wake_up_baseline"]["times_baseline"] == {"p50": 7.0}
    both = summary["resources"]
    assert (both["cpu_percent_sum"], both["private_bytes_sum"], both["pss_bytes_sum"]) == (100.0, 4 << 20, 8 << 20)
    assert both["faults_minor_per_s"] == 100.0
    # One CPU's worth for three seconds and three doorbells.
    assert summary["cpu_ns_per_doorbell"] == 1e9
