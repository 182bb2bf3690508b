"""A kernel trace as evidence: what its lines say, how a process spent a span, and who ran meanwhile."""

from __future__ import annotations

from pathlib import Path

import pytest

from sim.host.kernel_trace import KernelEvent, KernelTrace, parse_trace
from sim.host.process_looks import ProcessLook
from sim.results.analysis.outlier.causes import causes
from sim.results.analysis.outlier.evidence import Evidence, LatencyPart, MachineEvidence
from sim.results.analysis.outlier.kernel_events import state_spans, traced_use, who_ran, with_trace
from sim.results.store.schemas import read_kernel_events, write_kernel_events

MS = 1_000_000
RX, HOG, IDLE = 10, 20, 0
TEXT = """\
# tracer: nop
#           TASK-PID     CPU#  |||||  TIMESTAMP  FUNCTION
            bash-20491   [001] d..2. 36319.771048: sched_switch: prev_comm=bash prev_pid=20491 prev_prio=120 prev_state=R+ ==> next_comm=a b pid=3 next_pid=20517 next_prio=-1
   kworker/0:1-H-15      [000] dNs4. 36319.773161: sched_wakeup: comm=rcu preempt pid=16 prio=120 target_cpu=001
          <idle>-0       [000] d.h1. 36319.800000: irq_handler_entry: irq=24 name=virtio0-input
          <idle>-0       [000] d.h1. 36319.800010: irq_handler_exit: irq=24 ret=handled
          <idle>-0       [000] ..s1. 36319.800020: softirq_entry: vec=1 [action=TIMER]
          <idle>-0       [000] ..s1. 36319.800030: softirq_exit: vec=1 [action=TIMER]
CPU:1 [LOST 7 EVENTS]
"""  # noqa: E501


def switch(at_ms: float, pid: int, state: str, next_pid: int, cpu: int = 1) -> KernelEvent:
    return KernelEvent(round(at_ms * MS), cpu, "switch", pid, f"p{pid}", state, next_pid, f"p{next_pid}")


def wakeup(at_ms: float, pid: int, cpu: int = 1) -> KernelEvent:
    return KernelEvent(round(at_ms * MS), cpu, "wakeup", HOG, "p20", "", pid, f"p{pid}")


PREEMPTED = [
    switch(1, HOG, "R", IDLE, cpu=0),
    switch(2, RX, "S", HOG),
    wakeup(10, RX),
    switch(40, HOG, "R", RX),
    switch(50, RX, "R", HOG),
    switch(60, HOG, "S", RX),
    switch(70, RX, "T", IDLE),
]


def test_the_lines_of_a_trace() -> None:
    at = 36_319_000_000_000
    assert list(parse_trace(iter(TEXT.splitlines(keepends=True)))) == [
        (at + 771_048_000, 1, "switch", 20491, "bash", "R", 20517, "a b pid=3"),
        (at + 773_161_000, 1, "wakeup", 15, "kworker/0:1-H", "", 16, "rcu preempt"),
        (at + 800_000_000, 0, "irq", 0, "<idle>", "", 0, "virtio0-input (24)"),
        (at + 800_010_000, 0, "irq_end", 0, "<idle>", "", 0, ""),
        (at + 800_020_000, 0, "softirq", 0, "<idle>", "", 0, "TIMER"),
        (at + 800_030_000, 0, "softirq_end", 0, "<idle>", "", 0, ""),
    ]


