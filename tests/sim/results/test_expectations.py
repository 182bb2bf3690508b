"""Expectations: every figure of every scope from runs with known stamps; what is unknown; what is broken meanwhile."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import msgspec
import pytest
from rich.console import Console

from nodes.errors import UsageError
from sim.recording import Recording, RecordingLayout, header
from sim.recording.header import COUNTER_AT
from sim.recording.layout import VECTOR_WORDS
from sim.results import Run, RunDirectory
from sim.results.conditions import Moment, broken, live
from sim.results.counts import LiveRecording, Scopes, counts_so_far
from sim.results.expectations import BROKEN, evaluate, measure, silent_loads
from sim.results.store import files
from sim.results.store.manifest import MachineRow
from sim.results.summary import ExpectationVerdict, GroupFigures, Summary
from sim.views.junit import junit
from sim.views.terminal import render_expectations
from tests.synthetic import PENDING, finish, pair, record, topology, usage
from topologies import Condition, Expectation, Machines, Topology
from topologies.metrics import METRICS

GROUPS = {"ping": (1, 2), "echo": (1, 2)}


def expecting(*texts: str, abort: bool = False, groups: dict[str, tuple[int, int]] = GROUPS) -> Topology:
    """A topology that expects such as "rung == 3 of echo-0"."""
    made = topology(groups)
    expectations = []
    for text in texts:
        rest, _, of = text.partition(" of ")
        metric, comparison, bound = rest.split()
        that = Condition(metric=metric, comparison=comparison, bound=float(bound), of=of)  # type: ignore[arg-type]
        expectations.append(Expectation(that=that, abort=abort))
    return msgspec.structs.replace(made, expectations=tuple(expectations))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Tests read it, and none changes it."""
    directory = pair(tmp_path_factory.mktemp("finished"))
    directory.event("ready", ready_s=1.0)
    directory.event("statistics", machine="ping-0", values={"retries": 2, "best": 0.5})
    directory.event("statistics", machine="ping-0", values={"retries": 9, "word": "no"})  # no program sends that
    directory.event("statistics", machine="echo-0", values={"retries": 3})
    directory.resources([usage(0, "ping-0", 0.5), usage(0, "ping-0", 1.5), usage(1, "echo-0", 1.5, uss_bytes=5 << 20)])
    return finish(directory, PENDING)


def judge(run: Run, text: str) -> ExpectationVerdict:
    (verdict,) = evaluate(expecting(text), run)
    return verdict


