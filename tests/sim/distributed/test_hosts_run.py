"""A run over several hosts on a cluster that is not there: what runs where, its sums, and what becomes of failures."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

import sim
from nodes.errors import HostError, RunError, UsageError
from sim.distributed.job import Job, JobResult, pack, unpack
from sim.results import Run, RunDirectory
from sim.results.analysis.joint import LATENCIES_NOTE
from sim.views.html.page import page
from sim.views.perfetto import trace
from tests.two_halves import TWO_HALVES
from topologies import Topology, loads

pytest.importorskip("distributed")

from sim.distributed.dask.client import Done
from sim.distributed.hosts import HostPart, HostsRun, place_domains

VIRTUAL = {"run.engine": "virtual"}
PARTS: dict[tuple[str, str], tuple[bytes, str]] = {}
"""The packed runs of parts, by topology and domains: the same seed gives the same run."""


class FakeHosts:
    """Has each part ready at once, and runs it under virtual time when the barrier opens.

    ``instead`` says what becomes of a host's part: how it ends, or None when the host is lost.
    """

    title = "tcp://127.0.0.1:1"

    def __init__(self, where: Path, text: str) -> None:
        self.where, self.text = where, text
        self.instead: dict[str, Callable[[], JobResult | None]] = {}
        self.lost_before: set[str] = set()
        self.is_open = self.is_ended = self.is_removed = self.cancelled = False
        self.dropped: list[str] = []
        self._jobs: dict[str, Job] = {}
        self._new: list[str] = []
        self._lost: dict[str, str] = {}

    @contextlib.contextmanager
    def alone(self, is_wanted: Callable[[], bool]) -> Iterator[None]:
        yield

    def submit(self, name: str, job: Job, host: str | None = None) -> None:
        assert host == name
        assert job.barrier
        self._jobs[name] = job
        self._new.append(name)

    def begun(self) -> list[tuple[str, str]]:
        new, self._new = self._new, []
        return [(name, name) for name in new]

    def arrived(self) -> set[str]:
        return set(self._jobs) - self.lost_before

    def lost(self) -> dict[str, str]:
        return {name: name for name in [*self._lost, *(self.lost_before & self._jobs.keys())]}

    def drop(self, name: str) -> None:
        self.dropped.append(name)
        self._jobs.pop(name, None)
        self._lost.pop(name, None)

    def open_barrier(self, name: str) -> None:
        self.is_open = True

    def end_barrier(self, name: str) -> None:
        self.is_ended = True

    def remove_barrier(self, name: str) -> None:
        self.is_removed = True

    def cancel(self) -> list[str]:
        self.cancelled = True
        return []

    def wait(self, timeout_s: float) -> Done | None:
        if not (self.is_open or self.is_ended) or not self._jobs:
            return None
        host = next((name for name in self._jobs if name in self.instead), next(iter(self._jobs)))
        job = self._jobs[host]
        if host in self.instead:
            result = self.instead[host]()
            if result is None:
                if host not in self._lost:
                    self._lost[host] = host
                    return None
                host, job = next(item for item in self._jobs.items() if item[0] != host)
                result = self._result(host, job)
        else:
            result = self._result(host, job)
        del self._jobs[host]
        return Done(host, result, None)

    def _result(self, host: str, job: Job) -> JobResult:
        domains = job.arguments[job.arguments.index("--domains") + 1]
        return JobResult(host, 0, b"", "", *packed(self.text, domains, self.where))


def packed(text: str, domains: str, where: Path) -> tuple[bytes, str]:
    if (text, domains) not in PARTS:
        whole = loads(text, overrides=VIRTUAL)
        run = sim.run(whole, domains=domains.split(","), runs=where / "there", resources_every_s=0)
        PARTS[text, domains] = pack(run.path)
    return PARTS[text, domains]


@pytest.fixture
def hosts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHosts:
    monkeypatch.setattr("sim.distributed.hosts.LOST_EVERY_S", -1.0)
    return FakeHosts(tmp_path, TWO_HALVES)


def run_on(hosts: FakeHosts) -> Run:
    topology = loads(hosts.text)
    its = HostsRun(topology, place_domains(topology, {"alpha": 1, "beta": 1}, hosts.title), hosts)  # type: ignore[arg-type]
    with RunDirectory.create(hosts.where / "runs", topology, {}, its.rows()) as directory:
        return its.run(directory)


def only(place: Path) -> Run:
    (path,) = place.iterdir()
    return sim.open(path)


def test_counts_are_those_of_the_whole_and_latencies_stay_within_a_host(hosts: FakeHosts, tmp_path: Path) -> None:
    """The same seed rings the same doorbells on one host and on two."""
    run = run_on(hosts)
    here = sim.run(loads(TWO_HALVES, overrides=VIRTUAL), runs=tmp_path / "here", resources_every_s=0)
    figures, whole = run.figures, here.figures
    assert (run.status, run.reason, run.problems) == ("finished", "", [])
    assert figures.balanced
    for name in ("machines", "rung", "delivered", "pending", "refused", "samples"):
        assert getattr(figures, name) == getattr(whole, name) > 0 or name in ("pending", "refused")
    assert {name: group.rung for name, group in figures.groups.items()} == {
        name: group.rung for name, group in whole.groups.items()
    }
    assert run.flows("machine").to_pylist() == here.flows("machine").to_pylist()
    assert (run.matrix("machine").values == here.matrix("machine").values).all()
    # Latencies: of each host, of each group, and none of all.
    assert figures.latency_ns.delivery.samples == 0
    assert figures.parts["alpha"].latency_ns == run.parts["alpha"].figures.latency_ns
    assert figures.groups["west"].latency_ns.delivery.samples > 0
    assert LATENCIES_NOTE in run.warnings
    for table in ("samples", "drains", "histograms", "resources"):
        with pytest.raises(UsageError, match=f"{table} are known within a host only"):
            run.table(table)
    with pytest.raises(UsageError, match="latencies are known within a host only"):
        run.latency()
    with pytest.raises(UsageError, match="times of doorbells are known within a host only"):
        trace(run)
    assert [(verdict.metric, verdict.met) for verdict in figures.expectations] == [
        ("rung", True),
        ("delivery.max_us", True),
    ]
    assert figures.expectations[0].got == whole.rung
    assert sim.open(run.path).figures == figures
    assert (hosts.is_open, hosts.is_ended, hosts.is_removed, hosts.cancelled) == (True, False, True, True)
    assert "parts/alpha/report.html" in page(run)


def test_runs_over_the_same_hosts_are_compared_by_their_counts(hosts: FakeHosts, tmp_path: Path) -> None:
    run = run_on(hosts)
    found = sim.compare(run, run)
    assert (found["rung"].a, found["rung"].change) == (run.figures.rung, 0.0)
    assert any("latencies are known within a host only" in note for note in found.notes)
    part = sim.run(loads(TWO_HALVES, overrides=VIRTUAL), domains=["left"], runs=tmp_path / "left")
    with pytest.raises(UsageError, match="A was run on alpha and beta and B outside a cluster"):
        sim.compare(run, part)


def test_a_group_on_two_hosts_has_counts_and_no_latencies(hosts: FakeHosts, tmp_path: Path) -> None:
    group = '[machines.ring]\ncount = 4\ndomains = ["left"]\nprogram = "storm"\n'
    group += 'parameters = { to = "others", rate_hz = 400.0 }\n'
    more = '[machines.ring.override.2]\ndomains = ["right"]\n[machines.ring.override.3]\ndomains = ["right"]\n'
    expected = '[[expect]]\nthat = "rung > 0"\nof = "ring"\n[[expect]]\nthat = "statistics.nothing > 0"\n'
    hosts.text = TWO_HALVES + group + more + expected
    run = run_on(hosts)
    its, parts = run.figures.groups["ring"], [part.figures.groups["ring"] for part in run.parts.values()]
    assert [part.machines for part in parts] == [2, 2]
    assert (its.machines, its.rung, its.sent) == (4, sum(part.rung for part in parts), sum(part.sent for part in parts))
    assert its.latency_ns.delivery.samples == 0
    _, _, summed, unknown = run.figures.expectations
    assert (summed.got, summed.met) == (its.rung, True)
    assert (unknown.got, unknown.met) == (None, False)
    assert "alpha: no program has it" in unknown.why


def test_a_host_that_is_lost_fails_the_run_and_the_others_are_kept(hosts: FakeHosts) -> None:
    hosts.instead["beta"] = lambda: None
    run = run_on(hosts)
    assert (run.status, run.reason) == ("failed", "beta was lost after the start: its worker is gone")
    assert (hosts.dropped, hosts.is_ended) == (["beta"], True)
    assert list(run.parts) == ["alpha"]
    assert run.figures.rung == run.parts["alpha"].figures.rung > 0
    assert "beta: its part is missing, and its doorbells are in no count" in run.problems
    summed, of_east = run.figures.expectations
    assert (summed.met, summed.why) == (False, "the part of beta is missing")
    assert of_east.met  # alpha had the larger domain, which is east's


def test_a_host_that_is_lost_before_the_start_is_named_and_nothing_starts(hosts: FakeHosts) -> None:
    hosts.lost_before = {"alpha"}
    run = run_on(hosts)
    assert run.reason == "alpha was lost before the start: its worker is gone"
    assert (hosts.is_open, hosts.is_ended) == (False, True)


def failed(hosts: FakeHosts, reason: str, status: str = "failed") -> JobResult:
    path = hosts.where / "failed"
    run = sim.run(loads(TWO_HALVES, overrides=VIRTUAL), domains=["right"], runs=path, resources_every_s=0).path
    (run / "status").write_text(f"{status}\n{reason}\n")
    return JobResult("alpha", 1, b"", "", *pack(run))


def test_a_part_that_fails_ends_the_others(hosts: FakeHosts) -> None:
    hosts.instead["alpha"] = lambda: failed(hosts, "east-0 died (SIGKILL)")
    run = run_on(hosts)
    assert (run.status, run.reason) == ("failed", "alpha: east-0 died (SIGKILL)")
    assert hosts.is_ended
    assert list(run.parts) == ["alpha", "beta"]


def test_a_part_whose_coordinator_died_is_made_of_its_recordings_and_not_judged(hosts: FakeHosts) -> None:
    def died() -> JobResult:
        result = failed(hosts, "the coordinator died", "died")
        unpack(result, path := hosts.where / "died")
        summary = msgspec.json.decode((path / "summary.json").read_bytes())
        (path / "summary.json").write_bytes(msgspec.json.encode(summary | {"expectations": []}))
        return JobResult("alpha", -9, b"", "", *pack(path))

    hosts.instead["alpha"] = died
    run = run_on(hosts)
    assert (run.status, run.reason) == ("failed", "alpha: the coordinator died")
    assert run.figures.expectations[1].why == "the part of its host was not judged: it is died"


def test_a_host_that_refuses_its_part_is_named_with_its_reason(hosts: FakeHosts) -> None:
    hosts.instead["alpha"] = lambda: JobResult("alpha", 3, b"", "ivsim: no room", b"", "")
    with pytest.raises(HostError, match="alpha on alpha: no room"):
        run_on(hosts)
    run = only(hosts.where / "runs")
    assert (run.status, run.reason) == ("failed", "alpha on alpha: no room")


def test_a_scheduler_that_is_gone_fails_the_run(hosts: FakeHosts) -> None:
    def gone() -> JobResult:
        raise RunError("the scheduler is gone")

    hosts.instead["alpha"] = gone
    run = run_on(hosts)
    assert (run.status, run.reason) == ("failed", "the scheduler is gone")
    assert not run.parts


def test_a_run_whose_command_died_is_made_of_the_parts_that_had_come(hosts: FakeHosts) -> None:
    run = run_on(hosts)
    (run.path / "summary.json").unlink()
    (run.path / "status").write_text("running\n")
    manifest = run.path / "manifest.json"
    manifest.write_text(re.sub(r'"boot": "[^"]*"', '"boot": "another"', manifest.read_text()))
    again = sim.open(run.path)
    assert again.status == "died"
    assert again.figures.rung == run.figures.rung
    # One that was given up says so.
    (run.path / "summary.json").unlink()
    (run.path / "status").write_text("interrupted\ngiven up\n")
    again = sim.open(run.path)
    assert (again.status, again.reason, again.figures.rung) == ("interrupted", "given up", run.figures.rung)


def test_what_cannot_be_sent_is_refused_before_there_is_a_directory(hosts: FakeHosts) -> None:
    topology = loads(TWO_HALVES)
    programs = [hosts.where / "a" / "mine.py", hosts.where / "b" / "mine.py"]
    for program in programs:
        program.parent.mkdir()
        program.touch()
    with pytest.raises(UsageError, match=r"two programs are called mine\.py"):
        HostsRun(topology, [], hosts, programs=programs)  # type: ignore[arg-type]


# Where domains run


def halves(**hosts: str) -> Topology:
    return loads(TWO_HALVES, overrides={f"domains.{name}.host": host for name, host in hosts.items()})


def test_a_domain_on_any_host_goes_where_the_fewest_machines_are() -> None:
    workers = {"alpha": 1, "beta": 2}
    assert place_domains(halves(), workers, "") == [HostPart("alpha", ["right"]), HostPart("beta", ["left"])]
    assert place_domains(halves(left="alpha"), workers, "") == [
        HostPart("alpha", ["left"]),
        HostPart("beta", ["right"]),
    ]
    assert place_domains(halves(), {"alpha": 1}, "") == [HostPart("alpha", ["right", "left"])]
    same = halves(left="beta", right="beta")
    assert place_domains(same, workers, "") == [HostPart("beta", ["left", "right"])]


def test_workers_without_names_stand_for_hosts() -> None:
    assert place_domains(halves(left="alpha"), {"": 2}, "") == [
        HostPart("alpha", ["left"], False),
        HostPart("worker-1", ["right"], False),
    ]
    with pytest.raises(UsageError, match="a worker for each of the hosts alpha, beta, got 1"):
        place_domains(halves(left="alpha", right="beta"), {"": 1}, "")


def test_a_host_without_a_worker_is_named_with_what_to_do() -> None:
    with pytest.raises(HostError, match=r"no worker called gamma at tcp://h:1 \(there are alpha\); start one: ivsim"):
        place_domains(halves(left="gamma"), {"alpha": 1}, "tcp://h:1")
    with pytest.raises(HostError, match=r"no worker called NAME at tcp://h:1 \(there is none\)"):
        place_domains(halves(), {}, "tcp://h:1")
    with pytest.raises(UsageError, match="no domain has a host"):
        place_domains(loads(TWO_HALVES.replace('host = "any"', "")), {"alpha": 1}, "")


def test_a_host_alone_refuses_the_whole_and_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"the domains have hosts \(left on any, right on any\): `ivsim run FILE --sch"
    ):
        sim.run(halves(), runs=tmp_path)
    assert not list(tmp_path.iterdir())