def test_what_a_process_did_and_who_ran_meanwhile() -> None:
    found = [
        (span.begin_ns // MS, span.end_ns // MS, span.what) for span in state_spans(PREEMPTED, RX, 5 * MS, 100 * MS)
    ]
    assert found == [
        (5, 10, "idle"),
        (10, 40, "waited"),
        (40, 50, "ran"),
        (50, 60, "waited"),
        (60, 70, "ran"),
        (70, 100, "stopped"),
    ]
    use = traced_use(PREEMPTED, RX, [], (5 * MS, 100 * MS), in_handler=False)
    assert use is not None
    assert (use.waited, use.ran, use.stopped, use.idle, use.preempted) == (40 * MS, 20 * MS, 30 * MS, 5 * MS, 1)
    assert who_ran(PREEMPTED, RX, 5 * MS, 100 * MS) == [(HOG, "p20", 1, 40 * MS, True)]


def test_what_began_before_the_trace_is_not_known() -> None:
    assert traced_use(PREEMPTED, RX, [], (0, 100 * MS), in_handler=False) is None
    assert traced_use(PREEMPTED, 99, [], (5 * MS, 100 * MS), in_handler=False) is None


@pytest.mark.parametrize(("in_handler", "blocked_in", "what"), [(True, "", "slept"), (False, "", "idle")])
def test_a_sleep_is_the_programs_where_it_handles_an_interrupt(in_handler: bool, blocked_in: str, what: str) -> None:
    events = [switch(1, HOG, "S", IDLE, cpu=0), switch(2, RX, "S", IDLE), wakeup(90, RX)]
    use = traced_use(events, RX, [], (2 * MS, 90 * MS), in_handler=in_handler)
    assert getattr(use, what) == 88 * MS
    seen = ProcessLook(50 * MS, "S", 1, 0, 0, 0, 0, 0, 0, "hrtimer_nanosleep")
    use = traced_use(events, RX, [seen], (2 * MS, 90 * MS), in_handler=in_handler)
    assert use is not None
    assert (use.slept, use.blocked_in) == (88 * MS, {"hrtimer_nanosleep": 1})
    waits = traced_use(events, RX, [seen._replace(blocked_in="ep_poll")], (2 * MS, 90 * MS), in_handler=in_handler)
    assert waits is not None
    assert waits.idle == 88 * MS


def test_page_faults_are_those_between_the_looks_around() -> None:
    """A doorbell that is not handled yet ends now, and the latest look was a moment ago."""
    looks = [ProcessLook(at * MS, "R", 1, 0, 0, 0, faults, 0, 0, "") for at, faults in ((4, 10), (20, 30), (99, 900))]
    use = traced_use(PREEMPTED, RX, looks, (5 * MS, 100 * MS), in_handler=True)
    assert use is not None
    assert use.faults == 890


def test_causes_take_the_trace_before_looks() -> None:
    part = LatencyPart("delivery", "rx", 10 * MS, 40 * MS)
    evidence = Evidence(parts=[part], machines={"rx": MachineEvidence(pid=RX)})
    (cause,) = causes(*with_trace(evidence, PREEMPTED))
    assert (cause.kind, cause.share) == ("no_cpu", 1.0)
    assert "there ran p20 (20) 30 ms" in cause.text
    assert with_trace(evidence, []) == (evidence, {})


def test_events_are_kept_in_a_table(tmp_path: Path) -> None:
    assert read_kernel_events(tmp_path) == []
    write_kernel_events(tmp_path, PREEMPTED)
    assert read_kernel_events(tmp_path) == PREEMPTED


def test_a_host_without_tracefs_says_so(tmp_path: Path) -> None:
    assert KernelTrace.begin((tmp_path,))[1].startswith("none: tracefs is not mounted")
    (tmp_path / "instances").mkdir()
    trace, why = KernelTrace.begin((tmp_path,))  # a directory is no tracefs: it has no events to enable
    assert trace is None
    assert why.startswith("none: ")


def test_a_trace_of_this_host() -> None:
    """Where tracefs is mounted and writable; nothing of it is left."""
    trace, why = KernelTrace.begin()
    if trace is None:
        pytest.skip(why)
    try:
        trace.freeze()
        assert all(event.kind in ("switch", "wakeup") or "irq" in event.kind for event in trace.read(0))
    finally:
        trace.close()
    assert not trace._place.exists()