@pytest.mark.parametrize(
    ("text", "got"),
    [
        ("rung == 3", 3),
        ("delivered == 2", 2),
        ("interrupts == 2", 2),
        ("pending == 1", 1),
        ("refused == 0", 0),
        ("settled == 0", 0),
        ("lost == 0", 0),
        ("died == 0", 0),
        ("up == 2", 2),
        ("coalescing == 1", 1),
        ("rate_hz == 1", 1),  # three in three seconds
        ("duration_s == 2", 2),
        ("elapsed_s == 3", 3),
        ("rung == 3 of echo", 3),
        ("rung == 0 of ping", 0),
        ("rung == 3 of echo-0", 3),
        ("up == 1 of echo", 1),
        ("pending == 1 of echo", 1),
        ("rung == 3 of ping -> echo", 3),
        ("rung == 2 of echo-0:0", 2),
        ("pending == 1 of echo:1", 1),
        ("coalescing == 1 of echo:0", 1),
        ("lag.max_ns == 300 of echo:1", 300),
        ("missed == 0", 0),
        ("unrung == 0 of ping", 0),
        ("dropped == 0 of echo", 0),
        ("sent == 3 of ping", 3),
        ("samples == 3", 3),
        ("drained.max == 1", 1),
        ("machines == 1 of echo", 1),
        ("doorbells_per_s == 1", 1),
        ("rung == 2 of ping->echo-0:0", 2),
        ("delivered == 2 of ping -> echo", 2),
        ("pending == 1 of ping-0 -> echo-0:1", 1),
        ("coalescing == 1 of ping -> echo:0", 1),
        ("rung == 0 of echo -> ping", 0),
        ("delivery.max_ns == 7000", 7000),
        ("delivery.p50_us == 7", 7),
        ("total.mean_us == 9", 9),
        ("p50_us == 9", 9),
        ("handling.max_us == 2 of echo", 2),
        ("handling.max_ms == 0.002 of ping -> echo:0", 0.002),
        ("lag.max_ns == 300 of ping -> echo:1", 300),
        ("uss_mib == 8", 8),
        ("uss_mib == 3 of ping", 3),
        ("rss_mib == 9 of echo-0", 9),
        ("cpu_s == 0.75 of ping", 0.75),
        ("cpu_s == 1.5", 1.5),
        ("statistics.retries == 5", 5),
        ("statistics.retries == 3 of echo", 3),
        ("statistics.best == 0.5 of ping-0", 0.5),
    ],
)
def test_every_figure_is_what_the_run_was(finished: Run, text: str, got: float) -> None:
    verdict = judge(finished, text)
    assert verdict.got == pytest.approx(got)
    assert verdict.met, verdict


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("p99_us < 1000", "too few samples"),
        ("delivery.p50_us < 1 of ping", "no sample"),
        ("delivery.p50_us < 1 of echo -> ping", "no sample"),
        ("ready_s < 9 of echo", "whole run only"),
        ("dropped < 9 of ping -> echo", "of groups only"),
        ("host.load_max < 9", "not measured"),
        ("coalescing < 9 of ping", "no interrupt"),
        ("uss_mib < 9 of ping -> echo", "not of an edge"),
        ("statistics.best < 9 of echo", "no program"),
        ("statistics.word < 9", "no program"),
        ("bogus < 9", "no metric 'bogus'"),
        ("rung < 9 of nobody", "got 'nobody'"),
    ],
)
def test_an_unknown_metric_is_unmet_and_says_why(finished: Run, text: str, why: str) -> None:
    verdict = judge(finished, text)
    assert verdict.got is None
    assert not verdict.met
    assert why in verdict.why


def numbers_of(struct: type, prefix: str = "") -> Iterator[str]:
    """The places of all numbers of a summary."""
    for field in msgspec.structs.fields(struct):
        place = prefix + field.name
        kinds = [msgspec.inspect.type_info(field.type)]
        while kinds:
            kind = kinds.pop()
            match kind:
                case msgspec.inspect.Metadata():
                    kinds.append(kind.type)
                case msgspec.inspect.UnionType():
                    kinds += kind.types
                case msgspec.inspect.IntType() | msgspec.inspect.FloatType():
                    yield place
                case msgspec.inspect.StructType():
                    yield from numbers_of(kind.cls, f"{place}.")


def test_every_number_of_a_summary_has_a_metric_and_every_metric_its_number() -> None:
    sources = {metric.source for metric in METRICS.values() if metric.source}
    numbers = set(numbers_of(Summary))
    no_results = {"schema_version", "seed", "cpus", "start_ns", "measure_start_ns", "stop_ns", "outlier.vector"}
    no_results |= {f"outlier.{moment}_ns" for moment in ("intended", "rung", "delivered", "handled")}
    counted_by_others = {
        place for place in numbers if place.startswith(("latency_ns.", "drained.")) and "samples" in place
    }
    maxima = {place for place in numbers if place.startswith("coordinator.") and place.endswith(("_sum", "_max"))}
    assert numbers - no_results - counted_by_others - maxima <= sources
    of_groups = {f"wake_up_baseline.times_baseline.{point}" for point in ("p50", "p99")} | {"sent"}
    assert sources - numbers == of_groups
    assert set(numbers_of(GroupFigures)) - {"uss_bytes", "cpu_percent"} - counted_by_others <= {
        metric.source for metric in METRICS.values() if "groups" in metric.of
    } | {place for place in numbers if place.startswith("latency_ns.")}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("refused == 0 of ping", "no doorbell was rung"),
        ("lost == 0 of ping-0", "no doorbell was rung"),
        ("refused == 0 of echo -> ping", "no doorbell was rung"),
        ("delivered < 5 of ping:1", "no doorbell was rung"),
        ("missed == 0 of echo", "no doorbell was rung"),
        ("migrations_failed == 0", "no machine was to migrate"),
    ],
)
def test_where_nothing_was_there_to_be_judged_nothing_is_met(finished: Run, text: str, why: str) -> None:
    verdict = judge(finished, text)
    assert (verdict.got, verdict.met, verdict.why) == (0, False, f"nothing to judge: {why}")
    made = expecting(text)
    allowed = tuple(msgspec.structs.replace(each, allow_empty=True) for each in made.expectations)
    (verdict,) = evaluate(msgspec.structs.replace(made, expectations=allowed), finished)
    assert (verdict.met, verdict.why) == (True, "")


