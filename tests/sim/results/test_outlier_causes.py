"""What an outlier was, from evidence: each kind of cause, and nothing where nothing speaks for it."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.host.process_looks import CpuLook, OtherProcess, ProcessLook
from sim.results.analysis.outlier.causes import KINDS, causes, is_explained
from sim.results.analysis.outlier.evidence import ActionSpan, Evidence, LatencyPart, MachineEvidence
from sim.results.analysis.outlier.time_use import time_use

MS = 1_000_000
EVERY_NS = 10 * MS
SPAN = LatencyPart("handling", "rx", 100 * MS, 200 * MS)


def look(at_ms: float, state: str = "S", blocked_in: str = "ep_poll", **counts: Any) -> ProcessLook:
    """A look at a process that sleeps in epoll on CPU 1, and what else there is."""
    nothing = ("ran_ns", "waited_ns", "preempted", "faults", "major_faults", "memory_bytes")
    values: dict[str, Any] = {"cpu": 1, **dict.fromkeys(nothing, 0)}
    return ProcessLook(
        time_ns=round(at_ms * MS), state=state, blocked_in=blocked_in if state in "SD" else "", **values | counts
    )


def looks(state: str, blocked_in: str = "", **per_look: int) -> list[ProcessLook]:
    """A look every 10 ms from 0 to 300 ms: idle, but from 100 to 200 ms as given; counts grow only then."""
    found = []
    for number in range(31):
        grown = {name: step * min(10, max(0, number - 10)) for name, step in per_look.items()}
        its = (state, blocked_in) if 10 <= number < 20 else ("S", "ep_poll")
        found.append(look(10 * number, *its, **grown))
    return found


def of(its: list[ProcessLook], part: LatencyPart = SPAN, **more: Any) -> list[tuple[str, float]]:
    """The causes of an outlier: kind and share."""
    outer = {name: more.pop(name) for name in ("actions", "cpus", "others", "fault_ns") if name in more}
    evidence = Evidence(parts=[part], machines={"rx": MachineEvidence(looks=its, **more)}, **outer)
    # What is written is what is read.
    again = msgspec.json.decode(msgspec.json.encode(evidence), type=Evidence)
    assert causes(again) == causes(evidence)
    return [(cause.kind, cause.share) for cause in causes(evidence)]


def test_a_process_that_is_stopped() -> None:
    assert of(looks("T")) == [("stopped", 1.0)]


def test_a_process_that_sleeps_in_its_program() -> None:
    assert of(looks("S", "hrtimer_nanosleep")) == [("slept", 1.0)]


def test_a_process_that_waits_for_a_disk() -> None:
    assert of(looks("D", "folio_wait_bit")) == [("disk", 1.0)]


def test_a_process_that_computes() -> None:
    assert of(looks("R", ran_ns=EVERY_NS)) == [("computed", 1.0)]


def test_a_process_that_waits_for_a_cpu_and_who_had_it() -> None:
    others = [OtherProcess(7, "busy", 1, 95 * MS), OtherProcess(8, "elsewhere", 0, 99 * MS)]
    evidence = Evidence(
        parts=[SPAN], machines={"rx": MachineEvidence(looks=looks("R", waited_ns=EVERY_NS))}, others=others
    )
    (cause,) = causes(evidence)
    assert (cause.kind, cause.share) == ("no_cpu", 1.0)
    assert "busy (7) up to 95 ms" in cause.text, "looks are rare: it may have run before"
    assert "elsewhere" not in cause.text


def test_a_wait_that_the_kernel_counts_when_it_is_over() -> None:
    its = looks("R")
    its = [each._replace(waited_ns=100 * MS) if each.time_ns >= 200 * MS else each for each in its]
    assert of(its) == [("no_cpu", 1.0)]


def test_a_wait_that_is_not_over() -> None:
    its = [each for each in looks("R") if each.time_ns <= 190 * MS]
    assert of(its, LatencyPart("handling", "rx", 100 * MS, 190 * MS)) == [("no_cpu", 1.0)]


def test_a_garbage_collection_is_no_computation() -> None:
    its = looks("R", ran_ns=EVERY_NS)
    found = of(its, collections=[(110 * MS, 180 * MS), (500 * MS, 600 * MS)])
    assert found == [("garbage_collection", 0.7), ("computed", 0.3)]
    assert of(its, collections=[(120 * MS, 0)])[0] == ("garbage_collection", 0.8)


def test_page_faults_are_no_computation() -> None:
    its = looks("R", ran_ns=EVERY_NS, faults=8000)
    assert of(its, fault_ns=1000.0) == [("page_faults", 0.8), ("computed", 0.2)]
    huge = looks("R", ran_ns=EVERY_NS, faults=16, memory_bytes=16 * 512 * 4096)
    assert of(huge, fault_ns=1000.0)[0] == ("page_faults", 0.8192)


def test_a_quota_is_told_before_the_wait_that_it_makes() -> None:
    its = looks("R", waited_ns=EVERY_NS)
    assert of(its, throttled=(2, 90 * MS)) == [("throttled", 0.9), ("no_cpu", 0.1)]


def test_time_that_the_hypervisor_took() -> None:
    """The process is ready and neither runs nor waits for its turn, and the CPU has lost as much."""
    its = [each._replace(ran_ns=each.ran_ns // 5) for each in looks("R", ran_ns=EVERY_NS)]
    cpus = [
        CpuLook(at * MS, cpu, 0, 0, 0, 0, 0, 80 * MS if at >= 200 and cpu else 0) for at in (90, 210) for cpu in (0, 1)
    ]
    assert of(its, cpus=cpus)[0] == ("stolen", 0.8)
    assert "stolen" not in dict(of(its, cpus=[its._replace(steal_ns=0) for its in cpus]))


def test_an_action_of_the_timeline_is_the_reason_for_what_it_does() -> None:
    action = ActionSpan("rx", "stall", 100 * MS, 190 * MS, "stall of rx by the timeline (line 3)")
    assert of(looks("T"), actions=[action]) == [("timeline", 0.9), ("stopped", 0.1)]
    assert of(looks("T"), actions=[msgspec.structs.replace(action, machine="tx")]) == [("stopped", 1.0)]


def test_a_vector_that_is_masked() -> None:
    assert of(looks("S", "ep_poll"), masked=3) == [("masked", 1.0)]
    assert of(looks("S", "ep_poll"), dropped=3) == [("dropped", 1.0)]


def test_a_handler_that_goes_on_is_not_masked() -> None:
    """Other vectors may be masked meanwhile."""
    its = [each for each in looks("S", "hrtimer_nanosleep") if each.time_ns < 200 * MS]
    part = LatencyPart("handling", "rx", 100 * MS, 190 * MS)
    assert of(its, part, masked=3, drains=[(100 * MS, 0)]) == [("slept", 1.0)]


def test_a_counter_that_is_full() -> None:
    part = LatencyPart("delivery", "rx", 100 * MS, 200 * MS)
    assert of(looks("S", "ep_poll"), part, refused=9) == [("full_counter", 1.0)]


def test_interrupts_before_this_one() -> None:
    part = LatencyPart("delivery", "rx", 100 * MS, 200 * MS)
    drains = [((100 + number) * MS, (101 + number) * MS) for number in range(90)]
    assert of(looks("R", ran_ns=EVERY_NS), part, drains=drains) == [("backlog", 1.0)]


def test_without_a_process_drains_tell_of_handlers() -> None:
    """As under virtual time."""
    assert of([]) == [("computed", 1.0)]
    part = LatencyPart("delivery", "rx", 100 * MS, 200 * MS)
    assert of([], part, drains=[(90 * MS, 160 * MS)]) == [("backlog", 0.6)]


def test_nothing_is_guessed() -> None:
    """The process slept where it waits for doorbells, and there is nothing else to see."""
    assert of(looks("S", "ep_poll")) == []
    evidence = Evidence(parts=[SPAN], machines={"rx": MachineEvidence(looks=looks("S", "ep_poll"))})
    assert not is_explained(causes(evidence))
    assert of([look(0), look(300)]) == []


@pytest.mark.parametrize(("begin_ms", "end_ms"), [(103, 127), (97, 131), (101, 108), (0, 300)])
def test_a_span_between_looks_is_divided_by_their_states(begin_ms: int, end_ms: int) -> None:
    use = time_use(looks("T"), begin_ms * MS, end_ms * MS)
    inner = max(0, min(end_ms, 200) - max(begin_ms, 100)) * MS
    assert abs(use.stopped - inner) <= 2 * EVERY_NS
    assert use.stopped + use.idle + use.unknown == (end_ms - begin_ms) * MS


@given(
    st.lists(
        st.tuples(st.sampled_from("RSDT"), st.integers(0, 30 * MS), st.integers(0, 30 * MS), st.integers(0, 30 * MS)),
        min_size=1,
        max_size=20,
    ),
    st.integers(0, 200 * MS),
    st.integers(1, 200 * MS),
)
def test_the_parts_of_a_span_are_the_span(rows: list[tuple[str, int, int, int]], begin_ns: int, span_ns: int) -> None:
    time_ns = ran_ns = waited_ns = 0
    its = []
    for state, passed, ran, waited in rows:
        time_ns, ran_ns, waited_ns = time_ns + passed + 1, ran_ns + ran, waited_ns + waited
        its.append(look(time_ns / MS, state, ran_ns=ran_ns, waited_ns=waited_ns)._replace(time_ns=time_ns))
    use = time_use(its, begin_ns, begin_ns + span_ns)
    parts = [use.ran, use.waited, use.stopped, use.disk, use.slept, use.idle, use.unknown]
    assert min(parts) >= 0
    assert sum(parts) == pytest.approx(span_ns)
    part = LatencyPart("handling", "rx", begin_ns, begin_ns + span_ns)
    found = causes(Evidence(parts=[part], machines={"rx": MachineEvidence(looks=its)}))
    assert sum(cause.share for cause in found) <= 1.001
    assert {cause.kind for cause in found} <= KINDS.keys()