def test_a_run_in_which_no_machine_was_ready_has_no_deaths_to_judge(tmp_path: Path) -> None:
    run = finish(pair(tmp_path), PENDING)
    assert judge(run, "died == 0").why == "nothing to judge: no machine was ready"


def test_an_open_loop_that_rang_nothing_is_told(finished: Run) -> None:
    def loaded(group: str, **parameters: object) -> Topology:
        made = topology(GROUPS)
        machines = [
            msgspec.structs.replace(each, parameters=parameters) if each.group == group else each
            for each in made.machines
        ]
        return msgspec.structs.replace(made, machines=tuple(machines))

    assert silent_loads(loaded("echo", rate_hz=5.0), finished) == [
        "echo rang nothing, although its load is an open loop"
    ]
    assert silent_loads(loaded("echo", rate_hz=5.0, to=Machines((1,))), finished)
    assert not silent_loads(loaded("ping", rate_hz=5.0), finished)
    assert not silent_loads(loaded("echo", rate_hz=None), finished)


def test_a_bound_that_is_missed_is_not_met(finished: Run) -> None:
    verdict = judge(finished, "rung > 3")
    assert (verdict.got, verdict.met, verdict.expected) == (3, False, "> 3")


def test_verdicts_are_json(finished: Run) -> None:
    verdicts = evaluate(expecting("rung == 3", "p99_us < 1 of echo"), finished)
    assert msgspec.json.decode(msgspec.json.encode(verdicts), type=list[ExpectationVerdict]) == verdicts


def test_of_an_edge_that_is_not_alone_only_what_was_rung_is_known(tmp_path: Path) -> None:
    groups = {"sender": (2, 1), "receiver": (1, 1)}
    with RunDirectory.create(tmp_path, topology(groups), {}) as directory:
        record(directory, 0, vectors=[(0, 0)], edges={(2, 0): (4, 1)})
        record(directory, 1, vectors=[(0, 0)], edges={(2, 0): (2, 0)})
        record(directory, 2, vectors=[(5, 1)])
        run = finish(directory)
    wanted = ("rung == 4 of sender-0 -> receiver", "refused == 1 of sender-0 -> receiver:0")
    wanted += ("delivered == 3 of sender-0 -> receiver", "delivered == 5 of sender -> receiver")
    verdicts = evaluate(expecting(*wanted, groups=groups), run)
    assert [verdict.met for verdict in verdicts] == [True, True, False, True]
    assert "other machines rang the same vectors" in verdicts[2].why


def test_a_machine_that_died_is_named_where_its_figure_is_missing(tmp_path: Path) -> None:
    directory = pair(tmp_path)
    directory.event("ready")
    directory.event("machine_died", machine="echo-0", how="SIGKILL")
    directory.event("machine_left", machine="ping-0")
    run = finish(directory, PENDING, exits={1: "SIGKILL"}, status="degraded")
    verdicts = evaluate(expecting("uss_mib < 9 of echo", "died == 1", "up == 0", "died == 0 of ping"), run)
    assert verdicts[0].why.endswith("echo-0 died (SIGKILL)")
    assert [verdict.met for verdict in verdicts] == [False, True, True, True]


def test_a_machine_that_died_early_makes_a_sum_unknown(tmp_path: Path) -> None:
    groups = {"ping": (2, 1)}
    with RunDirectory.create(tmp_path, topology(groups), {}) as directory:
        for machine in range(2):
            record(directory, machine, vectors=[(0, 0)])
        directory.event("statistics", machine="ping-0", values={"done": 4})
        run = finish(directory, exits={1: "SIGKILL"}, status="degraded")
    verdicts = evaluate(expecting("statistics.done == 4", "statistics.done == 4 of ping-0", groups=groups), run)
    assert verdicts[0].why == "ping-1 died (SIGKILL) and left none"
    assert verdicts[1].met


def test_the_expectation_that_ended_the_run_stays_unmet(tmp_path: Path) -> None:
    directory = pair(tmp_path)
    directory.event(BROKEN, expected="pending < 5", got=7)
    run = finish(directory, PENDING)
    (verdict,) = evaluate(expecting("pending < 5", abort=True), run)
    assert (verdict.got, verdict.met, verdict.why) == (7, False, "it ended the run")
    assert judge(run, "pending < 5").met  # at its end it was met, and that one was not asked to end the run


def test_a_machine_is_one_in_all_its_incarnations_and_devices(tmp_path: Path) -> None:
    """Row 2 is machine 0's second device, row 3 machine 1's second life; manifests have further rows like that."""
    rows = {"a": (1, 1), "b": (1, 1)}
    with RunDirectory.create(tmp_path, topology(rows), {}) as directory:
        record(directory, 0, vectors=[(1, 1)], edges={(1, 0): (4, 0)})
        record(directory, 1, vectors=[(3, 2)], edges={(0, 0): (1, 0)})
        directory.event("ready")
        for kind, machine in (("machine_died", "b-0"), ("machine_joined", "b-0.2"), ("machine_left", "a-0")):
            directory.event(kind, machine=machine, how="SIGKILL")
        directory.event("statistics", machine="b-0.2", values={"done": 2})
        looks = [usage(0, "a-0", 1.0), usage(1, "b-0", 1.0), usage(3, "b-0.2", 2.0, uss_bytes=7 << 20)]
        directory.resources(looks)
        run = finish(directory, {(1, 0): 1})
    manifest = run.origin
    further = (
        MachineRow(2, "a-0.far", "a", 1, 1, 0),
        MachineRow(3, "b-0.2", "b", 1, 0, 1),
    )
    changed = msgspec.structs.replace(manifest, machines=[*manifest.machines, *further], domains=["main", "far"])
    (run.path / "manifest.json").write_bytes(msgspec.json.encode(changed))
    wanted = ("rung == 4 of b", "delivered == 3 of a -> b", "died == 1", "up == 1", "up == 1 of b", "died == 0 of a")
    wanted += ("uss_mib == 7 of b", "cpu_s == 1.5 of b", "statistics.done == 2 of b-0")
    verdicts = evaluate(expecting(*wanted, groups=rows), Run(run.path))
    assert [str(verdict) for verdict in verdicts if not verdict.met] == ["statistics.done == 2 of b-0"]
    assert verdicts[-1].why == "b-0 died (SIGKILL) and left none"  # its second life did


def test_no_expectation_reads_nothing(tmp_path: Path) -> None:
    assert evaluate(topology(GROUPS), Run(tmp_path)) == []


def test_a_damaged_run_meets_nothing_and_says_why(finished: Run, tmp_path: Path) -> None:
    path = shutil.copytree(finished.path, tmp_path / "damaged")
    (path / "summary.json").unlink()
    (path / "samples.parquet").write_bytes(b"no")
    verdicts = evaluate(expecting("rung == 3", "p50_us < 99"), Run(path))
    assert ["summary.json is missing" in verdicts[0].why, "samples.parquet is damaged" in verdicts[1].why] == [True] * 2


def test_lines_of_consoles_are_those_with_the_pattern_alone_and_in_the_sum_over_hosts(
    finished: Run, tmp_path: Path
) -> None:
    path = shutil.copytree(finished.path, tmp_path / "consoles")
    for machine, text in (("ping-0", "hello\nBUG\n"), ("echo-0", "hello\n")):
        console = files.console(path, machine)
        console.parent.mkdir(exist_ok=True)
        console.write_text(text)
    that = Condition(metric="console_lines", comparison=">=", bound=2.0, of="")
    expectation = Expectation(that=that, console="hello")
    whole = msgspec.structs.replace(topology(GROUPS), expectations=(expectation,))
    (verdict,) = evaluate(whole, Run(path))
    assert (verdict.got, verdict.met, verdict.why) == (2.0, True, "lines with 'hello'")
    assert measure(whole, Run(path), expectation) == (2.0, "")  # what a run over hosts adds up
    none = msgspec.structs.replace(
        expectation, that=msgspec.structs.replace(that, comparison="==", bound=0.0), console="no"
    )
    (verdict,) = evaluate(msgspec.structs.replace(whole, expectations=(none,)), Run(path))
    assert (verdict.got, verdict.met, verdict.why) == (0.0, True, "lines with 'no'")


def test_verdicts_are_printed_each_on_a_line(finished: Run) -> None:
    console = Console(file=io.StringIO(), width=60)
    verdicts = evaluate(expecting("rung == 3", "delivery.p50_us < 5 of echo", "p99_us < 1"), finished)
    render_expectations(verdicts, console)
    assert console.file.getvalue().splitlines() == [  # type: ignore[attr-defined]
        "expectations",
        "met    rung == 3                    got 3",
        "UNMET  delivery.p50_us < 5 of echo  got 7",
        "UNMET  p99_us < 1                   not known: too few samples for it",
    ]


# JUnit


def cases(text: str) -> dict[str, str | None]:
    root = ElementTree.fromstring(text)
    found: dict[str, str | None] = {}
    for case in root.iter("testcase"):
        failure = case.find("failure")
        found[case.attrib["name"]] = None if failure is None else failure.attrib["message"]
    assert root.attrib["tests"] == str(len(found))
    assert root.attrib["failures"] == str(sum(failure is not None for failure in found.values()))
    return found


def test_junit_has_a_case_for_each_expectation_and_two_for_the_run(finished: Run) -> None:
    verdicts = evaluate(expecting("rung == 3", "delivery.p50_us < 5 of ping -> echo"), finished)
    assert cases(junit(verdicts, finished)) == {
        "the run finished": None,
        "the counts balance": None,
        "rung == 3": None,
        "delivery.p50_us < 5 of ping -> echo": "expected delivery.p50_us < 5, got 7",
    }


def test_junit_of_a_run_that_failed_and_has_a_title_no_xml_could_hold(tmp_path: Path) -> None:
    directory = pair(tmp_path, title="a\x00<b>\x1b[31m & \uffff")
    run = finish(directory, {(1, 1): 3}, status="failed")
    found = cases(junit([], run))
    assert found["the run finished"] is not None
    assert found["the counts balance"] is not None
    assert "rung 3" in found["the counts balance"]


def test_junit_counts_an_expectation_that_ended_the_run_once(tmp_path: Path) -> None:
    directory = pair(tmp_path)
    directory.event(BROKEN, expected="pending < 5", got=7)
    run = finish(directory, PENDING, status="failed")
    verdicts = evaluate(expecting("pending < 5", "rung == 3", abort=True), run)
    root = ElementTree.fromstring(junit(verdicts, run))
    assert (root.attrib["tests"], root.attrib["failures"], root.attrib["skipped"]) == ("4", "1", "1")
    assert [case.attrib["name"] for case in root.iter("testcase") if case.find("skipped") is not None] == [
        "the run finished"
    ]
    assert "it ended the run" in str(cases(junit(verdicts, run))["pending < 5"])
    # Without the verdict that ended it, the run has failed all the same.
    assert cases(junit([], run))["the run finished"] is not None


def test_junit_of_a_damaged_run(finished: Run, tmp_path: Path) -> None:
    path = shutil.copytree(finished.path, tmp_path / "damaged")
    (path / "summary.json").unlink()
    assert "summary.json is missing" in str(cases(junit([], Run(path)))["the counts balance"])


# While the run goes on


@pytest.fixture
def recordings(tmp_path: Path) -> Iterator[list[LiveRecording]]:
    """Two machines with two vectors; 0 rang 1 seven times (one refused), and twice at no peer."""
    made = []
    for machine, (edges, arrived) in enumerate([({(9, 0): (5, 0), (9, 1): (2, 1)}, [0, 0, 0, 0]), ({}, [3, 2, 1, 1])]):
        sizes = RecordingLayout(2, 4, 0, 0)
        recording = Recording.create(tmp_path / f"{machine}.rec", sizes, machine=machine, sample_every=1)
        words, layout = recording.words, recording.layout
        for place, ((peer, vector), counts) in enumerate(edges.items()):
            for offset, word in enumerate((peer << 16 | vector, *counts)):
                words[layout.edges_at + 3 * place + offset] = word
        for vector in range(layout.vectors):
            for offset, word in enumerate(arrived[2 * vector :][:2]):
                words[layout.vectors_at + VECTOR_WORDS * vector + offset] = word
        words[header.EDGES_USED] = len(edges)
        words[COUNTER_AT["rung_nowhere"]] = 2 if machine == 0 else 0
        made.append(LiveRecording(machine, recording, {8: 0, 9: 1}))
    yield made
    for each in made:
        with each.recording:
            pass


def moment(recordings: list[LiveRecording], **changed: Any) -> Moment:
    scopes = Scopes([("a-0", "a"), ("b-0", "b")])
    told: dict[str, Any] = {"up": frozenset({0, 1}), "died": (), "migrations": {"migrated": (1, 1)}, "elapsed_s": 1.5}
    return Moment(scopes, counts_so_far(recordings), **(told | changed))


def condition(text: str) -> Condition:
    return expecting(text).expectations[0].that


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("rung == 0", 9),
        ("refused == 0", 3),
        ("rung == 0 of b", 7),
        ("rung == 0 of a", 0),
        ("rung == 0 of a-0 -> b-0:1", 2),
        ("delivered == 0 of a -> b:0", 3),
        ("delivered == 0", 4),
        ("migrated == 0", 2),
        ("migrated == 0 of a", 0),
        ("interrupts == 0", 3),
        ("pending == 0 of b", 2),
        ("coalescing == 0 of b", 4 / 3),
        ("up == 0", 2),
        ("up == 0 of b", 1),
        ("died == 9 of b", 0),
        ("elapsed_s == 0", 1.5),
    ],
)
def test_counts_can_be_read_while_they_are_written(recordings: list[LiveRecording], text: str, value: float) -> None:
    now, wanted = moment(recordings), condition(text)
    assert now.value(wanted) == pytest.approx(value)
    assert live(wanted, now) == wanted.holds(value)


def test_an_unknown_metric_neither_holds_nor_breaks(recordings: list[LiveRecording]) -> None:
    wanted = condition("coalescing < 4 of a")
    assert not live(wanted, moment(recordings))
    assert not broken(wanted, moment(recordings))


def test_latencies_are_for_the_end(recordings: list[LiveRecording]) -> None:
    with pytest.raises(UsageError, match="end of a run"):
        live(condition("p99_us < 4"), moment(recordings))


@pytest.mark.parametrize(
    ("text", "for_good"),
    [
        ("rung < 9", True),
        ("rung < 10", False),
        ("delivered > 1000", False),  # it may still come
        ("rung == 10", False),
        ("rung == 8", True),
        ("rung != 9", False),
        ("pending < 2 of b", True),
        ("up >= 3", True),
        ("up >= 2", False),
    ],
)
def test_broken_is_what_cannot_be_met_any_more(recordings: list[LiveRecording], text: str, for_good: bool) -> None:
    assert broken(condition(text), moment(recordings)) is for_good


def test_a_look_holds_nothing_of_a_recording(recordings: list[LiveRecording]) -> None:
    now = moment(recordings)
    for each in recordings:
        each.recording.words[COUNTER_AT["rung_nowhere"]] = 50
    assert now.value(condition("rung == 9")) == 9


def test_machines_cannot_be_confused_with_edges() -> None:
    with pytest.raises(UsageError, match="got 'x'"):
        Scopes([("a-0", "a")])["a -> x"]
    assert Scopes([("a-0", "a")])["a -> a-0:7"].vector == 7
